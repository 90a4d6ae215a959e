"""``pastfuture``: admit by the peak of the KV cache's predicted future.

Past-Future (arXiv 2507.10150 §3): in every plan the length of each running and each queued
request is drawn from the last 200 outputs, given what it generated already; the queue is
admitted in order while the peak of the future usage stays within 95 % of the cache. Differs:
before the first output is known the client's bound is taken; half a block a request is added
for blocks not yet full; prompts are chunked by the engine's budget.
"""

from __future__ import annotations

from headway.policy.admit import AllFeasible
from headway.policy.batch import InOrder
from headway.policy.chunk import FixedChunk
from headway.policy.parts import Parts
from headway.policy.preempt import Youngest
from headway.policy.presets.options import positive_count, share
from headway.policy.prioritize import ByArrival
from headway.policy.rivals.resample import History, PastFuture


def parts(window: int = 200, reserve_share: float = 0.05, seed: int = 0) -> Parts:
    """Return the parts.

    Args:
        window: Outputs remembered.
        reserve_share: Share of the cache kept free of predictions.
        seed: Of the draws.
    """
    history = History(positive_count("window", window), seed)
    return Parts(
        predictor=history,
        feasibility=AllFeasible(),
        prioritizer=ByArrival(),
        chunker=FixedChunk(),
        gate=PastFuture(history, share("reserve_share", reserve_share, may_be_0=True)),
        batcher=InOrder(may_pass=0),
        preemptor=Youngest(),
        heeds_promises=False,
    )
