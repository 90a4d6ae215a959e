"""``headway``: the default. What ``slack`` does, with admission weighed instead of guessed.

Deadline order, the largest set of claims that can be on time, steps as long as is worth their
risk (see ``slack``); a request starts when the promises that waiting would cost outweigh those
that running out of KV would (:mod:`headway.policy.weigh`). Of CacheOPT's components, in our own
forms: lengths are survival functions (C1), admission looks at everybody's future use at once
(C2), and a victim is copied to the host where that is faster (C5). Off unless asked for, since
they cost more than they bring: KV found some steps ahead with a measured reserve (C3), and the
cheapest set of victims (C4).
"""

from __future__ import annotations

from typing import Any

from headway.kit.options import one_of, positive_s, positive_tokens, share
from headway.kit.parts import Funder
from headway.papers.cacheopt.c3_ahead import Proactive
from headway.papers.cacheopt.c3_reserve import MeasuredReserve, NoReserve, Reserve
from headway.papers.cacheopt.critical import Critical
from headway.policy.admit import AllOf, CurveGate, Gate, MooreHodgson, StepGate
from headway.policy.batch import InOrder
from headway.policy.chunk import SlackChunk
from headway.policy.kv.forecast import Lifetimes
from headway.policy.predict import Predictor, SlidingHistogram
from headway.policy.preempt import BestEffortFirst, Preemptor
from headway.policy.prioritize import ByDeadline
from headway.policy.scheduler import Parts
from headway.policy.swap_choice import AlwaysRecompute, Cheaper, SwapChoice
from headway.policy.victims.cheapest import CheapestSet
from headway.policy.weigh import Lengths, Weighed


def parts(
    max_wait_s: float = 300.0,
    confidence: float | None = None,
    look_ahead_steps: int = 1,
    reserve: str = "none",
    victims: str = "best-effort-first",
    swap: str = "cheaper",
) -> Parts:
    """Return the parts.

    Args:
        max_wait_s: Bound on how long best effort may wait for its turn.
        confidence: A fixed quantile of the output lengths to reserve by, for comparison; by
            default what each error costs decides.
        look_ahead_steps: Steps for which KV is found in advance, the next one included.
        reserve: ``"measured"`` keeps what recent predictions were short of, ``"none"`` nothing.
        victims: ``"cheapest"`` chooses the set that costs the fewest promises,
            ``"best-effort-first"`` goes by standing and age.
        swap: ``"cheaper"`` copies a victim's KV to the host where that takes fewer seconds than
            computing it again; ``"recompute"`` never does.

    Raises:
        UserError: An option is not what it must be.
    """
    chunker = SlackChunk()
    critical = Critical()
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
        preemptor=_victims(victims, critical),
        max_wait_s=positive_s("max_wait_s", max_wait_s),
        funder=_funder(look_ahead_steps, reserve, critical),
        swap=_swap(swap),
    )


def _funder(look_ahead_steps: Any, reserve: Any, critical: Critical) -> Funder | None:
    kept: dict[str, type[Reserve]] = {"measured": MeasuredReserve, "none": NoReserve}
    steps = positive_tokens("look_ahead_steps", look_ahead_steps)
    kind = kept[one_of("reserve", reserve, kept)]
    if steps == 1 and kind is NoReserve:
        return None  # The scheduler's own rule: blocks for the next step.
    return Proactive(kind(), critical, steps)


def _victims(name: Any, critical: Critical) -> Preemptor:
    if one_of("victims", name, ("cheapest", "best-effort-first")) == "cheapest":
        return CheapestSet(critical)
    return BestEffortFirst()


def _swap(name: Any) -> SwapChoice:
    known: dict[str, type[SwapChoice]] = {"cheaper": Cheaper, "recompute": AlwaysRecompute}
    return known[one_of("swap", name, known)]()
