"""Saying no: what the refused are told, and that the core keeps its word."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headway import registry
from headway.latency.online import WARM_STEPS
from headway.policy.appointments import LEAD_S
from headway.policy.events import Arrived, Finished, PrefixFound, StepDone, StepScheduled
from headway.policy.overload import HOPELESS
from headway.policy.plan import Refuse
from headway.policy.scheduler import Scheduler
from headway.policy.view import EngineView
from headway.request import Request, Standing
from headway.slo import Slo
from headway.study.spec import Load, Machine, RunSpec
from headway.study.virtual_run import execute

CHAT = Slo(ttft_s=1.0, tbt_s=0.1, class_name="chat")
PATIENT = Slo(ttft_s=5.0, class_name="patient")
VIEW = EngineView(10_000, 10_000, 16, 256, 2048)


def arrival(at_s: float, prompt: int, slo: Slo = CHAT, name: str = "again") -> Arrived:
    return Arrived(at_s, name, at_s, prompt, 100, slo)


def core_with(
    prompts: list[tuple[str, int]], at_s: float = 0.0, num_steps: int = WARM_STEPS
) -> Scheduler:
    """A core in refuse mode that has seen the machine do 10,000 prompt tokens a second."""
    core = registry.build("slack", overload="refuse")
    for i in range(num_steps):
        began_s = at_s - num_steps + i
        size = 500 + 100 * (i % 10)
        core.observe(arrival(began_s, size, name=f"past{i}"))
        core.observe(StepScheduled(began_s, {f"past{i}": size}, {f"past{i}": 0}))
        core.observe(StepDone(began_s + size / 10_000, {f"past{i}": 1}))
        core.observe(Finished(began_s + size / 10_000, f"past{i}", "stopped"))
    for name, prompt in prompts:
        core.observe(arrival(at_s, prompt, name=name))
    return core


def told(core: Scheduler, at_s: float) -> dict[str, Refuse]:
    refused = {one.request_id: one for one in core.plan(VIEW, at_s).refuse}
    for name in refused:
        core.observe(Finished(at_s, name, "refused"))
    return refused


def serve_the_others(core: Scheduler) -> None:
    """Compute both prompts in one step and let them end."""
    core.observe(StepScheduled(0.0, {"a": 4500, "b": 2000}, {"a": 0, "b": 0}))
    core.observe(StepDone(0.65, {"a": 1, "b": 1}))
    for name in ("a", "b"):
        core.observe(Finished(0.65, name, "stopped"))


def test_who_returns_is_preferred() -> None:
    """Refused as the largest when it came, kept before its equals when it returns as told."""
    core = core_with([("large", 5000), ("a", 4500), ("b", 2000)])
    answers = told(core, 0.0)
    assert list(answers) == ["large"]
    back_s = answers["large"].retry_after_s
    assert back_s == LEAD_S
    serve_the_others(core)
    for name, prompt in (("back", 5000), ("c", 4500), ("d", 2000)):
        core.observe(arrival(back_s, prompt, name=name))
    assert core.live.requests["back"].is_expected
    assert list(told(core, back_s)) == ["c"]


def test_a_cold_server_refuses_only_what_is_lost() -> None:
    """One step later it would refuse the largest; at the end of its promise it does."""
    core = core_with([("large", 5000), ("a", 4500), ("b", 2000)], num_steps=WARM_STEPS - 1)
    assert told(core, 0.0) == {}
    serve_the_others(core)
    warm = core_with([("large", 5000), ("a", 4500), ("b", 2000)])
    assert list(told(warm, 0.0)) == ["large"]
    core.observe(arrival(0.8, 100, name="small"))
    assert list(told(core, 1.0)) == ["large"]


def test_an_idle_server_serves_somebody() -> None:
    """However lost its promise seems: only serving can correct an estimate that was wrong."""
    core = core_with([])
    impossible = Slo(ttft_s=0.0001)
    for name in ("first", "second"):
        core.observe(arrival(0.0, 100, impossible, name))
    plan = core.plan(VIEW, 0.0)
    assert [one.request_id for one in plan.refuse] == ["second"]
    assert [one.request_id for one in plan.chunks] == ["first"]


def test_whom_the_clock_made_too_late_an_idle_server_refuses() -> None:
    """No estimate is in it, so nothing is to be learned by serving."""
    core = core_with([])
    core.observe(arrival(0.0, 100, Slo(ttft_s=1e-6), "over"))
    assert list(told(core, 0.001)) == ["over"]


@pytest.mark.parametrize("num_steps", [200 - 1, 200])
def test_a_server_long_busy_with_streams_serves_somebody(num_steps: int) -> None:
    """Nothing has confirmed for so many steps what a prompt costs; before, both are refused."""
    core = core_with([("stream", 100)])
    core.observe(StepScheduled(0.0, {"stream": 100}, {"stream": 0}))
    core.observe(StepDone(0.01, {"stream": 1}))
    for i in range(num_steps):
        core.observe(StepScheduled(0.01 * i, {"stream": 1}))
        core.observe(StepDone(0.01 * (i + 1), {"stream": 1}))
    now_s = 0.01 * num_steps
    for name in ("first", "second"):
        core.observe(arrival(now_s, 100, Slo(ttft_s=0.0001), name))
    plan = core.plan(VIEW, now_s)
    refused = [one.request_id for one in plan.refuse]
    assert refused == (["second"] if num_steps == 200 else ["first", "second"])


@pytest.mark.parametrize("policy", ["headway", "slack", "cacheopt", "accelgen"])
def test_a_slow_machine_that_turned_fast_serves_again(policy: str) -> None:
    """Steps of a second for a minute, then of ten milliseconds: the estimates must not stay."""
    core = registry.build(policy, overload="refuse")
    now_s, num_late, num_refused = 0.0, 0, 0
    for i in range(400):
        slow = now_s < 60.0
        name = f"r{i}"
        core.observe(arrival(now_s, 200, CHAT, name))
        plan = core.plan(VIEW, now_s)
        if any(one.request_id == name for one in plan.refuse):
            core.observe(Finished(now_s, name, "refused"))
            num_refused += now_s > 120.0
        else:
            for step in range(4):
                tokens = {name: 1 if step else 200}
                core.observe(StepScheduled(now_s, tokens, {} if step else {name: 0}))
                now_s += 1.0 if slow else 0.01
                core.observe(StepDone(now_s, {name: 1}))
                if step < 3:
                    core.plan(VIEW, now_s)
            core.observe(Finished(now_s, name, "stopped"))
        num_late += now_s > 120.0
        now_s += 0.5
    assert num_late > 100
    assert num_refused <= 0.05 * num_late


@pytest.mark.parametrize("max_wait_s", [10.0, 0.12])
def test_what_was_never_measured_refuses_nobody(max_wait_s: float) -> None:
    """A burst of lost requests on a cold server in demote mode is served, as a warm one would.

    It knows neither a rate nor a step, so no wait is over before its end.
    """
    core = registry.build("headway", options={"max_wait_s": max_wait_s})
    core.observe(arrival(0.0, 100, Slo(), "busy"))
    core.observe(StepScheduled(0.0, {"busy": 100}, {"busy": 0}))
    for i in range(2000):
        core.observe(arrival(0.0, 200, Slo(ttft_s=0.0001), f"r{i}"))
    assert core.plan(VIEW, 0.1).refuse == ()


def test_what_is_cached_is_not_called_hopeless() -> None:
    """A prompt too long for its promise, nearly all of it in the cache, competes with the rest."""
    core = core_with([])
    slo = Slo(ttft_s=0.1, class_name="chat")
    cached = Arrived(0.0, "cached", 0.0, 60_000, 100, slo, 59_904, 0)
    core.observe(cached)
    core.observe(arrival(0.0, 60_000, slo, "cold"))
    plan = core.plan(VIEW, 0.0)
    assert plan.chunks[0].request_id == "cached"
    assert core.live.requests["cached"].has_claim
    assert not core.live.requests["cold"].has_claim


def test_a_burst_on_a_cold_server_is_not_refused_in_vain() -> None:
    """A hundred at once: refusing keeps no fewer promises than serving everybody does."""
    load = Load("long-outputs", 600.0, 100)
    spec = RunSpec("headway", "sim", load, Machine("llama-3.1-8b@h100", noise=0.05))
    demote, refuse = (
        execute(replace(spec, overload=mode)).run["attainment"] for mode in ("demote", "refuse")
    )
    assert refuse >= demote - 0.01


def test_who_returns_at_another_time_is_not() -> None:
    """A client that does not wait gains nothing, and loses nothing."""
    core = core_with([("large", 5000), ("a", 4500), ("b", 2000)])
    told(core, 0.0)
    serve_the_others(core)
    for name, prompt in (("back", 5000), ("c", 4500), ("d", 2000)):
        core.observe(arrival(5.0, prompt, name=name))
    assert list(told(core, 5.0)) == ["back"]


def test_what_no_server_could_keep_gets_no_appointment() -> None:
    """Coming back would not help: the answer says so, and nothing is booked."""
    core = core_with([("served", 100)])
    core.observe(arrival(0.0, 100, Slo(ttft_s=0.0001), "fool"))
    assert told(core, 0.0) == {"fool": Refuse("fool", LEAD_S, HOPELESS)}
    assert len(core.known.appointments) == 0


@pytest.mark.parametrize("returned", [False, True])
def test_the_next_free_blocks_are_for_who_returned(returned: bool) -> None:
    """A newcomer that would fit passes one that lacks KV, but not one that kept its time."""
    core = core_with([], LEAD_S)
    if returned:
        core.known.appointments.book(Request("early", PATIENT, 0.0, 1600, 100), 0.1, 0.0, 0.0)
    core.observe(arrival(LEAD_S, 1600, PATIENT, "back"))
    core.observe(arrival(LEAD_S, 16, PATIENT, "small"))
    plan = core.plan(EngineView(1000, 50, 16, 256, 2048), LEAD_S)
    assert plan.refuse == ()
    assert [chunk.request_id for chunk in plan.chunks] == ([] if returned else ["small"])


def test_a_cold_server_refuses_nobody_by_its_first_guess() -> None:
    """It learns what a prompt takes from the first of its length, and refuses from then on."""
    core = registry.build("headway", overload="refuse")
    hopeless = Slo(ttft_s=1e-6)
    core.observe(arrival(0.0, 800, hopeless, "first"))
    core.observe(arrival(0.0, 800, hopeless, "second"))
    plan = core.plan(VIEW, 0.0)
    assert not plan.refuse
    core.observe(StepScheduled(0.0, {"first": 800}, {"first": 0}))
    core.observe(StepDone(0.1, {"first": 1}))
    core.observe(arrival(0.1, 801, hopeless, "longer"))
    assert list(told(core, 0.1)) == ["second"]


def test_who_is_alone_is_not_refused_for_its_own_work() -> None:
    """On an idle server in demote mode, however slow steps are and however long it may take."""
    core = registry.build("headway")
    now_s = 0.0
    for i in range(33):
        core.observe(Arrived(now_s, f"past{i}", now_s, 40, 32, Slo(ttft_s=60.0, tbt_s=10.0)))
    for i in range(32):  # Steps of two seconds: 8,000 tokens would take longer than any wait.
        now_s += 5.0
        for k in range(32):
            name = f"past{i}"
            core.observe(StepScheduled(now_s, {name: 1 if k else 40}, {} if k else {name: 0}))
            now_s += 2.0
            core.observe(StepDone(now_s, {f"past{i}": 1}))
        core.observe(Finished(now_s, f"past{i}", "stopped"))
    core.observe(Finished(now_s, "past32", "aborted"))
    now_s += 30.0
    for name in ("alone", "beside it"):
        core.observe(Arrived(now_s, name, now_s, 40, 8150, Slo(ttft_s=1e-3, class_name="custom")))
        refused = [one.request_id for one in core.plan(VIEW, now_s).refuse]
        assert refused == ([] if name == "alone" else ["beside it"])


@pytest.mark.parametrize(("slo", "refused"), [(Slo(ttft_s=0.5), ["late"]), (Slo(), [])])
def test_who_still_waits_when_the_longest_wait_ends_is_told(slo: Slo, refused: list[str]) -> None:
    """Whatever the estimates said; who asked for no promise waits on."""
    core = registry.build("headway", options={"max_wait_s": 10.0})
    core.observe(arrival(0.0, 100, Slo(), "busy"))
    core.observe(StepScheduled(0.0, {"busy": 100}, {"busy": 0}))
    core.observe(StepDone(0.1, {"busy": 1}))
    core.observe(arrival(0.1, 100, slo, "late"))
    full = EngineView(10, 2, 16, 256, 2048)
    assert core.plan(full, 9.75).refuse == ()
    answers = core.plan(full, 9.95).refuse
    assert [one.request_id for one in answers] == refused
    assert all(one.retry_after_s > 0 for one in answers)


def test_a_promise_that_only_a_cached_prompt_can_keep_is_alive_again_once_it_is_cached() -> None:
    """Lost on arrival by its length alone; a moment later another request has computed it."""
    core = core_with([])
    core.observe(arrival(0.0, 60_000, Slo(ttft_s=0.5), "book"))
    request = core.live.requests["book"]
    assert request.standing is Standing.LOST
    core.observe(PrefixFound(0.1, {"book": (59_904, 0)}))
    core.validate()
    assert request.standing is Standing.PROMISED
    assert "in the cache now" in request.tell()


def test_one_that_is_past_due_is_not() -> None:
    """What the cache holds cannot turn back the clock."""
    core = core_with([])
    core.observe(arrival(0.0, 60_000, Slo(ttft_s=0.5), "book"))
    core.observe(PrefixFound(0.6, {"book": (59_904, 0)}))
    assert core.live.requests["book"].standing is Standing.LOST
