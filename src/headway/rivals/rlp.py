"""``rlp``: batches of requests whose answers are predicted to be about as long.

Response-length perception and sequence scheduling (arXiv 2305.13144 §4): a pool of 256
requests is cut into batches of one 50-token bucket of predicted length; as many run together
as their predicted KV lets (the variable batch size); a batch ends before the next begins;
generation is held to the bucket, and a request beyond it is set aside and computed again after
the pool, with the whole allowed length. Differs: lengths come from a sliding histogram per
class, not from asking the model, and never from the truth (``predictor="max_tokens"`` groups by
the client's
bound); a failed request keeps the tokens its client has seen and only its KV is computed
again; the shortest bucket goes first, where the paper names no order.
"""

from __future__ import annotations

from collections.abc import Iterator

from headway.kit.options import length_predictor, positive_count, positive_tokens
from headway.kit.parts import Parts, Prioritizer
from headway.kit.simple import AllFeasible, FixedChunk, Youngest
from headway.policy.batch import InOrder
from headway.policy.draft import Draft
from headway.policy.live_requests import LiveRequests
from headway.request import Request
from headway.rivals.overrun import Bucketed, Evicting
from headway.rivals.reserved import Reserved


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

    def candidates(self, draft: Draft) -> Iterator[Request]:
        """Yield prompts in progress, then who of the batch has not started."""
        live = draft.given.live
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


def parts(predictor: str = "histogram", bucket_tokens: int = 50, pool_size: int = 256) -> Parts:
    """One batch of equal predicted lengths at a time; promises decide nothing.

    Args:
        predictor: ``"histogram"`` or ``"max_tokens"``.
        bucket_tokens: Width of a bucket of predicted length.
        pool_size: Requests sorted into batches together.
    """
    positive_tokens("bucket_tokens", bucket_tokens)
    positive_count("pool_size", pool_size)
    bucketed = Bucketed(length_predictor(predictor), bucket_tokens, growth=None)
    return Parts(
        predictor=bucketed,
        feasibility=AllFeasible(),
        prioritizer=LengthBatches(pool_size),
        chunker=FixedChunk(),
        gate=Reserved(),
        batcher=Evicting(InOrder(may_pass=pool_size), bucketed),
        preemptor=Youngest(),
        heeds_promises=False,
    )
