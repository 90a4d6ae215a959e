"""``fastserve``: skip-join multi-level feedback queue, preemption at every iteration.

FastServe (arXiv 2305.05920 §4): newcomers join the level whose quantum holds their first
iteration; attained service demotes, starving promotes; every iteration computes the highest
levels first. Differs: who is outranked keeps its KV and sits out while there is room; its KV is
copied to the host when a higher level needs it, not ahead of that (§4.2), and computed again
where the host has no room; the number of levels (6), the ratio of the quanta (2) and the
starving time (300 s, as the longest wait of ours) are ours.
"""

from __future__ import annotations

from headway.policy.admit import AllFeasible, FreeBlocks
from headway.policy.chunk import FixedChunk
from headway.policy.parts import Parts
from headway.policy.predict import MaxTokens
from headway.policy.presets.options import positive_count, positive_s
from headway.policy.rivals.mlfq import SkipJoin
from headway.policy.rivals.ranked import RankedStep
from headway.policy.swap_choice import SweetSpot


def parts(
    num_levels: int = 6,
    quantum_s: float | None = None,
    starve_s: float = 300.0,
    max_batch: int | None = None,
) -> Parts:
    """Return the parts.

    Args:
        quantum_s: Of the first level; ``None`` takes the predicted time of one decode alone.
        starve_s: How long a request may go without computing before it is promoted.
        max_batch: Requests computed in one step; ``None`` leaves it to the engine.
    """
    positive_count("num_levels", num_levels)
    if quantum_s is not None:
        positive_s("quantum_s", quantum_s)
    if max_batch is not None:
        positive_count("max_batch", max_batch)
    queue = SkipJoin(num_levels, quantum_s, starve_s=positive_s("starve_s", starve_s))
    step = RankedStep(queue, max_batch)
    return Parts(
        predictor=MaxTokens(),
        feasibility=AllFeasible(),
        prioritizer=step,
        chunker=FixedChunk(),
        gate=FreeBlocks(),
        batcher=step,
        preemptor=step,
        heeds_promises=False,
        holder=step,
        swap=SweetSpot(0),  # Whatever can be copied.
    )
