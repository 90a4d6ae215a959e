"""``slack``: the promise decides. Deadline order, chunks bounded by the tightest slack.

Joins earliest due date (Jackson 1955), the largest set of claims that can be on time (Moore
1968), stall-free chunks from a learned step time (after Sarathi-Serve, arXiv 2403.02310, and
QoServe, arXiv 2503.22562), and admission by the peak of the KV usage curve (Past-Future,
arXiv 2507.10150). What differs is said where each part is defined.
"""

from __future__ import annotations

from headway.kit.options import positive_s
from headway.policy.admit import AllOf, CurveGate, MooreHodgson, StepGate
from headway.policy.batch import InOrder
from headway.policy.chunk import SlackChunk
from headway.policy.predict import SlidingHistogram
from headway.policy.preempt import BestEffortFirst
from headway.policy.prioritize import ByDeadline
from headway.policy.scheduler import Parts


def parts(max_wait_s: float = 300.0) -> Parts:
    """Return the parts; *max_wait_s* bounds how long best effort may wait for its turn."""
    return Parts(
        predictor=SlidingHistogram(),
        feasibility=MooreHodgson(),
        prioritizer=ByDeadline(),
        chunker=SlackChunk(),
        gate=AllOf(StepGate(), CurveGate()),
        batcher=InOrder(),
        preemptor=BestEffortFirst(),
        max_wait_s=positive_s("max_wait_s", max_wait_s),
    )
