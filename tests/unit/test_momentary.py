"""What one moment shows decides nothing that lasts: an odd step, a full step, a quiet hour."""

from __future__ import annotations

from dataclasses import replace

import pytest

from headway import registry
from headway.latency.online import WARM_STEPS
from headway.policy.appointments import LEAD_S, SHARE
from headway.policy.events import Arrived, Finished, StepDone, StepScheduled
from headway.policy.scheduler import Scheduler
from headway.policy.view import EngineView
from headway.slo import Slo

CHAT = Slo(ttft_s=1.0, tbt_s=0.1, class_name="chat")
VIEW = EngineView(10_000, 10_000, 16, 256, 2048)


def arrive(
    core: Scheduler, at_s: float, name: str, prompt: int, slo: Slo = CHAT, output: int = 100
) -> None:
    core.observe(Arrived(at_s, name, at_s, prompt, output, slo))


def serve(core: Scheduler, at_s: float, name: str, prompt: int) -> None:
    """Compute a prompt at 10,000 tokens a second, and let it end with one token."""
    done_s = at_s + prompt / 10_000
    core.observe(StepScheduled(at_s, {name: prompt}, {name: 0}))
    core.observe(StepDone(done_s, {name: 1}))
    core.observe(Finished(done_s, name, "stopped"))


def quiet(core: Scheduler, num_requests: int) -> float:
    """Serve one request a second, each alone; return when the last second is over."""
    for i in range(num_requests):
        prompt = 500 + 100 * (i % 10)
        arrive(core, float(i), f"past{i}", prompt)
        serve(core, float(i), f"past{i}", prompt)
    return float(num_requests)


def full_of_a_stream(policy: str) -> tuple[Scheduler, EngineView, float]:
    """Return a core in refuse mode, a view in which its one stream fills a step, and the time."""
    core = registry.build(policy, overload="refuse")
    at_s = quiet(core, WARM_STEPS)
    arrive(core, at_s, "stream", 100)
    core.observe(StepScheduled(at_s, {"stream": 100}, {"stream": 0}))
    core.observe(StepDone(at_s + 0.01, {"stream": 1}))
    return core, replace(VIEW, max_step_tokens=1), at_s + 0.02


def test_a_quiet_hour_says_nothing_of_what_a_server_can_do() -> None:
    """A burst of ten seconds' work after a light load is served in default mode, if late."""
    core = registry.build("headway")
    at_s = quiet(core, 400)
    for i in range(200):
        arrive(core, at_s, f"burst{i}", 500)
    assert core.plan(VIEW, at_s + 1.1).refuse == ()


def test_a_rate_under_load_still_bounds_the_queue() -> None:
    """When requests waited all the time, what the longest wait has no room for is refused."""
    core = registry.build("headway", options={"max_wait_s": 10.0})
    quiet(core, WARM_STEPS)
    for i in range(40):
        arrive(core, 100.0, f"first{i}", 5000)
    for i in range(39):
        serve(core, 100.0 + i, f"first{i}", 5000)
    for i in range(200):
        arrive(core, 140.0, f"more{i}", 5000)
    assert len(core.plan(VIEW, 141.1).refuse) > 100


def test_one_slow_first_step_refuses_nobody_who_may_be_on_time() -> None:
    """A first step that compiles for two seconds makes its size look hopeless."""
    core = registry.build("headway", overload="refuse")
    arrive(core, 0.0, "first", 100)
    core.observe(StepScheduled(0.0, {"first": 100}, {"first": 0}))
    core.observe(StepDone(2.0, {"first": 1}))
    for name, came_s in (("early", 0.9), ("late", 1.9)):
        core.observe(Arrived(2.0, name, came_s, 100, 100, CHAT))
    assert [one.request_id for one in core.plan(VIEW, 2.0).refuse] == ["early"]


def test_one_full_step_refuses_nobody() -> None:
    """Streams that leave no token for a prompt now may end; who has time waits."""
    core, full, now_s = full_of_a_stream("headway")
    for name in ("a", "b"):
        arrive(core, now_s, name, 100, Slo(ttft_s=5.0))
    plan = core.plan(full, now_s)
    assert (plan.refuse, plan.demoted) == ((), ())


def test_one_stall_does_not_end_everybodys_longest_wait() -> None:
    """After a step of four seconds a request that waited for one is not refused."""
    core = registry.build("headway", options={"max_wait_s": 10.0})
    at_s = quiet(core, WARM_STEPS)
    arrive(core, at_s, "stream", 100, Slo())
    core.observe(StepScheduled(at_s, {"stream": 100}, {"stream": 0}))
    core.observe(StepDone(at_s + 4.0, {"stream": 1}))
    arrive(core, at_s + 3.0, "late", 100, Slo(ttft_s=0.5))
    full = EngineView(10, 2, 16, 256, 2048)
    refused = [len(core.plan(full, at_s + after_s).refuse) for after_s in (4.0, 10.9, 11.1)]
    assert refused == [0, 0, 1]


def test_appointments_go_by_no_guess_of_lengths() -> None:
    """Before answers have ended their bound is all that is known, and a bound is no length."""
    core = registry.build("headway", overload="refuse")
    for i in range(WARM_STEPS):
        arrive(core, float(i), f"past{i}", 500 + 100 * (i % 10), output=100_000)
        core.observe(StepScheduled(float(i), {f"past{i}": 500 + 100 * (i % 10)}, {f"past{i}": 0}))
        core.observe(StepDone(i + 0.05 + 0.01 * (i % 10), {f"past{i}": 1}))
        core.observe(Finished(i + 0.15, f"past{i}", "aborted"))
    for i in range(20):
        arrive(core, 40.0, f"burst{i}", 500, output=100_000)
    waits_s = [one.retry_after_s for one in core.plan(VIEW, 41.1).refuse]
    assert len(waits_s) == 20
    assert max(waits_s) < LEAD_S + 20 * 3 * 0.1


def test_an_appointment_does_not_depend_on_the_room_of_the_moment() -> None:
    """Streams that left no token for a prompt once filled the book for good: 600 s for all."""
    core, full, now_s = full_of_a_stream("slack")
    for name in ("a", "b", "c"):
        arrive(core, now_s, name, 8000)
    waits_s = [one.retry_after_s for one in core.plan(full, now_s + 1.08).refuse]
    booked_s = core.live.requests["a"].work_s / SHARE
    assert waits_s == pytest.approx([LEAD_S + i * booked_s for i in range(3)])
