"""What recent requests of the same class and prompt length needed; no training."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from headway.policy.lengths.curve import SurvivalCurve
from headway.policy.predict import LengthDistribution, Memoryless, Predictor, is_beyond, within
from headway.request import Request


def prompt_bucket(num_prompt_tokens: int) -> int:
    """Return the bucket of a prompt: 2 to 7, 8 to 31, 32 to 127, ... tokens (factors of four)."""
    return num_prompt_tokens.bit_length() // 2


@dataclass(slots=True)
class _Class:
    """The window of one class: its members in order of their end, and curves over them."""

    recent: deque[tuple[int, int, bool]] = field(default_factory=deque)
    whole: SurvivalCurve = field(default_factory=SurvivalCurve)
    buckets: dict[int, SurvivalCurve] = field(default_factory=dict)

    def take(self, bucket: int, num_tokens: int, is_cut: bool, window: int) -> None:
        self.recent.append((bucket, num_tokens, is_cut))
        self.whole.add(num_tokens, is_cut)
        self.buckets.setdefault(bucket, SurvivalCurve()).add(num_tokens, is_cut)
        if len(self.recent) > window:
            bucket, num_tokens, is_cut = self.recent.popleft()
            self.whole.remove(num_tokens, is_cut)
            self.buckets[bucket].remove(num_tokens, is_cut)
            if not len(self.buckets[bucket]):
                del self.buckets[bucket]


class ClassBucketHistogram(Predictor, LengthDistribution):
    """Recent lengths of the same class and prompt bucket, given the tokens generated so far.

    It backs off where it knows too little: from the bucket to the class, from the class to all
    classes, from those to :class:`~headway.policy.predict.Memoryless`. The window is counted
    per class, so that a rare bucket forgets a drift as fast as its class does.

    Args:
        p: Quantile that :meth:`predict` answers with.
        window: Requests remembered per class, and of all classes together.
        min_bucket: Members of a bucket still running at the asked request's length without
            which its class answers. More than of the class: prompts tell little in general, so
            a bucket must be able to show it.
        min_samples: Members without which a class, or all classes, are not asked.
    """

    def __init__(
        self, p: float = 0.5, window: int = 300, min_bucket: int = 40, min_samples: int = 8
    ) -> None:
        self._p = p
        self._window = window
        self._min_bucket = min_bucket
        self._min_samples = min_samples
        self._classes: dict[str, _Class] = {}
        self._everyone = _Class()
        self._unknown = Memoryless()

    @property
    def coverage_target(self) -> float:
        """See :class:`~headway.policy.predict.Predictor`."""
        return self._p

    def predict(self, request: Request) -> int:
        """Return the quantile it was built with."""
        return self.quantile(request, self._p)

    def quantile(self, request: Request, p: float) -> int:
        """See :class:`~headway.policy.predict.LengthDistribution`."""
        if p >= 1.0:
            return within(request, request.max_output_tokens)
        curve = self._curve_for(request)
        if curve is None:
            return self._unknown.quantile(request, p)
        length = curve.quantile(p, request.num_output_tokens)
        return within(request, request.max_output_tokens if length is None else length)

    def survival(self, request: Request, num_tokens: int) -> float:
        """See :class:`~headway.policy.predict.LengthDistribution`."""
        known = is_beyond(request, num_tokens)
        if known is not None:
            return known
        curve = self._curve_for(request)
        if curve is None:
            return self._unknown.survival(request, num_tokens)
        return curve.survival(num_tokens, request.num_output_tokens)

    def learn(self, request: Request) -> None:
        """Remember a finished request; one that reached its bound was cut there."""
        self._take(request, request.num_output_tokens >= request.max_output_tokens)

    def learn_cut(self, request: Request) -> None:
        """Remember how far a request came that left early, if it generated anything."""
        if request.num_output_tokens > 0:
            self._take(request, is_cut=True)

    def _take(self, request: Request, is_cut: bool) -> None:
        bucket = prompt_bucket(request.num_prompt_tokens)
        of_class = self._classes.setdefault(request.slo.class_name, _Class())
        of_class.take(bucket, request.num_output_tokens, is_cut, self._window)
        self._everyone.take(0, request.num_output_tokens, is_cut, self._window)

    def _curve_for(self, request: Request) -> SurvivalCurve | None:
        """Return the closest kin that can tell, or ``None``.

        A request that outran its whole class is not compared with others: the end of a chat
        that became longer than any chat is not that of a summary.
        """
        so_far = request.num_output_tokens
        of_class = self._classes.get(request.slo.class_name)
        if of_class is not None and len(of_class.whole) >= self._min_samples:
            bucket = of_class.buckets.get(prompt_bucket(request.num_prompt_tokens))
            if bucket is not None and bucket.num_longer(so_far) >= self._min_bucket:
                return bucket
            curve = of_class.whole
        else:
            curve = self._everyone.whole
            if len(curve) < self._min_samples:
                return None
        return curve if curve.num_longer(so_far) else None
