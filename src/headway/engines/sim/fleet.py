"""Several servers behind a router, on one clock."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from headway.engines.sim.routers import Router
from headway.engines.sim.run import SimRun
from headway.engines.virtual import Outcome, VirtualCall
from headway.errors import UserError


@dataclass(slots=True)
class FleetResult:
    """What all servers together did; ``routed`` counts calls per server."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    routed: list[int] = field(default_factory=list)
    num_steps: int = 0
    num_preemptions: dict[str, int] = field(default_factory=dict)

    def take(self, run: SimRun) -> None:
        """Add what one server did."""
        self.outcomes.update(run.outcomes)
        self.num_steps += run.num_steps
        for kind, count in run.num_preemptions.items():
            self.num_preemptions[kind] = self.num_preemptions.get(kind, 0) + count


class Fleet:
    """Servers built alike behind one router.

    Args:
        build: Returns the server of an index, new and independent of the others.
        router: Used for one run, since it may remember.
    """

    def __init__(self, build: Callable[[int], SimRun], router: Router, num_servers: int) -> None:
        if num_servers < 1:
            raise UserError(f"A fleet needs at least one server, not {num_servers!r}.")
        self._build = build
        self._router = router
        self._num_servers = num_servers

    def run(self, calls: Iterable[VirtualCall]) -> FleetResult:
        """Serve *calls* to the end.

        A router that needs no state is asked first and the servers then run one after another.
        """
        ordered = sorted(calls, key=lambda c: (c.arrived_at_s, c.request_id))
        servers = [self._build(index) for index in range(self._num_servers)]
        if self._router.needs_state:
            return self._run_together(servers, ordered)
        shares: list[list[VirtualCall]] = [[] for _ in servers]
        for call in ordered:
            shares[self._router.choose(call, servers)].append(call)
        result = FleetResult(routed=[len(share) for share in shares])
        for server, share in zip(servers, shares, strict=True):
            server.run(share)
            result.take(server)
        return result

    def _run_together(self, servers: Sequence[SimRun], calls: Sequence[VirtualCall]) -> FleetResult:
        """All servers stand at the instant of an arrival when the router looks at them."""
        result = FleetResult(routed=[0] * len(servers))
        for call in calls:
            at_s = call.arrived_at_s
            for server in servers:
                if server.next_event_s <= at_s:
                    server.advance(at_s)
            chosen = self._router.choose(call, servers)
            servers[chosen].submit(call)
            result.routed[chosen] += 1
        for server in servers:
            server.advance(float("inf"))
            result.take(server)
        return result
