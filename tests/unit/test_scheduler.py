"""The core alone: what it concludes from events, what it plans, what it costs."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from types import FunctionType, ModuleType
from typing import Any

import pytest

from headway import registry
from headway.errors import InvariantError
from headway.policy.events import Arrived, Finished, StepDone, StepScheduled
from headway.policy.inputs import OVERDUE_SHARE
from headway.policy.plan import StepPlan
from headway.policy.scheduler import Scheduler
from headway.policy.view import EngineView
from headway.request import Standing, State
from headway.slo import NO_PROMISE, Slo

CHAT = Slo(ttft_s=1.0, tbt_s=0.1, class_name="chat")
VIEW = EngineView(1000, 1000, 16, 64, 2048)

LAST = Slo(share=0.0)
"""Asks for no promise, where the operator has such requests served last."""


def arrive(
    core: Scheduler, name: str, slo: Slo = CHAT, at_s: float = 0.0, prompt: int = 50
) -> None:
    core.observe(Arrived(at_s, name, at_s, prompt, 100, slo))


def start(core: Scheduler, name: str, at_s: float, took_s: float = 0.02) -> None:
    """Admit with the whole prompt and emit the first token."""
    prompt = core.live.requests[name].num_tokens
    core.observe(StepScheduled(at_s, {name: prompt}, {name: 0}))
    core.observe(StepDone(at_s + took_s, {name: 1}))


def decode(core: Scheduler, name: str, at_s: float, took_s: float) -> None:
    core.observe(StepScheduled(at_s, {name: 1}))
    core.observe(StepDone(at_s + took_s, {name: 1}))


def test_a_life() -> None:
    """From arrival to the end: states, counts and an empty table afterwards."""
    core = registry.build("slack")
    arrive(core, "r")
    assert core.plan(VIEW, 0.0).chunks[0].request_id == "r"
    request = core.live.requests["r"]
    assert request.state is State.WAITING, "a plan changes nothing: the engine's word does"
    start(core, "r", 0.0)
    assert request.state is State.RUNNING
    assert request.num_output_tokens == 1
    assert request.first_token_at_s == pytest.approx(0.02)
    decode(core, "r", 0.02, 0.02)
    core.validate()
    core.observe(Finished(0.04, "r", "stopped"))
    assert request.state is State.FINISHED
    assert not core.live.requests
    core.validate()


def test_chunks_add_up() -> None:
    """A prompt computed in pieces decodes only when its last piece was scheduled."""
    core = registry.build("slack")
    arrive(core, "r", prompt=100)
    core.observe(StepScheduled(0.0, {"r": 60}, {"r": 0}))
    core.observe(StepDone(0.1, {}))
    assert "r" in core.live.prefilling
    assert core.plan(VIEW, 0.1).chunks[0].num_tokens == 40
    core.observe(StepScheduled(0.1, {"r": 40}))
    assert "r" in core.live.decoding
    core.validate()


def test_cached_tokens_are_not_computed() -> None:
    """What a prefix cache held counts as computed from the start."""
    core = registry.build("slack")
    arrive(core, "r", prompt=100)
    core.observe(StepScheduled(0.0, {"r": 20}, {"r": 64}))
    assert core.live.requests["r"].num_computed_tokens == 84
    core.observe(StepDone(0.1, {}))
    assert core.plan(VIEW, 0.1).chunks[0].num_tokens == 16


def test_a_preempted_request_starts_again() -> None:
    """Its KV is gone, its emitted tokens are part of what must be computed again."""
    core = registry.build("slack")
    arrive(core, "r")
    start(core, "r", 0.0)
    decode(core, "r", 0.02, 0.02)
    arrive(core, "other", at_s=0.03)
    core.observe(StepScheduled(0.04, {"other": 50}, {"other": 0}, ("r",)))
    request = core.live.requests["r"]
    assert request.state is State.PREEMPTED
    assert request.num_preemptions == 1
    assert request.prefill_target_tokens == 52
    assert request.remaining_prefill_tokens == 52
    core.observe(StepDone(0.06, {"other": 1}))
    core.validate()
    chunk = core.plan(VIEW, 0.06).chunks[0]
    assert (chunk.request_id, chunk.num_tokens, chunk.admit) == ("r", 52, True)


def test_a_stale_token_of_a_preempted_request_is_counted() -> None:
    """Under async scheduling a token may arrive after the preemption."""
    core = registry.build("slack")
    arrive(core, "r")
    core.observe(StepScheduled(0.0, {"r": 50}, {"r": 0}))
    core.observe(StepScheduled(0.01, {"r": 1}))
    core.observe(StepDone(0.02, {"r": 1}))
    arrive(core, "other", at_s=0.02)
    core.observe(StepScheduled(0.02, {"other": 50}, {"other": 0}, ("r",)))
    core.observe(StepDone(0.03, {"r": 1}))
    assert core.live.requests["r"].num_output_tokens == 2
    core.observe(StepDone(0.04, {"other": 1}))
    core.validate()
    chunk = core.plan(VIEW, 0.04).chunks[0]
    assert (chunk.request_id, chunk.num_tokens) == ("r", 52)  # What came late is computed too.


def test_a_step_that_computes_nothing_is_not_in_flight() -> None:
    """News of a preemption without tokens must not shift the times of later steps."""
    core = registry.build("slack")
    arrive(core, "r")
    start(core, "r", 0.0)
    core.observe(StepScheduled(0.02, {}, {}, ("r",)))
    assert not core.known.pace.in_flight
    core.validate()


def test_events_about_strangers_are_ignored() -> None:
    """A request that is gone may still be spoken of."""
    core = registry.build("slack")
    arrive(core, "r")
    start(core, "r", 0.0)
    core.observe(Finished(0.1, "ghost", "aborted"))
    core.observe(StepScheduled(0.1, {"r": 1, "ghost": 1}, {}, ("ghost",)))
    core.observe(StepDone(0.2, {"r": 1, "ghost": 1}))
    core.validate()


def test_arriving_twice_is_an_error() -> None:
    """Two live requests cannot share an id."""
    core = registry.build("slack")
    arrive(core, "r")
    with pytest.raises(InvariantError, match="r arrived twice"):
        arrive(core, "r")


def test_a_late_first_token_loses_the_promise() -> None:
    """From then on the request is best effort, and its story says so."""
    core = registry.build("slack")
    arrive(core, "r")
    start(core, "r", 0.99, took_s=0.1)
    request = core.live.requests["r"]
    assert request.standing is Standing.LOST
    assert "promise lost" in request.tell()
    core.validate()


def test_a_stream_past_its_promised_end_slows_nobody() -> None:
    """Its gaps bound no step any more; a newcomer of the same name is somebody else."""
    core = registry.build("slack")
    slo = Slo(tbt_s=0.1, jct_s=0.5)
    arrive(core, "r", slo)
    start(core, "r", 0.0)
    core.plan(VIEW, 0.5)
    assert core.live.claim_gaps == {0.1: 1}
    core.plan(VIEW, 0.51)
    assert core.live.claim_gaps == {}
    assert "the time promised to its end passed" in core.live.requests["r"].tell()
    core.validate()
    for ended_s in (0.6, 0.7):
        core.observe(Finished(ended_s, "r", "stopped"))
        arrive(core, "r", slo, ended_s)
    core.plan(VIEW, 1.15)  # The end promised to the second is over, to the third not yet.
    assert core.live.requests["r"].has_claim


def test_waiting_beyond_the_first_token_loses_the_promise() -> None:
    """A plan made after the due time no longer counts on it."""
    core = registry.build("slack")
    arrive(core, "r")
    core.plan(VIEW, 0.5)
    assert core.live.requests["r"].has_claim
    core.plan(VIEW, 1.01)
    assert core.live.requests["r"].standing is Standing.LOST
    core.validate()


def test_one_late_gap_in_a_hundred_is_forgiven() -> None:
    """A stream predicted to be long may be late once; twice loses the promise."""
    core = registry.build("slack")
    core.observe(Arrived(0.0, "r", 0.0, 50, 400, CHAT))
    core.live.requests["r"].predicted_output_tokens = 150
    start(core, "r", 0.0)
    decode(core, "r", 0.02, 0.5)
    assert core.live.requests["r"].has_claim
    decode(core, "r", 0.52, 0.5)
    assert core.live.requests["r"].standing is Standing.LOST
    core.validate()


def test_a_promise_shorter_than_any_step_is_hopeless() -> None:
    """Once the machine is known, what no empty server could keep is never a claim."""
    core = registry.build("slack")
    for i in range(30):
        arrive(core, f"r{i}", at_s=float(i))
        start(core, f"r{i}", float(i))
        core.observe(Finished(i + 0.1, f"r{i}", "stopped"))
    arrive(core, "fool", Slo(ttft_s=0.001), at_s=40.0)
    arrive(core, "wise", Slo(ttft_s=0.5), at_s=40.0)
    core.plan(VIEW, 40.0)
    assert core.live.requests["fool"].standing is Standing.LOST
    assert core.live.requests["wise"].has_claim


def test_a_prompt_larger_than_the_cache_is_rejected_once() -> None:
    """The sentence names both sizes; the rest of the queue is not held up."""
    core = registry.build("slack")
    arrive(core, "big", prompt=20_000)
    arrive(core, "small")
    plan = core.plan(VIEW, 0.0)
    assert [r.request_id for r in plan.reject] == ["big"]
    assert "20000" in plan.reject[0].reason
    assert "16000" in plan.reject[0].reason
    assert [c.request_id for c in plan.chunks] == ["small"]


def test_deadlines_order_the_claims() -> None:
    """The tighter promise goes first, whoever came first; best effort last."""
    core = registry.build("slack")
    arrive(core, "bulk", LAST)
    arrive(core, "patient", Slo(ttft_s=9.0))
    arrive(core, "hasty", Slo(ttft_s=0.5))
    assert [c.request_id for c in core.plan(VIEW, 0.0).chunks] == ["hasty", "patient", "bulk"]


def test_the_overdue_go_first() -> None:
    """A stated share of the longest wait later best effort passes every promise."""
    core = registry.build("slack", options={"max_wait_s": 10.0})
    arrive(core, "bulk", LAST)
    before_s, after_s = 10.0 * OVERDUE_SHARE - 0.1, 10.0 * OVERDUE_SHARE + 0.1
    arrive(core, "hasty", Slo(ttft_s=0.5), at_s=before_s)
    assert [c.request_id for c in core.plan(VIEW, before_s).chunks] == ["hasty", "bulk"]
    assert core.plan(VIEW, after_s).chunks[0].request_id == "bulk"


def test_an_idle_core_plans_nothing() -> None:
    """No requests, no work, no error, whatever the instant."""
    core = registry.build("slack")
    for now_s in (0.0, 1e9, 5.0):
        plan = core.plan(VIEW, now_s)
        assert not plan.chunks
        assert not plan.preempt
        assert not plan.reject


def test_plans_of_equal_pasts_are_equal() -> None:
    """Two cores told the same decide the same."""
    plans: list[list[StepPlan]] = []
    for _ in range(2):
        core = registry.build("slack")
        mine = []
        for i in range(20):
            arrive(core, f"r{i}", CHAT if i % 2 else NO_PROMISE, at_s=0.01 * i, prompt=20 * i + 1)
            mine.append(core.plan(VIEW, 0.01 * i))
        plans.append(mine)
    assert plans[0] == plans[1]


def a_loaded_core(waiting: int, running: int) -> Scheduler:
    core = registry.build("slack")
    for i in range(running):
        arrive(core, f"run{i:05d}", CHAT if i % 2 else NO_PROMISE, prompt=200)
        start(core, f"run{i:05d}", 0.0)
    for i in range(waiting):
        arrive(core, f"wait{i:05d}", CHAT if i % 2 else NO_PROMISE, at_s=0.1, prompt=200)
    return core


def test_a_live_request_costs_at_most_4_kib() -> None:
    """5,000 waiting and 200 running requests, planned for, fit 4 KiB each."""
    a_loaded_core(10, 10).plan(VIEW, 0.2)
    gc.collect()
    tracemalloc.start()
    try:
        core = a_loaded_core(5000, 200)
        for _ in range(3):
            core.plan(VIEW, 0.2)
        gc.collect()
        used_bytes, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert used_bytes / 5200 <= 4096


def reachable_bytes(root: object) -> int:
    """Bytes of everything reachable from *root*, classes and modules apart."""
    seen: set[int] = set()
    todo: list[object] = [root]
    total = 0
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, type | ModuleType | FunctionType):
            continue
        seen.add(id(one))
        total += sys.getsizeof(one)
        todo.extend(gc.get_referents(one))
    return total


def test_finished_requests_leave_nothing_behind(fake_engine: Any) -> None:
    """After 20,000 requests the core is as large as after 10,000."""
    core = registry.build("slack")
    engine = fake_engine(core, num_blocks=2000, block_size=16, max_running=64, max_step_tokens=4096)
    engine.check = lambda plan, view: None
    sizes = []
    for number in range(20_000):
        slo = CHAT if number % 2 else NO_PROMISE
        engine.arrive(f"r{number}", 20, 1 + number % 2, slo=slo)
        if number % 20 == 19:  # By half-time the windows of the latency model are full.
            engine.drain(1000)
            engine.plans.clear()
        if number in (9_999, 19_999):
            sizes.append(reachable_bytes(core))
    assert sizes[1] <= sizes[0] + 4096
    core.validate()
