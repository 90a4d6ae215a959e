"""The longest pause and the mean time a token, as the core heeds them."""

from __future__ import annotations

import math

import pytest

from headway import registry
from headway.policy.events import Arrived, StepDone, StepScheduled
from headway.policy.scheduler import Scheduler
from headway.policy.view import EngineView
from headway.request import Request, Standing
from headway.slo import Slo

CHAT = Slo(ttft_s=5.0, tbt_s=0.1)


def streaming(
    slo: Slo, num_tokens: int = 200, max_output_tokens: int = 400
) -> tuple[Scheduler, Request]:
    """Return a core with one stream, a token every 10 ms, the newest at its last instant."""
    core = registry.build("headway")
    core.observe(Arrived(0.0, "r", 0.0, 10, max_output_tokens, slo))
    core.observe(StepScheduled(0.0, {"r": 10}, {"r": 0}))
    core.observe(StepDone(0.01, {"r": 1}))
    for step in range(1, num_tokens):
        core.observe(StepScheduled(0.01 * step, {"r": 1}))
        core.observe(StepDone(0.01 * (step + 1), {"r": 1}))
    return core, core.live.requests["r"]


def gap_of(core: Scheduler, gap_s: float, at_s: float = 2.0) -> None:
    core.observe(StepScheduled(at_s, {"r": 1}))
    core.observe(StepDone(at_s + gap_s, {"r": 1}))


@pytest.mark.parametrize(
    ("slo", "gap_s", "standing"),
    [
        (CHAT, 0.9, Standing.PROMISED),  # A late gap in 201 is forgiven, and it is no pause.
        (CHAT, 1.1, Standing.LOST),
        (Slo(tbt_s=0.1, pause_s=math.inf), 50.0, Standing.PROMISED),
        (Slo(tbt_s=0.1, pause_s=3.0), 2.9, Standing.PROMISED),
        (Slo(tbt_s=0.1, pause_s=3.0), 3.1, Standing.LOST),
        (Slo(tbt_s=0.5), 2.4, Standing.PROMISED),  # Five promised gaps.
        (Slo(tbt_s=0.5), 2.6, Standing.LOST),
        (Slo(pause_s=2.0), 1.9, Standing.PROMISED),
        (Slo(pause_s=2.0), 2.1, Standing.LOST),
        (Slo(tpot_s=0.1), 37.0, Standing.PROMISED),  # 399 gaps may take forty seconds.
        (Slo(tpot_s=0.1), 39.0, Standing.LOST),
    ],
)
def test_a_pause_breaks_a_promise_at_once(slo: Slo, gap_s: float, standing: Standing) -> None:
    """However well all other gaps were kept; and a mean, once no length brings it down again."""
    core, request = streaming(slo)
    gap_of(core, gap_s)
    assert request.standing is standing
    core.validate()


@pytest.mark.parametrize(
    ("slo", "due_s"),
    [
        (CHAT, 1.0),
        (Slo(tbt_s=0.1, pause_s=3.0), 3.0),
        (Slo(tbt_s=0.5), 2.5),
        (Slo(pause_s=2.0), 2.0),
    ],
)
def test_who_lost_its_kv_is_due_when_its_pause_is_too_long(slo: Slo, due_s: float) -> None:
    """While it can spare a late gap; it keeps its claim until then, and not a moment longer."""
    core, request = streaming(slo)
    core.observe(StepScheduled(2.0, {}, preempted=("r",)))
    assert request.due_at_s == pytest.approx(2.0 + due_s)
    view = EngineView(100, 0, 16, 8, 512)  # No room to come back.
    core.plan(view, 2.0 + due_s - 0.01)
    assert request.has_claim
    core.plan(view, 2.0 + due_s + 0.01)
    assert not request.has_claim


def test_who_can_spare_no_gap_is_due_within_one() -> None:
    """A short answer forgives none."""
    core, request = streaming(CHAT, num_tokens=20, max_output_tokens=40)
    core.observe(StepScheduled(0.2, {}, preempted=("r",)))
    assert request.due_at_s == pytest.approx(0.3)


def test_a_mean_is_due_token_by_token() -> None:
    """The next token of a stream that came fast may take until the mean has caught up."""
    core, request = streaming(Slo(tpot_s=0.1))
    core.observe(StepScheduled(2.0, {}, preempted=("r",)))
    assert request.due_at_s == pytest.approx(0.01 + 0.1 * 200)
