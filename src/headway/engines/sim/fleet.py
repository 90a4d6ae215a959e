"""Several servers behind a router, on one clock."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

from headway.engines.sim.routers import Router
from headway.engines.sim.run import SimRun
from headway.engines.sim.times import GapHistogram, GapSummary
from headway.engines.virtual import Call, Outcome
from headway.errors import UserError


@dataclass(slots=True)
class FleetResult:
    """What all servers together did; ``routed`` counts calls per server."""

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    summaries: dict[str, GapSummary] = field(default_factory=dict)
    histograms: dict[str, GapHistogram] = field(default_factory=dict)
    routed: list[int] = field(default_factory=list)
    num_steps: int = 0
    num_preemptions: dict[str, int] = field(default_factory=dict)

    def take(self, run: SimRun | FleetResult) -> None:
        """Add what one server, or another part of the fleet, did."""
        self.outcomes.update(run.outcomes)
        self.summaries.update(run.summaries)
        for name, histogram in run.histograms.items():
            self.histograms.setdefault(name, GapHistogram()).merge(histogram)
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

    def run(self, calls: Iterable[Call], processes: int = 1) -> FleetResult:
        """Serve *calls* to the end.

        A router that needs no state is asked first and the servers then run one after another,
        in up to *processes* processes (where the system can fork); the result is the same.
        """
        ordered = sorted(calls, key=lambda c: (c.arrived_at_s, c.request_id))
        servers = [self._build(index) for index in range(self._num_servers)]
        if self._router.needs_state:
            return self._run_together(servers, ordered)
        shares: list[list[Call]] = [[] for _ in servers]
        for call in ordered:
            shares[self._router.choose(call, servers)].append(call)
        return _run_apart(list(zip(servers, shares, strict=True)), processes)

    def _run_together(self, servers: Sequence[SimRun], calls: Sequence[Call]) -> FleetResult:
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


Share = tuple[SimRun, list[Call]]

_forked: list[Share] = []
"""What child processes inherit, so that servers need not be picklable."""


def _run_apart(shares: list[Share], processes: int) -> FleetResult:
    """Serve each server's own calls, in this process or in several."""
    result = FleetResult(routed=[len(calls) for _, calls in shares])
    if processes <= 1 or "fork" not in multiprocessing.get_all_start_methods():
        for server, calls in shares:
            server.run(calls)
            result.take(server)
        return result
    _forked[:] = shares
    groups = [range(first, len(shares), processes) for first in range(processes)]
    try:
        fork = multiprocessing.get_context("fork")
        with ProcessPoolExecutor(processes, mp_context=fork) as pool:
            for part in pool.map(_serve_group, groups):
                result.take(part)
    finally:
        _forked.clear()
    return result


def _serve_group(indexes: Sequence[int]) -> FleetResult:
    """Serve some servers' shares, in a child process."""
    result = FleetResult()
    for index in indexes:
        server, calls = _forked[index]
        server.run(calls)
        result.take(server)
    return result
