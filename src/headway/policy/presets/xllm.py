"""``xllm``: in the style of xLLM's mixed scheduler, urgency by remaining time.

After the source of jd-opensource/xllm (``scheduler/mix_scheduler.cpp``, ``priority_comparator``:
``urgency_density``): one queue of prompts and decodes, urgent ones first by weight per second,
then by remaining time; the batch is filled while a latency model says the step stays within
the least remaining time; whoever ranks lowest gives KV back. Differs: the step is predicted as
a whole, not as a sum of requests; the promise is per request where xLLM's weights are for TTFT
and TPOT apart; a prompt in progress is never evicted.
"""

from __future__ import annotations

from headway.policy.admit import AllFeasible, FreeBlocks
from headway.policy.chunk import FixedChunk
from headway.policy.parts import Parts
from headway.policy.predict import SlidingHistogram
from headway.policy.rivals.ranked import RankedStep
from headway.policy.rivals.urgency import LEAST_PARTIAL_TOKENS, Urgency


def parts() -> Parts:
    """Return the parts."""
    step = RankedStep(Urgency(), least_partial_tokens=LEAST_PARTIAL_TOKENS)
    return Parts(
        predictor=SlidingHistogram(),
        feasibility=AllFeasible(),
        prioritizer=step,
        chunker=FixedChunk(),
        gate=FreeBlocks(),
        batcher=step,
        preemptor=step,
        holder=step,
    )
