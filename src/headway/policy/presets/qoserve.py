"""``qoserve``: the largest chunk under the least slack, hybrid priority, eager relegation.

QoServe, first published as Niyama (arXiv 2503.22562 §3): each decode's tokens are due on a
schedule, so early tokens earn slack; the chunk is the largest whose step ends within the least
slack; prompts are ordered by due time + alpha * remaining prompt; whoever would be late is
relegated behind all others. Differs: the step time is Headway's online model at its 95 %
quantile, not a random forest; alpha defaults to what a prompt token costs now; relegation does
not tell tiers apart; a decode whose promise is already broken by its gaps is still paced.
"""

from __future__ import annotations

from headway.policy.admit import FreeBlocks
from headway.policy.batch import InOrder
from headway.policy.parts import Parts
from headway.policy.predict import SlidingHistogram
from headway.policy.preempt import Youngest
from headway.policy.presets.options import positive_s
from headway.policy.rivals.pace import EagerRelegation, Hybrid, PaceChunk
from headway.policy.rivals.ranked import EveryoneDecodes


def parts(alpha_s: float | None = None) -> Parts:
    """Return the parts; *alpha_s* is what a remaining prompt token adds to the due time."""
    if alpha_s is not None:
        positive_s("alpha_s", alpha_s)
    priority = Hybrid(alpha_s)
    return Parts(
        predictor=SlidingHistogram(),
        feasibility=EagerRelegation(priority),
        prioritizer=priority,
        chunker=PaceChunk(),
        gate=FreeBlocks(),
        batcher=InOrder(),
        preemptor=Youngest(),
        holder=EveryoneDecodes(),
    )
