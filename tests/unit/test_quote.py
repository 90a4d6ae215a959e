"""Being asked: what is said of newcomers and of the load, and that asking changes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import astuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway import registry
from headway.engines.journal import Journal, Reader
from headway.engines.sim.run import SimRun
from headway.engines.virtual import VirtualCall, VirtualEngine
from headway.latency.fixed import FixedModel
from headway.latency.laptop import LAPTOP
from headway.latency.model import StepShape
from headway.policy.live_requests import LiveRequests
from headway.policy.log import encode_lines, rows_of
from headway.policy.quote import NEWCOMER, ServerLoad, kv_ahead
from headway.policy.scheduler import Scheduler
from headway.request import Request
from headway.slo import NO_PROMISE, Slo

CHAT = Slo(ttft_s=1.0, tbt_s=0.1, class_name="chat")
WHOLE = StepShape().with_chunk(2000, 0)
ASKS = {"slo_ttft_ms": 1000, "slo_tbt_ms": 100}


def core() -> Scheduler:
    return registry.build("headway", latency=FixedModel(LAPTOP.coefficients()))


def served(policy: Scheduler | Journal, num_blocks: int = 400) -> SimRun:
    return SimRun(
        VirtualEngine(num_blocks=num_blocks), FixedModel(LAPTOP.coefficients()).predict_s, policy
    )


def calls(
    num: int, gap_s: float = 0.05, prompt: int = 200, name: str = "r"
) -> Iterator[VirtualCall]:
    for i in range(num):
        yield VirtualCall(
            f"{name}{i:03d}", gap_s * i, prompt + 40 * (i % 5), 20 + i % 30, xargs=ASKS
        )


class Lines(Reader):
    """Keeps what is heard and decided as the bytes of a recording."""

    def __init__(self) -> None:
        self.lines = b""

    def read(self, entries: object) -> None:
        for entry in entries:  # type: ignore[attr-defined]
            self.lines += encode_lines(rows_of(entry))


def recorded(ask: Callable[[Scheduler, float], object]) -> bytes:
    """Return the recording of one load, *ask* called before each arrival."""
    scheduler, lines = core(), Lines()
    journal = Journal(scheduler, lines)
    run = served(journal)
    for call in calls(60):
        run.advance(call.arrived_at_s)
        ask(scheduler, run.now_s)
        run.submit(call)
    run.advance(math.inf)
    journal.close()
    return lines.lines


def test_asking_leaves_every_plan_as_it_was() -> None:
    """To the byte, however often, and whatever is asked."""

    def ask(scheduler: Scheduler, now_s: float) -> None:
        for num_tokens, slo in ((10, CHAT), (5000, CHAT), (300, NO_PROMISE)):
            scheduler.quote(num_tokens, 0, slo, now_s)
            scheduler.load(now_s)
        scheduler.validate()

    assert recorded(ask) == recorded(lambda scheduler, now_s: None)


def test_an_idle_server_is_free_and_promises_what_it_can() -> None:
    """Before the first plan and after the last request."""
    policy = core()
    run = served(policy)
    for name in ("a", "b"):
        assert policy.load(run.now_s) == ServerLoad(0.0, 0.0, 0.0)
        quote = policy.quote(100, 0, CHAT, run.now_s)
        assert quote.feasible
        assert 0.5 < quote.slack_s <= 1.0
        run.run(calls(5, name=name))
    assert not policy.quote(100, 0, Slo(ttft_s=0.001), run.now_s).feasible


def test_the_fuller_a_server_the_less_it_promises() -> None:
    """Waiting prompts take slack, raise the pressure, and are seconds of backlog."""
    slacks, pressures, backlogs = [], [], []
    for num in (1, 4, 16, 64):
        policy = core()
        run = served(policy)
        for call in calls(num, gap_s=0.0):
            run.submit(call)
        run.advance(0.01)
        load, quote = policy.load(0.01), policy.quote(200, 0, CHAT, 0.01)
        assert quote.feasible == (quote.slack_s >= 0.0)
        slacks.append(quote.slack_s)
        pressures.append(load.pressure)
        backlogs.append(load.prefill_backlog_s)
    assert slacks == sorted(slacks, reverse=True)
    assert slacks[-1] < 0.0 < slacks[0]
    assert pressures == sorted(pressures)
    assert pressures[-1] > 1.0 > pressures[0] > 0.0
    assert backlogs == sorted(backlogs)
    assert backlogs[-1] > 0.5


def test_a_cached_prompt_is_promised_what_a_whole_one_is_not() -> None:
    """Only what must be computed counts."""
    policy = core()
    served(policy).run(calls(5))
    slow = Slo(ttft_s=policy.known.latency.predict_s(WHOLE) / 4)
    assert not policy.quote(2000, 0, slow, 10.0).feasible
    assert policy.quote(2000, 1990, slow, 10.0).feasible


def test_who_asks_for_no_promise_is_told_yes() -> None:
    """There is nothing to break."""
    assert core().quote(100, 0, NO_PROMISE, 0.0).slack_s == math.inf


def test_kv_that_is_spoken_for_is_pressure() -> None:
    """The same load on a cache that holds it and on one that runs out."""
    found = {}
    for num_blocks in (400, 40):
        policy = core()
        run = served(policy, num_blocks)
        for call in calls(3, gap_s=0.0, prompt=150):
            run.submit(call)
        run.advance(1.0)
        load, quote = policy.load(run.now_s), policy.quote(300, 0, CHAT, run.now_s)
        found[num_blocks] = load.kv_share, load.pressure, quote.slack_s
    (share, pressure, slack_s), (tight_share, tight_pressure, tight_slack_s) = found.values()
    assert share < 0.5 < tight_share
    assert pressure < 0.8 < tight_pressure
    assert tight_slack_s < slack_s


@pytest.mark.parametrize("num_tokens", [1, 40])
@pytest.mark.parametrize("asks", [ASKS, {}, {"slo_ttft_ms": 1000, "slo_tbt_ms": 21}])
def test_a_step_without_room_for_prompts_is_a_load_like_any_other(
    asks: dict[str, int], num_tokens: int
) -> None:
    """As many streams as a step has tokens, or gaps that leave no time for a prompt."""
    policy = core()
    engine = VirtualEngine(num_blocks=400, max_num_batched_tokens=num_tokens)
    run = SimRun(engine, FixedModel(LAPTOP.coefficients()).predict_s, policy)
    for i in range(90):
        run.submit(VirtualCall(f"r{i:03d}", 0.01 * i, 3, 400, xargs=asks))
    for at_s in range(1, 12):
        run.advance(float(at_s))
        load = policy.load(run.now_s)
        assert all(0.0 <= value < math.inf for value in astuple(load))
        assert not math.isnan(policy.quote(5, 0, CHAT, run.now_s).slack_s)


@given(st.lists(st.tuples(st.integers(1, 300), st.integers(1, 40)), min_size=1, max_size=12))
def test_the_fullest_instant_is_that_of_a_walk_step_by_step(
    sizes: list[tuple[int, int]],
) -> None:
    """The slow twin lets every stream gain a token a step until it ends."""
    live = LiveRequests()
    for index, (num_tokens, left) in enumerate(sizes):
        one = Request(f"{NEWCOMER}{index}", CHAT, 0.0, num_tokens, 100)
        one.predicted_output_tokens = left
        one.due_at_s = 1.0
        live.arrive(one)
    walked = max(
        sum(num_tokens + step for num_tokens, left in sizes if left >= step)
        for step in range(1, 41)
    )
    assert max(held for _, held in kv_ahead(live, live.claims)) == walked
