"""How much to add to a guess of an output's length."""

from __future__ import annotations

import math
from collections import deque

from headway.policy.predict import Predictor, within
from headway.request import Request

MOST_WATCHED = 20_000
"""Requests whose first prediction is kept. Who is refused or hangs up never comes back to be
judged, so the oldest are dropped beyond this."""


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
            self._first[request.request_id] = guess
            if len(self._first) > MOST_WATCHED:
                del self._first[next(iter(self._first))]
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
