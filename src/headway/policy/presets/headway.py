"""``headway``: the default. What ``slack`` does, with admission weighed instead of guessed.

Deadline order, the largest set of claims that can be on time, steps as long as is worth their
risk (see ``slack``); a request starts when the promises that waiting would cost outweigh those
that running out of KV would (:mod:`headway.policy.weigh`).
"""

from __future__ import annotations

from headway.policy.admit import AllOf, CurveGate, Gate, MooreHodgson, StepGate
from headway.policy.batch import InOrder
from headway.policy.chunk import SlackChunk
from headway.policy.kv.forecast import Lifetimes
from headway.policy.predict import Predictor, SlidingHistogram
from headway.policy.preempt import BestEffortFirst
from headway.policy.presets.options import positive_s, share
from headway.policy.prioritize import ByDeadline
from headway.policy.scheduler import Parts
from headway.policy.weigh import Lengths, Weighed


def parts(max_wait_s: float = 300.0, confidence: float | None = None) -> Parts:
    """Return the parts.

    Args:
        max_wait_s: Bound on how long best effort may wait for its turn.
        confidence: A fixed quantile of the output lengths to reserve by, for comparison; by
            default what each error costs decides.
    """
    chunker = SlackChunk()
    predictor: Predictor
    gate: Gate
    if confidence is None:
        lifetimes = Lifetimes()
        predictor, gate = Lengths(lifetimes), Weighed(lifetimes, chunker)
    else:
        predictor, gate = SlidingHistogram(share("confidence", confidence)), CurveGate()
    return Parts(
        predictor=predictor,
        feasibility=MooreHodgson(),
        prioritizer=ByDeadline(),
        chunker=chunker,
        gate=AllOf(StepGate(), gate),
        batcher=InOrder(),
        preemptor=BestEffortFirst(),
        max_wait_s=positive_s("max_wait_s", max_wait_s),
    )
