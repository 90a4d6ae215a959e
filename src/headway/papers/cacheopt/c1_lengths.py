"""How much to add to a guess of an output's length, and how to stay honest about it."""

from __future__ import annotations

import bisect
import math
from collections import deque
from collections.abc import Sequence
from typing import TypeVar

from headway.policy.predict import LengthDistribution, Predictor, within
from headway.request import Request

LEVELS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)
"""Probabilities whose coverage is tracked; between two of them the correction is a line."""

MOST_WATCHED = 20_000
"""Requests whose first prediction is kept. Who is refused or hangs up never comes back to be
judged, so the oldest are dropped beyond this."""

TOP_LEVEL = 0.999
"""The quantile taken for the longest output a distribution knows of."""

LEVELS_PER_DOUBLING = 0.25
MOST_LEVEL = 4.0
"""Levels above 1 lie beyond everything known: each quarter doubles the longest length, so that
the highest reaches 4,096 times that, which is the client's bound."""

T = TypeVar("T")


class HoeffdingPadding(Predictor):
    """A prediction moved by Hoeffding's bound on its error (CacheOPT, arXiv 2503.13773, C1).

    Confidence ``p = alpha / (1 + beta * lambda)`` falls with the arrival rate lambda (1/s). The
    padding ``t = sqrt(-(R**2 / 2) * ln(1 - p))`` is added where the predictor is known to
    under-predict and subtracted where it over-predicts.

    What is not known of the paper and filled in here: R is the range of recent errors of
    predictions in the same bucket (a factor of two wide), because with the range of all outputs
    t exceeds R itself for p > 0.865; the sign is that of their mean; nothing is subtracted once
    a request has outrun a prediction. Differs: no second model head tells the direction.

    Args:
        window: Errors remembered per bucket.
        min_errors: Errors without which a bucket is not padded.
        rate_window_s: Span before the newest arrival over which lambda is measured.
    """

    def __init__(
        self,
        inner: Predictor,
        alpha: float = 0.95,
        beta: float = 0.001,
        window: int = 100,
        min_errors: int = 8,
        rate_window_s: float = 60.0,
    ) -> None:
        self.inner = inner
        """The predictor that is padded; experiments put one of known quality in its place."""
        self._alpha = alpha
        self._beta = beta
        self._window = window
        self._min_errors = min_errors
        self._rate_window_s = rate_window_s
        self._arrivals_s: deque[float] = deque()
        self._first: dict[str, int] = {}
        self._errors: dict[int, deque[int]] = {}

    @property
    def rate_per_s(self) -> float:
        """Arrivals per second lately; 0 before the second one."""
        span_s = self._arrivals_s[-1] - self._arrivals_s[0] if self._arrivals_s else 0.0
        return (len(self._arrivals_s) - 1) / span_s if span_s > 0 else 0.0

    @property
    def coverage_target(self) -> float:
        """The confidence p that the padding is sized for."""
        return self._alpha / (1.0 + self._beta * self.rate_per_s)

    def predict(self, request: Request) -> int:
        """Return the padded prediction; a request asked about for the first time has arrived."""
        guess = self.inner.predict(request)
        is_new = request.num_output_tokens == 0
        if is_new and request.request_id not in self._first:
            self._arrived(request.queued_at_s)
            _keep(self._first, request.request_id, guess)
        padding = self.padding_tokens(guess)
        return within(request, guess + (padding if is_new else max(padding, 0)))

    def padding_tokens(self, guess_tokens: int) -> int:
        """Return what is added to a prediction; negative where those like it were too long."""
        errors = self._errors.get(guess_tokens.bit_length())
        if errors is None or len(errors) < self._min_errors:
            return 0
        spread = max(errors) - min(errors)
        size = spread * math.sqrt(-0.5 * math.log(1.0 - self.coverage_target))
        return math.ceil(size) if sum(errors) > 0 else -math.floor(size)

    def learn(self, request: Request) -> None:
        """Note how far off the first prediction was, and pass the length on."""
        guess = self._first.pop(request.request_id, None)
        if guess is not None:
            bucket = guess.bit_length()
            errors = self._errors.setdefault(bucket, deque(maxlen=self._window))
            errors.append(request.num_output_tokens - guess)
        self.inner.learn(request)

    def _arrived(self, at_s: float) -> None:
        self._arrivals_s.append(at_s)
        while self._arrivals_s[0] < at_s - self._rate_window_s:
            self._arrivals_s.popleft()


