"""``slack``: what Headway did before lengths were weighed; the default's parts, and one quantile.

As ``headway`` (:mod:`headway.policy.decide`), but a request starts while the peak of the KV usage
curve, by one quantile of the output lengths, stays within the cache (Past-Future, arXiv
2507.10150). Kept to show what weighing is worth.
"""

from __future__ import annotations

from headway.kit.curve_gate import CurveGate
from headway.kit.ledger import KvLedger
from headway.kit.lengths import SlidingHistogram
from headway.kit.options import one_of, positive_s, share
from headway.kit.parts import Parts
from headway.kit.step_gate import AllOf, StepGate
from headway.policy.admit import MooreHodgson
from headway.policy.batch import InOrder
from headway.policy.chunk import SlackChunk
from headway.policy.preempt import BestEffortFirst
from headway.policy.prioritize import ByDeadline
from headway.policy.swap_choice import SWAPS


def parts(max_wait_s: float = 300.0, confidence: float = 0.5, swap: str = "recompute") -> Parts:
    """Earlier rules of the default policy, which reserves by one quantile of lengths.

    Args:
        max_wait_s: Bound on how long best effort may wait for its turn.
        confidence: The quantile of the output lengths to reserve by.
        swap: ``"cheaper"`` copies a victim's KV to the host where that takes fewer seconds than
            computing it again; ``"recompute"`` never does;
            ``"always"`` does where the host has room, to try it out.
    """
    ledger = KvLedger()
    return Parts(
        predictor=SlidingHistogram(share("confidence", confidence)),
        feasibility=MooreHodgson(),
        prioritizer=ByDeadline(),
        chunker=SlackChunk(),
        gate=AllOf(StepGate(), CurveGate(ledger)),
        batcher=InOrder(),
        preemptor=BestEffortFirst(),
        max_wait_s=positive_s("max_wait_s", max_wait_s),
        ledger=ledger,
        swap=SWAPS[one_of("swap", swap, SWAPS)](),
    )
