"""Who gets a request, by what servers say of themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest

from headway import registry
from headway.engines.sim.fleet import Fleet
from headway.engines.sim.routers import (
    MATCHED_SHARE,
    PRESSURE_GUARD,
    BestQuote,
    LeastPressure,
    LongestPrefix,
    RoundRobin,
)
from headway.engines.sim.run import SimRun
from headway.engines.sim.signals import Signals
from headway.engines.virtual import VirtualCall, VirtualEngine
from headway.latency.fixed import FixedModel
from headway.latency.laptop import LAPTOP
from headway.policy.quote import Quote

CALL = VirtualCall("r", 0.0, 100, 10)


@dataclass
class Shown:
    """A server as a router sees it."""

    num_unfinished: int = 0
    unfinished_prompt_tokens: int = 0
    kv_load_share: float = 0.0


@dataclass
class Said:
    """Signals that say what a test wants."""

    pressure: Sequence[float] = ()
    cached: Sequence[int] = ()
    quoted: Sequence[Quote] = ()
    work: Sequence[int] = ()
    asked: list[int] = field(default_factory=list)

    def compared(self, among: Sequence[int]) -> Sequence[int]:
        return among

    def drawn(self, among: Sequence[int]) -> Sequence[int]:
        return among

    def seen(self) -> list[Shown]:
        return [Shown(num) for num in self.work or [0] * 9]

    def pressures(self, among: Sequence[int]) -> list[float]:
        return [self.pressure[i] for i in among]

    def cached_tokens(self, call: VirtualCall, among: Sequence[int]) -> list[int]:
        self.asked.extend(among)
        return [self.cached[i] for i in among]

    def quotes(self, call: VirtualCall, among: Sequence[int]) -> list[Quote]:
        return [self.quoted[i] for i in among]


def test_turns_pass_over_servers_that_were_tried() -> None:
    """The next one that is left, wrapping round."""
    router = RoundRobin()
    sent = [
        router.choose(CALL, Said(), among)  # type: ignore[arg-type]
        for among in (range(3), [0, 2], range(3), [1, 2], [0, 1])
    ]
    assert sent == [0, 2, 0, 1, 0]


def test_least_pressure_then_least_work() -> None:
    """Equal pressures are told apart by unfinished work, equal work by the order of servers."""
    choose = LeastPressure().choose
    assert choose(CALL, Said([0.5, 0.2, 0.2], work=[0, 3, 1]), range(3)) == 2  # type: ignore[arg-type]
    assert choose(CALL, Said([0.5, 0.2, 0.2]), range(3)) == 1  # type: ignore[arg-type]
    assert choose(CALL, Said([0.5, 0.2, 0.2]), [0, 2]) == 2  # type: ignore[arg-type]


def test_the_longest_prefix_unless_its_server_is_much_busier() -> None:
    """Within the guard the cache counts, beyond it nobody asks."""
    near = Said([0.1, 0.1 + PRESSURE_GUARD / 2, 0.1], [0, 90, 60])
    assert LongestPrefix().choose(CALL, near, range(3)) == 1  # type: ignore[arg-type]
    far = Said([0.1, 0.11 + PRESSURE_GUARD, 0.1], [0, 90, 60])
    assert LongestPrefix().choose(CALL, far, range(3)) == 2  # type: ignore[arg-type]
    assert far.asked == [0, 2]
    common = Said([0.3, 0.2, 0.25], [int(100 * MATCHED_SHARE) - 1, 0, 0])
    assert LongestPrefix().choose(CALL, common, range(3)) == 1  # type: ignore[arg-type]
    alike = Said([0.3, 0.2, 0.25], [64, 64, 64])
    assert LongestPrefix().choose(CALL, alike, range(3)) == 1  # type: ignore[arg-type]


def test_a_yes_beats_any_no() -> None:
    """Of those that say yes the one with most slack; where all say no the least pressure."""
    quoted = [Quote(False, -1.0), Quote(True, 0.1), Quote(True, 0.4), Quote(False, 2.0)]
    said = Said([0.9, 0.1, 0.9, 0.2], quoted=quoted)
    choose = BestQuote().choose
    assert choose(CALL, said, range(4)) == 2  # type: ignore[arg-type]
    assert choose(CALL, said, [0, 1, 3]) == 1  # type: ignore[arg-type]
    assert choose(CALL, said, [0, 3]) == 3  # type: ignore[arg-type]


def server(index: int) -> SimRun:
    core = registry.build("headway", latency=FixedModel(LAPTOP.coefficients()))
    return SimRun(VirtualEngine(num_blocks=400), LAPTOP.predict_s, core)


def test_signals_are_as_old_as_the_last_sample() -> None:
    """What came since is not seen; the next sample sees it."""
    servers = [server(0), server(1)]
    signals = Signals(servers, 1.0, lets_time_pass=True)
    seen: list[list[int]] = []
    for at_s in (0.1, 0.9, 1.2, 1.9, 4.0):
        signals.now_s = at_s
        seen.append([one.num_unfinished for one in signals.seen()])
        servers[0].submit(VirtualCall(f"r{at_s}", at_s, 100, 2000))
    assert seen == [[0, 0], [0, 0], [2, 0], [2, 0], [4, 0]]


def test_with_old_signals_two_are_compared_and_all_are_used() -> None:
    """Between two samples requests do not all go where it was best."""
    burst = [VirtualCall(f"r{i:02d}", 0.2 + 0.001 * i, 50, 5) for i in range(80)]
    fresh, old = (
        Fleet(server, LeastPressure(), 4, signal_age_s=age_s).run(burst) for age_s in (0.0, 1.0)
    )
    assert min(old.routed) >= 8
    assert max(old.routed) <= 32
    assert sum(fresh.routed) == sum(old.routed) == 80


def test_a_server_with_half_the_speed_gets_fewer_by_pressure() -> None:
    """Pressure is seconds against promises, as each server has learned to know its own."""
    promise = {"slo_ttft_ms": 2000, "slo_tbt_ms": 500}

    def unequal(index: int) -> SimRun:
        core = registry.build("headway")
        engine = VirtualEngine(num_blocks=2000)
        return SimRun(engine, lambda shape: (1 + index) * LAPTOP.predict_s(shape), core)

    calls = [VirtualCall(f"r{i:03d}", 0.1 * i, 300, 20, promise) for i in range(300)]
    by_turns = Fleet(unequal, RoundRobin(), 2).run(calls)
    by_pressure = Fleet(unequal, LeastPressure(), 2).run(calls)
    assert by_turns.routed == [150, 150]
    assert by_pressure.routed[0] > 1.3 * by_pressure.routed[1]


def test_no_promise_is_infinite_slack_everywhere() -> None:
    """Then pressure decides, and work."""
    quoted = [Quote(True, math.inf)] * 3
    said = Said([0.5] * 3, quoted=quoted, work=[2, 1, 3])
    assert BestQuote().choose(CALL, said, range(3)) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize("age_s", [0.0, 0.5])
def test_calls_of_a_chain_go_where_its_blocks_are(age_s: float) -> None:
    """Each session stays on its server, though servers are equally busy."""

    def cached(index: int) -> SimRun:
        core = registry.build("headway", latency=FixedModel(LAPTOP.coefficients()))
        return SimRun(VirtualEngine(num_blocks=2000, prefix_caching=True), LAPTOP.predict_s, core)

    calls = [
        VirtualCall(f"s{k}-{i}", 6.0 * i + 0.01 * k, 16 * (20 + i) + 3, 3,
                    hash_ids=tuple(range(100 * k, 100 * k + 20 + i)), hash_tokens=16)
        for i in range(5) for k in range(6)
    ]  # fmt: skip
    places: dict[str, set[int]] = {}

    class Noting(LongestPrefix):
        def choose(self, call: VirtualCall, signals: Signals, among: Sequence[int]) -> int:
            chosen = super().choose(call, signals, among)
            places.setdefault(call.request_id[:2], set()).add(chosen)
            return chosen

    Fleet(cached, Noting(), 3, signal_age_s=age_s).run(calls)
    assert [len(servers) for servers in places.values()] == [1] * 6
    assert len(set.union(*places.values())) > 1
