"""Batches of requests whose answers are predicted to be about as long (RLP)."""

from __future__ import annotations

from collections.abc import Iterator

from headway.policy.context import PlanContext
from headway.policy.live import LiveRequests
from headway.policy.prioritize import Prioritizer
from headway.request import Request


class LengthBatches(Prioritizer):
    """One batch at a time, all of one predicted length, drawn from a pool of arrivals.

    The pool holds the longest waiting; its shortest bucket is served first, to the end, then
    the next. Whoever failed (outgrew its bucket, so it lost its KV and its prediction grew)
    leaves the batch and is collected: the pool's last batch are its failures. Then a new
    pool is drawn, so nobody is passed by more than one pool.
    """

    def __init__(self, pool_size: int = 256) -> None:
        self._pool_size = pool_size
        self._pool: dict[str, Request] = {}
        self._batch: dict[str, tuple[Request, int]] = {}

    def candidates(self, ctx: PlanContext) -> Iterator[Request]:
        """Yield prompts in progress, then who of the batch has not started."""
        live = ctx.live
        yield from list(live.prefilling.values())
        self._batch = {
            i: (r, length)
            for i, (r, length) in self._batch.items()
            if live.requests.get(i) is r and r.predicted_output_tokens == length
        }
        if not self._batch:
            self._next_batch(live)
        running = {**live.prefilling, **live.decoding}
        out = {**running, **live.hindered}
        yield from (r for i, (r, _) in self._batch.items() if i not in out)

    def _next_batch(self, live: LiveRequests) -> None:
        """Take the next bucket of the pool, its failures, or a new pool."""
        running = {**live.prefilling, **live.decoding}
        pool = {
            i: r for i, r in self._pool.items() if live.requests.get(i) is r and i not in running
        }
        if not pool:
            pool = {r.request_id: r for r in live.others[: self._pool_size]}
        self._pool = pool
        chosen = [r for r in pool.values() if not r.num_output_tokens]
        if chosen:
            shortest = min(r.predicted_output_tokens for r in chosen)
            chosen = [r for r in chosen if r.predicted_output_tokens == shortest]
        else:
            chosen = list(pool.values())  # Only failures are left.
        self._batch = {r.request_id: (r, r.predicted_output_tokens) for r in chosen}
