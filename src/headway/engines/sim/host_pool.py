"""Swapped KV: a link of finite bandwidth and a host pool of finite size."""

from __future__ import annotations

from headway.engines.sim.job import Job
from headway.engines.virtual import HostLink, VirtualEngine


class HostPool:
    """KV of preempted requests in host memory, and the one link all copies queue for.

    As in Headway's driver for vLLM, whole blocks are copied, and a step begins once the copies
    asked for before it are done: victims' blocks are free for it, and whoever resumes in it has
    its KV back.
    """

    def __init__(self, engine: VirtualEngine) -> None:
        self._block_size = engine.block_size
        self.link = HostLink(engine.block_copy_s)
        self.num_free = engine.host_blocks

    def try_store(self, job: Job, now_s: float) -> bool:
        """Copy a victim's full blocks out; return whether there was room (and anything to keep).

        Tokens still in flight are left out: their KV does not exist yet.
        """
        num_blocks = (job.num_computed - job.num_in_flight) // self._block_size
        if not 0 < num_blocks <= self.num_free:
            return False
        self.num_free -= num_blocks
        job.host_tokens = num_blocks * self._block_size
        self.link.copy(num_blocks, now_s)
        return True

    def load(self, job: Job, num_cached_tokens: int, now_s: float) -> int:
        """Copy back what the prefix cache does not have; return the tokens whose KV is there."""
        held = job.host_tokens
        if held > num_cached_tokens:
            self.link.copy((held - num_cached_tokens) // self._block_size, now_s)
        self.drop(job)
        return max(held, num_cached_tokens)

    def drop(self, job: Job) -> None:
        """Forget a copy: it was loaded, or its request ended."""
        self.num_free += job.host_tokens // self._block_size
        job.host_tokens = 0
