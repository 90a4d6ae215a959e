"""Several servers behind a router."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from headway import registry
from headway.engines.sim.fleet import Fleet
from headway.engines.sim.routers import LeastKv, LeastWork, RoundRobin, Router
from headway.engines.sim.run import SimRun
from headway.engines.sim.signals import Signals
from headway.engines.virtual import VirtualCall, VirtualEngine
from headway.errors import UserError
from headway.latency.fixed import FixedModel
from headway.latency.laptop import LAPTOP


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
