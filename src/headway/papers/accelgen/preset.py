"""``accelgen``: SLO-bounded chunks, iteration-level priorities, compute and KV packed together.

AccelGen (arXiv 2503.13737). The full text was not available to us. Reported by third parties
that cite its sections: the chunk's formula and the exclusive rule (A1), ascending time left
and the urgent first (A2), the nearest demand within gamma of the head (A3). Ours: how the
saturating size is found, T_pf beside the decodes of now, what happens to a promise that is
broken (it queues behind those alive), normalisation by capacity, recompute for the preempted,
no preemption probability in the offline time left. ``docs/accelgen.md`` has the rest.
"""

from __future__ import annotations

from typing import Any

from headway.errors import UserError
from headway.kit.options import positive_s
from headway.kit.tightest import TightestRecent
from headway.papers.accelgen.a1_chunk import Budget, DynamicChunk, EngineStep
from headway.papers.accelgen.a2_order import ByArrivalTime, ByTimeLeft, Order
from headway.papers.accelgen.a3_packing import PACKERS
from headway.papers.accelgen.step import AccelGen


def planner(
    chunking: bool = True,
    ordering: bool = True,
    packing: bool = True,
    gamma_s: float = 0.75,
    packer: str = "nearest",
    with_context: bool = True,
    late_last: bool = True,
    careful: bool = True,
    exact_chunk: bool = False,
    max_wait_s: float = 300.0,
) -> AccelGen:
    """The paper's A1, A2 and A3; each can be switched off, as in its ablations.

    Args:
        chunking: A1. Without it a step has the engine's budget and prompts are not cut.
        ordering: A2. Without it decodes always run and prompts are served by arrival.
        packing: A3. Without it requests that are not urgent are served in order.
        gamma_s: How far behind the head of the queue a candidate for packing may be.
        packer: ``nearest`` (the paper's), ``aligned`` (dot product) or ``exact``.
        with_context: Whether T_pf counts the decodes and the prefix of now.
        late_last: Whether prompts with a broken promise queue behind those alive.
        careful: Whether streams are preempted for the urgent only if they can be back in time.
        exact_chunk: Whether the step's own predicted time bounds it, in place of A1's line
            through the origin; not the paper's.
        max_wait_s: Bounds how long anyone may wait for a turn.
    """
    if not isinstance(packer, str) or packer not in PACKERS:
        raise UserError(f"Option packer must be one of {', '.join(PACKERS)}, not {packer!r}.")
    positive_s("gamma_s", gamma_s)
    is_on = _switches(
        chunking=chunking,
        ordering=ordering,
        packing=packing,
        with_context=with_context,
        late_last=late_last,
        careful=careful,
        exact_chunk=exact_chunk,
    )
    budget: Budget = EngineStep()
    tightest = TightestRecent()
    if is_on["chunking"]:
        budget = DynamicChunk(tightest, is_on["with_context"], is_on["exact_chunk"])
    order: Order = ByTimeLeft(is_on["late_last"]) if is_on["ordering"] else ByArrivalTime()
    chosen = PACKERS[packer]() if is_on["packing"] else None
    wait_s = positive_s("max_wait_s", max_wait_s)
    return AccelGen(order, budget, chosen, gamma_s, is_on["careful"], wait_s, tightest)


def _switches(**given: Any) -> dict[str, bool]:
    """Return options that are on or off.

    Raises:
        UserError: One is something else.
    """
    for name, value in given.items():
        if not isinstance(value, bool):
            raise UserError(f"Option {name} must be true or false, not {value!r}.")
    return given
