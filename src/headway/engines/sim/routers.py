"""Who of several servers gets a request; one short rule each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from headway.engines.sim.run import SimRun
from headway.engines.virtual import VirtualCall


class Router(Protocol):
    """Chooses a server for each request, knowing what a gateway could know.

    Attributes:
        needs_state: Whether the choice depends on the servers. Where it does not, they can be
            simulated one after another.
    """

    needs_state: bool

    def choose(self, call: VirtualCall, servers: Sequence[SimRun]) -> int:
        """Return the index of the server that gets *call*, which arrives now."""


class RoundRobin(Router):
    """One after another."""

    needs_state = False

    def __init__(self) -> None:
        self._next = 0

    def choose(self, call: VirtualCall, servers: Sequence[SimRun]) -> int:
        """Return the next index."""
        chosen = self._next % len(servers)
        self._next = chosen + 1
        return chosen


class LeastWork(Router):
    """The server with the least work unfinished: prompts, and a guess for each output.

    Args:
        output_tokens: What an unfinished request counts beside its prompt, since nobody
            knows its output's length. Unfinished prompts count whole, as a gateway sees them.
    """

    needs_state = True

    def __init__(self, output_tokens: int = 256) -> None:
        self._output_tokens = output_tokens

    def choose(self, call: VirtualCall, servers: Sequence[SimRun]) -> int:
        """Return the first of the least loaded."""
        guess = self._output_tokens
        loads = [s.unfinished_prompt_tokens + guess * s.num_unfinished for s in servers]
        return loads.index(min(loads))


class LeastKv(Router):
    """The server with the most KV to spare, what queued prompts will take counted as taken."""

    needs_state = True

    def choose(self, call: VirtualCall, servers: Sequence[SimRun]) -> int:
        """Return the first of those with the smallest share of their KV spoken for."""
        loads = [s.kv_load_blocks / s.machine.pool.num_total for s in servers]
        return loads.index(min(loads))
