"""Who the engine could not start is no candidate, blocks nobody, and is charged once."""

from __future__ import annotations

import pytest

from headway import registry
from headway.policy.events import Arrived, CannotStart, Finished, StepDone, StepScheduled
from headway.policy.scheduler import Scheduler
from headway.policy.view import EngineView
from headway.request import Standing
from headway.slo import NO_PROMISE, Slo

PRESETS = sorted({*registry.names()} - {"rlp", "s3"})
"""Those two finish the batch that they have chosen before they look at anybody else."""
VIEW = EngineView(100, 100, 16, 64, 2048)


def arrive(core: Scheduler, name: str, prompt: int = 400, slo: Slo = NO_PROMISE) -> None:
    core.observe(Arrived(0.0, name, 0.0, prompt, 20, slo))


def started(core: Scheduler, view: EngineView = VIEW, now_s: float = 0.0) -> list[str]:
    plan = core.plan(view, now_s)
    core.validate()
    return [chunk.request_id for chunk in plan.chunks if chunk.admit]


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("slo", [NO_PROMISE, Slo(ttft_s=2.0)])
def test_it_is_passed_over_until_it_can_start(preset: str, slo: Slo) -> None:
    core = registry.build(preset)
    arrive(core, "first", slo=slo)
    arrive(core, "second", slo=slo)
    core.observe(CannotStart(0.0, {"first": "its grammar is being compiled"}))
    assert started(core) == ["second"]
    core.observe(CannotStart(0.0, {"first": ""}))
    assert "first" in started(core)
    assert "cannot start: its grammar is being compiled" in core.live.requests["first"].tell()


@pytest.mark.parametrize("preset", PRESETS)
def test_loaded_kv_is_charged_once(preset: str) -> None:
    """Seventy of a hundred blocks are its own already: thirty free ones are enough."""
    core = registry.build(preset)
    arrive(core, "remote", prompt=1_120)
    arrive(core, "other", prompt=100)
    loading = CannotStart(0.0, {"remote": "its KV is being loaded"}, {"remote": 1_119})
    core.observe(loading)
    view = EngineView(100, 30, 16, 64, 2048)
    assert started(core, view) == ["other"]
    core.observe(CannotStart(0.1, {"remote": ""}, {"remote": 1_119}))
    plan = core.plan(view, 0.1)
    tokens = {chunk.request_id: chunk.num_tokens for chunk in plan.chunks}
    assert tokens["remote"] == 1
    core.observe(StepScheduled(0.1, {"remote": 1}, {"remote": 1_119}))
    core.observe(StepDone(0.12, {"remote": 1}))
    core.validate()
    assert core.live.requests["remote"].num_output_tokens == 1


def test_it_may_end_while_it_waits() -> None:
    core = registry.build("headway")
    arrive(core, "gone", slo=Slo(ttft_s=1.0))
    core.observe(CannotStart(0.0, {"gone": "every adapter's slot is taken"}))
    core.validate()
    core.observe(Finished(0.1, "gone", "aborted"))
    core.validate()
    assert not core.live.requests
    assert not core.live.hindered


def test_what_is_loaded_makes_a_promise_possible() -> None:
    """A prompt of 60,000 tokens is hopeless in half a second, and is not once its KV is here."""
    core = registry.build("headway")
    view = EngineView(8_000, 8_000, 16, 64, 2048)
    arrive(core, "before", prompt=100)  # A guess calls nothing hopeless: a step must have shown it.
    core.observe(StepScheduled(-1.0, {"before": 100}, {"before": 0}))
    core.observe(StepDone(-0.9, {"before": 1}))
    core.observe(Finished(-0.9, "before", "stopped"))
    arrive(core, "remote", prompt=60_000, slo=Slo(ttft_s=0.5))
    request = core.live.requests["remote"]
    assert request.standing is Standing.LOST
    core.observe(CannotStart(0.0, {"remote": "its KV is being loaded"}, {"remote": 59_999}))
    core.observe(CannotStart(0.1, {"remote": ""}, {"remote": 59_999}))
    assert request.standing is Standing.PROMISED
    assert started(core, view, 0.1) == ["remote"]


@pytest.mark.parametrize("waits_at_s", [0.015, 0.02])
def test_a_wait_for_a_load_is_no_step(waits_at_s: float) -> None:
    """With nothing else to do the engine waits; the step after it is not taken for so long.

    It says so when the last step has ended, or, where it schedules ahead, while that is in flight.
    """
    core = registry.build("headway")
    arrive(core, "before", prompt=100)
    core.plan(VIEW, 0.0)
    core.observe(StepScheduled(0.0, {"before": 100}, {"before": 0}))
    arrive(core, "remote", prompt=400)
    core.observe(CannotStart(0.01, {"remote": "its KV is being loaded"}, {"remote": 399}))
    if waits_at_s < 0.02:
        core.observe(StepScheduled(waits_at_s, {}))
    core.observe(StepDone(0.02, {"before": 1}))
    core.observe(Finished(0.02, "before", "stopped"))
    if waits_at_s >= 0.02:
        core.observe(StepScheduled(waits_at_s, {}))
    core.observe(CannotStart(9.0, {"remote": ""}, {"remote": 399}))
    core.plan(VIEW, 9.0)
    core.observe(StepScheduled(9.0, {"remote": 1}, {"remote": 399}))
    core.observe(StepDone(9.02, {"remote": 1}))
    arrive(core, "next")
    core.plan(VIEW, 9.02)
    assert core.known.pace.step_s < 0.06


def test_a_load_that_failed_is_computed() -> None:
    core = registry.build("headway")
    arrive(core, "remote", prompt=400)
    core.observe(CannotStart(0.0, {"remote": "its KV is being loaded"}, {"remote": 399}))
    core.observe(CannotStart(0.1, {"remote": ""}, {}))
    plan = core.plan(VIEW, 0.1)
    assert [chunk.num_tokens for chunk in plan.chunks] == [400]
