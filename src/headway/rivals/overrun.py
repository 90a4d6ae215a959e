"""Reservations in buckets, and what happens to a request that outgrows its own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from headway.kit.parts import Batcher, Prioritizer
from headway.policy.admit import Gate
from headway.policy.batch import StepFill
from headway.policy.chunk import Chunker
from headway.policy.draft import Draft
from headway.policy.plan import Preempt
from headway.policy.predict import Predictor
from headway.policy.preempt import Preemptor
from headway.request import Request, State


class Bucketed(Predictor):
    """A prediction rounded up to its bucket's edge, and grown when it proves too small.

    Args:
        bucket_tokens: Width of a bucket; ``None`` takes a tenth of the client's bound.
        growth: What a reservation is multiplied by once outgrown; ``None`` takes the bound.
    """

    def __init__(
        self, inner: Predictor, bucket_tokens: int | None = None, growth: int | None = 2
    ) -> None:
        self._inner = inner
        self._bucket_tokens = bucket_tokens
        self._growth = growth
        self._outgrown: dict[str, int] = {}

    def learn(self, request: Request) -> None:
        """Pass the length on."""
        self._inner.learn(request)

    def predict(self, request: Request) -> int:
        """Return the bucket's edge on arrival, the reservation grown when it is used up."""
        bound = request.max_output_tokens
        if request.state is State.WAITING:
            width = self._bucket_tokens or -(-bound // 10)
            return min(-(-self._inner.predict(request) // width) * width, bound)
        reserved = request.predicted_output_tokens
        if request.num_output_tokens < reserved:
            return reserved  # The prompt took steps too; the output is within its bucket.
        self._outgrown[request.request_id] = request.num_output_tokens
        grown = bound if self._growth is None else min(self._growth * reserved, bound)
        return max(grown, request.num_output_tokens + 1)

    def take_outgrown(self, draft: Draft) -> Iterator[Request]:
        """Yield, once, the decoding requests that outgrew their reservation in this plan."""
        outgrown, self._outgrown = self._outgrown, {}
        for request_id, num_output_tokens in outgrown.items():
            request = draft.given.live.decoding.get(request_id)
            if request is not None and request.num_output_tokens == num_output_tokens:
                yield request


class Evicting(Batcher):
    """Take the KV of whoever outgrew its reservation, then fill the step as usual.

    While nobody waits the reservation grows in place: no one else's future is touched.
    """

    def __init__(self, inner: Batcher, predictor: Bucketed) -> None:
        self._inner = inner
        self._predictor = predictor

    def fill(
        self,
        draft: Draft,
        candidates: Iterable[Request],
        chunker: Chunker,
        gate: Gate,
        preemptor: Preemptor,
    ) -> StepFill:
        """See :class:`~headway.kit.parts.Batcher`."""
        evicted: list[Preempt] = []
        for request in self._predictor.take_outgrown(draft):
            if request.request_id in draft.gone or not draft.given.live.num_waiting:
                continue
            draft.gone.add(request.request_id)
            draft.num_spare_blocks += draft.given.freed_blocks(request)
            why = "its output outgrew the reservation"
            evicted.append(Preempt(request.request_id, "recompute", why))
        filled = self._inner.fill(draft, candidates, chunker, gate, preemptor)
        filled.preempt = [*evicted, *filled.preempt]
        return filled


class LongestFirst(Prioritizer):
    """Decreasing first fit over a window of arrivals: the largest reservation first.

    The window is filled with the longest waiting and refilled when all of it has started, so
    that nobody is passed for ever.
    """

    def __init__(self, window: int = 64) -> None:
        self._size = window
        self._window: set[str] = set()

    def candidates(self, draft: Draft) -> Iterator[Request]:
        """Yield prompts in progress, then the window by reservation."""
        yield from list(draft.given.live.prefilling.values())
        members = [r for r in draft.given.live.others if r.request_id in self._window]
        if not members:
            members = list(draft.given.live.others[: self._size])
            self._window = {r.request_id for r in members}
        members.sort(
            key=lambda r: (-r.num_prompt_tokens - r.predicted_output_tokens, r.order),
        )
        yield from members
