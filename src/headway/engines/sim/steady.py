"""The common case at a constant price: everybody decodes, and nobody comes or goes.

While the running set stays, a step changes nothing but one token each. The jobs' own counters
lag behind until something else happens (:meth:`Steady.catch_up`), so such a step costs the
engine the same for eight requests as for a thousand.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

from headway.engines.sim.job import Job
from headway.latency.model import StepShape
from headway.policy.plan import StepPlan
from headway.units import blocks_for


def is_plain(plan: StepPlan) -> bool:
    """Return whether a plan asks for nothing but one token of each decode."""
    return not (plan.chunks or plan.hold or plan.preempt or plan.refuse or plan.reject or plan.cap)


class Steady:
    """Steps of an unchanged set of decodes in a synchronous engine without prefix cache.

    Attributes:
        tokens: One token for each, shared by all events of these steps: never written to.
        ends_s: Ends of the steps the jobs do not know of yet.
    """

    def __init__(self, jobs: Sequence[Job], block_size: int) -> None:
        self.jobs = tuple(jobs)
        self.tokens = dict.fromkeys((job.request_id for job in jobs), 1)
        self.ends_s = array("d")
        self._block_size = block_size
        self._num_begun = 0
        self._context = sum(job.num_computed for job in jobs)
        # The step in which somebody completes is left to the engine's own rules.
        self._num_steps = min(job.stop_after - job.num_output for job in jobs) - 1
        # Who has filled its blocks in how many steps, modulo the block size.
        self._growth = [0] * block_size
        for job in jobs:
            self._growth[-job.num_computed % block_size] += 1

    @classmethod
    def of(cls, jobs: Sequence[Job], block_size: int) -> Steady | None:
        """Return steady steps of *jobs*, or ``None`` when one of them does not decode."""
        if not jobs or not all(job.emits for job in jobs):
            return None
        return cls(jobs, block_size)

    def num_new_blocks(self) -> int:
        """Return the blocks the next step takes."""
        return self._growth[self._num_begun % self._block_size]

    def goes_on(self, plan: StepPlan, num_free_blocks: int, most_tokens: int) -> bool:
        """Return whether one more such step is what the engine would do."""
        return (
            self._num_begun < self._num_steps
            and len(self.jobs) <= min(plan.token_budget, most_tokens)
            and self.num_new_blocks() <= num_free_blocks
        )

    def begin(self) -> StepShape:
        """Begin one more step; return its shape."""
        shape = StepShape(0, 0, len(self.jobs), self._context)
        self._context += len(self.jobs)
        self._num_begun += 1
        return shape

    def catch_up(self) -> None:
        """Tell the jobs what happened; the last step begun must have ended."""
        count, size = len(self.ends_s), self._block_size
        for job in self.jobs:
            job.num_computed += count
            job.num_output += count
            job.num_blocks = blocks_for(job.num_computed, size)
            job.times.extend(self.ends_s)
