"""Several servers behind a router, on one clock.

A request that a server refuses may be tried at another one, at the instant at which its client
would have heard of it: a proxy on the way does that in no time worth counting. Its clock does not
restart: what it was promised runs from its arrival.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from headway.engines.sim.routers import Router
from headway.engines.sim.run import SimRun
from headway.engines.sim.signals import Signals
from headway.engines.virtual import Outcome, VirtualCall
from headway.errors import UserError


@dataclass(slots=True)
class FleetResult:
    """What all servers together did.

    Attributes:
        outcomes: By request, the last server's that had it.
        routed: Calls sent to each server, those refused elsewhere before included.
        refused: Calls that each server refused.
        elsewhere: Requests that were tried at more than one server.
    """

    outcomes: dict[str, Outcome] = field(default_factory=dict)
    routed: list[int] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    elsewhere: tuple[str, ...] = ()
    num_steps: int = 0
    num_preemptions: dict[str, int] = field(default_factory=dict)

    def take(self, run: SimRun) -> None:
        """Add what one server did."""
        self.outcomes.update(run.outcomes)
        self.refused.append(len(run.refused))
        self.num_steps += run.num_steps
        for kind, count in run.num_preemptions.items():
            self.num_preemptions[kind] = self.num_preemptions.get(kind, 0) + count


class Fleet:
    """Servers behind one router.

    Args:
        build: Returns the server of an index, new and independent of the others.
        router: Used for one run, since it may remember.
        num_retries: At how many other servers a refused request is tried, at most.
        signal_age_s: See :class:`~headway.engines.sim.signals.Signals`.
    """

    def __init__(
        self,
        build: Callable[[int], SimRun],
        router: Router,
        num_servers: int,
        *,
        num_retries: int = 0,
        signal_age_s: float = 0.0,
    ) -> None:
        if num_servers < 1:
            raise UserError(f"A fleet needs at least one server, not {num_servers!r}.")
        self._build = build
        self._router = router
        self._num_servers = num_servers
        self._num_tries = min(num_retries + 1, num_servers)
        self._signal_age_s = signal_age_s

    def run(self, calls: Iterable[VirtualCall]) -> FleetResult:
        """Serve *calls* to the end."""
        ordered = sorted(calls, key=lambda c: (c.arrived_at_s, c.request_id))
        servers = [self._build(index) for index in range(self._num_servers)]
        in_order = self._num_tries > 1
        signals = Signals(servers, self._signal_age_s, lets_time_pass=not in_order)
        dispatch = Dispatch(servers, self._router, signals, self._num_tries)
        for call in ordered:
            if in_order:
                dispatch.pass_time(call.arrived_at_s)
            dispatch.send(call, call.arrived_at_s)
        if in_order:
            dispatch.pass_time(math.inf)
        result = FleetResult(routed=dispatch.routed, elsewhere=tuple(dispatch.tried))
        for server in servers:
            server.advance(math.inf)
            result.take(server)
        for name, tried in dispatch.tried.items():
            result.outcomes[name] = servers[tried[-1]].outcomes[name]
        return result


class Dispatch:
    """Sends calls to servers, and those that were refused to further ones.

    Attributes:
        routed: Calls sent to each server.
        tried: The servers at which a request was tried, where they are several.
    """

    def __init__(
        self, servers: Sequence[SimRun], router: Router, signals: Signals, num_tries: int
    ) -> None:
        self.routed = [0] * len(servers)
        self.tried: dict[str, list[int]] = {}
        self._servers = servers
        self._router = router
        self._signals = signals
        self._num_tries = num_tries
        self._due: list[tuple[float, int]] = []
        self._num_refused = [0] * len(servers)
        self._refused: list[tuple[float, int, VirtualCall]] = []

    def send(self, call: VirtualCall, now_s: float, tried: Sequence[int] = ()) -> int:
        """Send *call* to a server that is not among those *tried*; return which."""
        servers = self._servers
        everybody = range(len(servers))
        among = [i for i in everybody if i not in tried] if tried else everybody
        self._signals.now_s = now_s
        chosen = self._router.choose(call, self._signals, among)
        is_last = len(tried) + 1 >= self._num_tries
        servers[chosen].submit(call, now_s, 1.0 if is_last else 0.0)
        self.routed[chosen] += 1
        if self._num_tries > 1:
            self.watch(chosen)
        return chosen

    def watch(self, index: int) -> None:
        """Note when something happens next at a server."""
        if self._servers[index].due_s < math.inf:
            heapq.heappush(self._due, (self._servers[index].due_s, index))

    def pass_time(self, until_s: float) -> None:
        """Let time pass at all servers, event by event, sending on what is refused.

        What happens at one instant happens at all servers before a refusal is sent on.
        """
        due = self._due
        while True:
            due_s = due[0][0] if due else math.inf
            if self._refused and due_s > self._refused[-1][0]:
                self._send_on()
            elif due_s <= until_s and due:
                self._advance(*heapq.heappop(due))
            else:
                return

    def _advance(self, due_s: float, index: int) -> None:
        """Let one thing happen at a server, unless this was planned before it was sent a call."""
        server = self._servers[index]
        if server.due_s != due_s:
            return
        if due_s > self._signals.next_sample_s:
            self._signals.sample_if_due(due_s)
        server.advance(due_s)
        self.watch(index)
        for name in server.refused[self._num_refused[index] :]:
            outcome = server.outcomes[name]
            self._refused.append((outcome.ended_at_s or 0.0, index, outcome.call))
        self._num_refused[index] = len(server.refused)

    def _send_on(self) -> None:
        """Try those refused at this instant elsewhere, unless nobody waits for them any more."""
        refused, self._refused = self._refused, []
        for now_s, index, call in refused:
            tried = self.tried.get(call.request_id, [index])
            is_gone = call.abort_at_s is not None and call.abort_at_s <= now_s
            if len(tried) < self._num_tries and not is_gone:
                self.tried[call.request_id] = [*tried, self.send(call, now_s, tried)]