class Track:
    """The corrected levels of one class: which one to ask for to be covered with each of LEVELS.

    Adaptive conformal inference (Gibbs and Candès 2021, eq. 2): after each outcome the level
    moves up by ``step * p`` on a miss and down by ``step * (1 - p)`` on a hit, so that in the long
    run *p* are hits whatever the traffic does. Differs: the step shrinks towards the ends as
    ``4 * p * (1 - p)``, or the highest levels would swing beyond 1.
    """

    def __init__(self, levels: Sequence[float], step: float) -> None:
        self._levels = list(levels)
        self._step = step
        self.raw = list(levels)
        self._asked = [0.0, *levels, 1.0]
        self._corrected = [0.0, *levels, MOST_LEVEL]

    def move(self, misses: Sequence[float]) -> None:
        """Take one outcome in: how much of a miss (0 to 1) it was for each level."""
        highest = 0.0
        for i, (p, miss) in enumerate(zip(self._levels, misses, strict=True)):
            step = self._step * 4.0 * p * (1.0 - p)
            self.raw[i] = min(max(self.raw[i] + step * (miss - (1.0 - p)), 0.0), MOST_LEVEL)
            highest = max(highest, self.raw[i])  # Each moves on its own; they must not cross.
            self._corrected[i + 1] = highest

    def level(self, p: float) -> float:
        """Return the level to ask for instead of *p*."""
        return _on_line(p, self._asked, self._corrected)

    def asked(self, level: float) -> float:
        """Return the p whose corrected level is *level*: the inverse of :meth:`level`."""
        return _on_line(level, self._corrected, self._asked)


