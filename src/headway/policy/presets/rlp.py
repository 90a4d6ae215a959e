"""``rlp``: batches of requests whose answers are predicted to be about as long.

Response-length perception and sequence scheduling (arXiv 2305.13144 §4): a pool of 256
requests is cut into batches of one 50-token bucket of predicted length; as many run together
as their predicted KV lets (the variable batch size); a batch ends before the next begins;
generation is held to the bucket, and whoever exceeds it is collected and computed again after
the pool, with the whole allowed length. Differs: lengths come from a sliding histogram per
class, not from asking the model, and never from the truth (``predictor="max_tokens"`` groups by
the client's
bound); a failed request keeps the tokens its client has seen and only its KV is computed
again; the shortest bucket goes first, where the paper names no order.
"""

from __future__ import annotations

from headway.policy.admit import AllFeasible
from headway.policy.batch import InOrder
from headway.policy.chunk import FixedChunk
from headway.policy.parts import Parts
from headway.policy.preempt import Youngest
from headway.policy.presets.options import length_predictor, positive_count, positive_tokens
from headway.policy.rivals.groups import LengthBatches
from headway.policy.rivals.overrun import Bucketed, Evicting
from headway.policy.rivals.reserve import Reserved


def parts(predictor: str = "histogram", bucket_tokens: int = 50, pool_size: int = 256) -> Parts:
    """Return the parts.

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
