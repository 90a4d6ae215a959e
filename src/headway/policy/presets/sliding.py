"""``sliding``: chunks planned two steps ahead, in the style of SlidingServe.

SlidingServe (arXiv 2606.05933): SlidingChunker weighs this iteration's chunk together with the
next one's; a lexicographic key (protected, urgent, remaining work) orders prompts; a dynamic
programme picks whom to protect when first tokens would be late. Only its abstract and reviews
were available to us: the objective (prompt tokens a second over the two steps), the search
(sixteen shares of the greedy chunk, where the paper searches ternarily) and the bounds of
urgency are our reading.
"""

from __future__ import annotations

from headway.policy.admit import FreeBlocks
from headway.policy.batch import InOrder
from headway.policy.parts import Parts
from headway.policy.predict import SlidingHistogram
from headway.policy.preempt import Youngest
from headway.policy.rivals.lookahead import Knapsack, Protected, TwoSteps
from headway.policy.rivals.ranked import EveryoneDecodes


def parts() -> Parts:
    """Return the parts."""
    return Parts(
        predictor=SlidingHistogram(),
        feasibility=Knapsack(),
        prioritizer=Protected(),
        chunker=TwoSteps(),
        gate=FreeBlocks(),
        batcher=InOrder(),
        preemptor=Youngest(),
        holder=EveryoneDecodes(),
    )
