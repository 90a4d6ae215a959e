"""``headway``: the default. The promise decides; admission is weighed, no length is guessed.

Joins earliest due date (Jackson 1955), the largest set of claims that can be on time (Moore
1968) and stall-free chunks from a learned step time (after Sarathi-Serve, arXiv 2403.02310, and
QoServe, arXiv 2503.22562). A request starts when the promises that waiting would cost outweigh
those that running out of KV would (:mod:`headway.policy.weigh`). Of CacheOPT's components, in our
own forms: lengths are survival functions (C1), admission looks at everybody's future use at once
(C2), and a victim is copied to the host where that is faster (C5). KV found some steps ahead (C3)
and victims chosen as a set (C4) cost more than they brought and are not here
(``experiments/LOG.md``).

With a *confidence*, admission goes by the peak of one quantile's usage curve instead
(Past-Future, arXiv 2507.10150). ``slack`` is that with the median, and never swaps.
"""

from __future__ import annotations

from typing import Any

from headway.policy.admit import AllOf, CurveGate, Gate, MooreHodgson, StepGate
from headway.policy.batch import InOrder
from headway.policy.chunk import SlackChunk
from headway.policy.kv.forecast import Lifetimes
from headway.policy.predict import Predictor, SlidingHistogram
from headway.policy.preempt import BestEffortFirst
from headway.policy.presets.options import one_of, positive_s, share
from headway.policy.prioritize import ByDeadline
from headway.policy.scheduler import Parts
from headway.policy.swap_choice import AlwaysRecompute, Cheaper, SwapChoice
from headway.policy.weigh import Lengths, Weighed


def parts(
    max_wait_s: float = 300.0,
    confidence: float | None = None,
    swap: str = "cheaper",
) -> Parts:
    """Return the parts.

    Args:
        max_wait_s: Bound on how long best effort may wait for its turn.
        confidence: A fixed quantile of the output lengths to reserve by, for comparison; by
            default what each error costs decides.
        swap: ``"cheaper"`` copies a victim's KV to the host where that takes fewer seconds than
            computing it again; ``"recompute"`` never does.

    Raises:
        UserError: An option is not what it must be.
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
        swap=_swap(swap),
    )


def _swap(name: Any) -> SwapChoice:
    known: dict[str, type[SwapChoice]] = {"cheaper": Cheaper, "recompute": AlwaysRecompute}
    return known[one_of("swap", name, known)]()
