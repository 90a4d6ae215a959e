"""Several servers behind a router."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from headway import registry
from headway.engines.sim.fleet import Dispatch, Fleet
from headway.engines.sim.routers import LeastKv, LeastWork, RoundRobin, Router
from headway.engines.sim.run import SimRun
from headway.engines.sim.signals import Signals
from headway.engines.virtual import Outcome, VirtualCall, VirtualEngine
from headway.errors import UserError
from headway.latency.fixed import FixedModel
from headway.latency.laptop import LAPTOP
from headway.policy.events import Arrived, Event


def server(index: int, num_blocks: int = 400) -> SimRun:
    policy = registry.build("fcfs", latency=FixedModel(LAPTOP.coefficients()))
    return SimRun(
        VirtualEngine(num_blocks=num_blocks), lambda s: 0.01 + 1e-4 * s.num_decodes, policy
    )


def calls(num: int = 60, gap_s: float = 0.03) -> list[VirtualCall]:
    return [
        VirtualCall(f"r{i:03d}", gap_s * i, 400 if i % 5 == 0 else 20, 30 if i % 3 else 90)
        for i in range(num)
    ]


class LookingRoundRobin(RoundRobin):
    """Turns that look at the servers at each arrival, though they need not."""

    def choose(self, call: VirtualCall, signals: Signals, among: Sequence[int]) -> int:
        signals.seen()
        return super().choose(call, signals, among)


def test_servers_apart_are_servers_together() -> None:
    """One after another or on one clock: the same instants."""
    apart = Fleet(server, RoundRobin(), 3).run(calls())
    together = Fleet(server, LookingRoundRobin(), 3).run(calls())
    assert apart.routed == together.routed == [20, 20, 20]
    assert apart.num_steps == together.num_steps
    for name, outcome in together.outcomes.items():
        assert list(apart.outcomes[name].emitted_at_s) == list(outcome.emitted_at_s)
    assert all(o.finish_reason == "stop" for o in apart.outcomes.values())


def test_least_work_sends_to_who_has_least() -> None:
    """While a long prompt is unfinished, short ones go elsewhere; ties go to the first."""
    sent: list[int] = []

    class Noting(LeastWork):
        def choose(self, call: VirtualCall, signals: Signals, among: Sequence[int]) -> int:
            sent.append(super().choose(call, signals, among))
            return sent[-1]

    work = [
        VirtualCall("big", 0.0, 1000, 50),
        VirtualCall("s1", 0.001, 10, 50),
        VirtualCall("s2", 0.002, 10, 50),
        VirtualCall("s3", 0.003, 10, 50),
        VirtualCall("later", 60.0, 10, 1),
    ]
    Fleet(server, Noting(output_tokens=100), 2).run(work)
    assert sent == [0, 1, 1, 1, 0]


def test_least_kv_counts_what_is_queued() -> None:
    """Requests sent at one instant do not all go to the server that was emptiest before."""
    burst = [VirtualCall(f"b{i}", 1.0, 160, 5) for i in range(9)]
    assert Fleet(server, LeastKv(), 3).run(burst).routed == [3, 3, 3]


def test_least_kv_knows_the_share_of_each() -> None:
    """A server with twice the KV gets about twice the work."""
    fleet = Fleet(lambda index: server(index, 1000 if index else 500), LeastKv(), 2)
    routed = fleet.run([VirtualCall(f"b{i:02d}", 0.0, 160, 200) for i in range(30)]).routed
    assert routed == [10, 20]


@pytest.mark.parametrize("router", [LeastWork(), LeastKv()])
def test_a_router_that_looks_beats_one_that_does_not(router: Router) -> None:
    """Where every third request is long, taking turns piles the long ones on one server."""
    load = [VirtualCall(f"r{i:03d}", 0.02 * i, 20, 5 if i % 3 else 300) for i in range(90)]
    turns = Fleet(server, RoundRobin(), 3).run(load)
    looks = Fleet(server, router, 3).run(load)
    last = {
        name: max(o.emitted_at_s[-1] for o in result.outcomes.values())
        for name, result in (("turns", turns), ("looks", looks))
    }
    assert last["looks"] < last["turns"]


def test_an_empty_fleet_is_a_mistake() -> None:
    """The sentence says how many servers were asked for."""
    with pytest.raises(UserError, match="at least one server, not 0"):
        Fleet(server, RoundRobin(), 0)


PROMISE = {"slo_ttft_ms": 500, "slo_tbt_ms": 500}


def refusing(index: int) -> SimRun:
    """A server that says no; the second is ten times as fast as the first."""
    core = registry.build("headway", overload="refuse", latency=FixedModel(LAPTOP.coefficients()))
    speed = 1.0 if index else 0.1
    return SimRun(
        VirtualEngine(num_blocks=400), lambda shape: LAPTOP.predict_s(shape) * 0.2 / speed, core
    )


def hard(num: int = 40, abort_after_s: float | None = None) -> list[VirtualCall]:
    return [
        VirtualCall(
            f"r{i:02d}",
            0.1 * i,
            300,
            5,
            PROMISE,
            abort_at_s=None if abort_after_s is None else 0.1 * i + abort_after_s,
        )
        for i in range(num)
    ]


class FirstServer(RoundRobin):
    """Everything goes to the first server that was not tried."""

    def choose(self, call: VirtualCall, signals: Signals, among: Sequence[int]) -> int:
        return among[0]


def test_what_one_server_refuses_another_serves() -> None:
    """At the refusal's instant, with the clock of the first arrival."""
    servers: list[SimRun] = []

    def noting(index: int) -> SimRun:
        servers.append(refusing(index))
        return servers[-1]

    alone = Fleet(refusing, FirstServer(), 2).run(hard())
    both = Fleet(noting, FirstServer(), 2, num_retries=1).run(hard())
    assert alone.routed == [40, 0]
    assert alone.elsewhere == ()
    assert len(both.elsewhere) == both.routed[1] == both.refused[0] > 5
    served = [name for name in both.elsewhere if both.outcomes[name].finish_reason == "stop"]
    assert len(served) > 5
    for name in both.elsewhere:
        first, last = servers[0].outcomes[name], both.outcomes[name]
        assert last is servers[1].outcomes[name]
        assert last.call.arrived_at_s == first.call.arrived_at_s
        assert first.ended_at_s is not None
        assert last.ended_at_s is not None
        assert last.ended_at_s >= first.ended_at_s