class AdaptiveConformal(Predictor, LengthDistribution):
    """A distribution whose quantiles are corrected until they cover as often as they say.

    Judged are requests that ran to their end, by what was predicted when they arrived (or when
    :meth:`watch` was called last); a preemption in between changes nothing. Requests that were
    refused or hung up have no length to judge by and move nothing here.

    Differs from Gibbs and Candès in two ways. An outcome is known only when the request ends,
    after many others were predicted, and correcting by late errors alone overshoots: with 100
    requests in flight and lengths that double, coverage at 0.8 stayed 10 points low for 1,700
    requests. So half of each error is that of the prediction as it would be made now. And a
    level above 1 does not mean the client's bound at once, it doubles the longest known length
    step by step.

    Args:
        p: Probability that :meth:`predict` answers with.
        step: How far one outcome moves a level near the median.
        window: Outcomes over which :meth:`coverage` is measured, per class.
    """

    def __init__(
        self,
        inner: LengthDistribution,
        p: float = 0.5,
        step: float = 0.05,
        levels: Sequence[float] = LEVELS,
        window: int = 1000,
    ) -> None:
        self._inner = inner
        self._p = p
        self._step = step
        self._levels = tuple(levels)
        self._window = window
        self._tracks: dict[str, Track] = {}
        self._judged: dict[str, deque[tuple[bool, ...]]] = {}
        self._watched: dict[str, tuple[int, ...]] = {}

    @property
    def coverage_target(self) -> float:
        """See :class:`~headway.policy.predict.Predictor`."""
        return self._p

    def predict(self, request: Request) -> int:
        """Return the quantile it was built with."""
        return self.quantile(request, self._p)

    def quantile(self, request: Request, p: float) -> int:
        """See :class:`LengthDistribution`; a new request is watched from its first quantile on."""
        if request.num_output_tokens == 0 and request.request_id not in self._watched:
            self.watch(request)
        if p >= 1.0:
            return within(request, request.max_output_tokens)
        return self._at_level(request, self._track(request).level(p))

    def survival(self, request: Request, num_tokens: int) -> float:
        """See :class:`LengthDistribution`; the inverse of :meth:`quantile`."""
        known = self._inner.survival(request, num_tokens)
        if num_tokens <= request.num_output_tokens or num_tokens >= request.max_output_tokens:
            return known
        level = 1.0 - known
        if known <= 0.0:
            longest = self._inner.quantile(request, TOP_LEVEL)
            level += LEVELS_PER_DOUBLING * max(math.log2(num_tokens / longest), 0.0)
        return 1.0 - self._track(request).asked(level)

    def watch(self, request: Request) -> None:
        """Note what is predicted now for a request without tokens, to be judged at its end.

        Called on arrival by itself; call it again when the request is admitted to judge the
        prediction that its reservation was made by.
        """
        track = self._track(request)
        first = tuple(self._at_level(request, track.level(p)) for p in self._levels)
        _keep(self._watched, request.request_id, first)

    def learn(self, request: Request) -> None:
        """Judge what was predicted, correct the levels, and pass the length on."""
        first = self._watched.pop(request.request_id, None)
        if first is not None:
            name, length = request.slo.class_name, request.num_output_tokens
            covered = tuple(length <= predicted for predicted in first)
            self._judged.setdefault(name, deque(maxlen=self._window)).append(covered)
            track, new = self._track(request), _as_new(request)
            now = (length <= self._at_level(new, track.level(p)) for p in self._levels)
            track.move([1.0 - 0.5 * (a + b) for a, b in zip(covered, now, strict=True)])
        self._inner.learn(request)

    def learn_cut(self, request: Request) -> None:
        """Pass on how far it came; its length is not known, so nothing is judged."""
        self._watched.pop(request.request_id, None)
        self._inner.learn_cut(request)

    def coverage(self, class_name: str | None = None) -> dict[float, float]:
        """Return, per tracked probability, the share of recent outcomes that were covered.

        Of one class, or of all together. Empty before the first.
        """
        judged = [
            covered
            for name, outcomes in self._judged.items()
            if class_name in (None, name)
            for covered in outcomes
        ]
        return {
            p: sum(covered[i] for covered in judged) / len(judged)
            for i, p in enumerate(self._levels)
            if judged
        }

    def _track(self, request: Request) -> Track:
        name = request.slo.class_name
        if name not in self._tracks:
            self._tracks[name] = Track(self._levels, self._step)
        return self._tracks[name]

    def _at_level(self, request: Request, level: float) -> int:
        if level <= TOP_LEVEL:
            return self._inner.quantile(request, level)
        longest = self._inner.quantile(request, TOP_LEVEL)
        doublings = max(level - 1.0, 0.0) / LEVELS_PER_DOUBLING
        return within(request, math.ceil(longest * 2.0**doublings))


def _as_new(request: Request) -> Request:
    """Return the request as it was before its first token."""
    return Request(
        request.request_id,
        request.slo,
        request.arrived_at_s,
        request.num_prompt_tokens,
        request.max_output_tokens,
    )


def _keep(kept: dict[str, T], name: str, value: T) -> None:
    """Store under *name* as the newest, and drop the oldest beyond :data:`MOST_WATCHED`."""
    kept.pop(name, None)
    kept[name] = value
    if len(kept) > MOST_WATCHED:
        del kept[next(iter(kept))]


def _on_line(x: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    """Return y at *x* on straight lines through the points; both sequences ascend."""
    right = min(max(bisect.bisect_right(xs, x), 1), len(xs) - 1)
    left_x, right_x = xs[right - 1], xs[right]
    share = min(max((x - left_x) / (right_x - left_x), 0.0), 1.0) if right_x > left_x else 1.0
    return ys[right - 1] + share * (ys[right] - ys[right - 1])
