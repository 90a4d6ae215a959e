"""``s3``: reserve a predicted bucket; evict and double when the prediction was short.

S3 (arXiv 2306.06000 §3): output lengths are predicted in ten buckets of the allowed range and
the bucket's edge is reserved; batches are packed by decreasing first fit; a request that
outgrows its reservation is evicted and comes back with twice as much. Differs: lengths come
from a sliding histogram per class, not from S3's fine-tuned classifier, and never from the
truth (``predictor="max_tokens"`` takes the client's bound instead, which is ORCA's rule); the
packing looks at a window of arrivals, refilled when it has all started, so nobody starves.
"""

from __future__ import annotations

from headway.kit.options import length_predictor, positive_count
from headway.kit.parts import Parts
from headway.kit.simple import AllFeasible, FixedChunk, Youngest
from headway.policy.batch import InOrder
from headway.rivals.overrun import Bucketed, Evicting, LongestFirst
from headway.rivals.reserved import Reserved


def parts(predictor: str = "histogram", window: int = 64) -> Parts:
    """Reserves predicted lengths and evicts whoever outgrows its own; promises decide nothing.

    Args:
        predictor: ``"histogram"`` or ``"max_tokens"``.
        window: Waiting requests packed together.
    """
    positive_count("window", window)
    bucketed = Bucketed(length_predictor(predictor))
    return Parts(
        predictor=bucketed,
        feasibility=AllFeasible(),
        prioritizer=LongestFirst(window),
        chunker=FixedChunk(),
        gate=Reserved(),
        batcher=Evicting(InOrder(may_pass=window), bucketed),
        preemptor=Youngest(),
        heeds_promises=False,
    )