def test_the_core_is_told_which_try_is_the_last() -> None:
    """0 while another server will be asked, 1 at the last; the arrival is the first one's."""
    heard: list[tuple[str, int, float, float, float]] = []

    def noting(index: int) -> SimRun:
        run = refusing(index)
        observe = run.policy.observe

        def hear(event: Event) -> None:
            if isinstance(event, Arrived):
                row = (event.request_id, index, event.last_try, event.arrived_at_s, event.at_s)
                heard.append(row)
            observe(event)

        run.policy.observe = hear  # type: ignore[method-assign]
        return run

    result = Fleet(noting, FirstServer(), 2, num_retries=5).run(hard())
    assert {(index, last) for _, index, last, _, _ in heard} == {(0, 0.0), (1, 1.0)}
    first = {name: (came_s, at_s) for name, index, _, came_s, at_s in heard if index == 0}
    again = {name: (came_s, at_s) for name, index, _, came_s, at_s in heard if index == 1}
    assert set(again) == set(result.elsewhere)
    for name, (came_s, at_s) in again.items():
        assert came_s == first[name][0]
        assert at_s > first[name][1]


def test_nobody_asks_elsewhere_for_a_client_that_is_gone() -> None:
    """A client that hung up before it heard of the refusal is not tried again."""
    stays = Fleet(refusing, FirstServer(), 2, num_retries=1).run(hard())
    goes = Fleet(refusing, FirstServer(), 2, num_retries=1).run(hard(abort_after_s=0.02))
    assert stays.elsewhere
    assert goes.elsewhere == ()


class Scripted:
    """A server at which one thing happens, at a given instant."""

    def __init__(self, due_s: float, refuses: VirtualCall | None = None) -> None:
        self.due_s = due_s
        self.refused: list[str] = []
        self.outcomes: dict[str, Outcome] = {}
        self.got: list[tuple[str, float, bool]] = []
        self._refuses = refuses

    def advance(self, until_s: float) -> None:
        if self._refuses is not None:
            name = self._refuses.request_id
            self.refused.append(name)
            self.outcomes[name] = Outcome(self._refuses, ended_at_s=self.due_s)
        self.due_s = math.inf

    def submit(self, call: VirtualCall, at_s: float, last_try: float) -> None:
        self.got.append((call.request_id, at_s, last_try == 1.0))


def test_all_that_happens_at_an_instant_happens_before_a_refusal_is_sent_on() -> None:
    """The router sees the other server after its own step, which ends then too."""
    call = VirtualCall("r", 0.5, 10, 1)
    servers = [Scripted(2.0, refuses=call), Scripted(2.0), Scripted(2.5)]
    seen: list[list[float]] = []

    class Looking(FirstServer):
        def choose(self, call: VirtualCall, signals: Signals, among: Sequence[int]) -> int:
            seen.append([server.due_s for server in servers])
            return super().choose(call, signals, among)

    signals = Signals(servers, 0.0, lets_time_pass=False)  # type: ignore[arg-type]
    dispatch = Dispatch(servers, Looking(), signals, 2)  # type: ignore[arg-type]
    for server in servers:
        dispatch.watch(servers.index(server))
    dispatch.pass_time(3.0)
    assert seen == [[math.inf, math.inf, 2.5]]
    assert servers[1].got == [("r", 2.0, True)]
    assert dispatch.tried == {"r": [0, 1]}
