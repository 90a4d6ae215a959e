"""``orca``: iteration-level scheduling with the worst case reserved.

ORCA (Yu et al., OSDI 2022, §3.2, §4.2): first come, first served; a request starts when the
slots of *everybody's* prompt and ``max_tokens`` fit, so nobody is ever evicted; its prompt is
computed in one iteration beside the others' tokens. Differs: slots are paged blocks; a prompt
longer than an engine's step is cut; a request whose worst case exceeds the whole cache runs
alone instead of not at all.
"""

from __future__ import annotations

from headway.policy.admit import AllFeasible
from headway.policy.batch import InOrder
from headway.policy.parts import Parts
from headway.policy.predict import MaxTokens
from headway.policy.preempt import Youngest
from headway.policy.prioritize import ByArrival
from headway.policy.rivals.reserve import Reserved, WholePrompts


def parts() -> Parts:
    """Return the parts."""
    return Parts(
        predictor=MaxTokens(),
        feasibility=AllFeasible(),
        prioritizer=ByArrival(),
        chunker=WholePrompts(),
        gate=Reserved(),
        batcher=InOrder(may_pass=0),
        preemptor=Youngest(),
        heeds_promises=False,
    )
