"""Tokens a step are learned by class, and completion times follow from them."""

from __future__ import annotations

import pytest

from headway import registry
from headway.latency.online import OnlineModel
from headway.policy.accepted import AcceptedTokens
from headway.policy.events import Arrived, StepDone, StepScheduled
from headway.request import Request
from headway.slo import Slo


def stream(name: str, class_name: str) -> Request:
    request = Request(name, Slo(class_name=class_name, jct_s=10.0), 0.0, 100, 400)
    request.predicted_output_tokens = 300
    return request


def test_each_class_has_its_own_pace() -> None:
    accepted = AcceptedTokens()
    code, chat = stream("a", "code"), stream("b", "chat")
    assert not accepted.is_used
    for _ in range(2_000):
        accepted.learn({"a": 4, "b": 1, "gone": 9}, {"a": code, "b": chat})
    assert accepted.of("code") == pytest.approx(4.0, rel=0.01)
    assert accepted.of("chat") == 1.0
    assert accepted.of("never seen") == 1.0
    assert code.steps_left == pytest.approx(75, rel=0.01)
    assert chat.steps_left == 300


def test_a_step_is_at_least_one_tokens() -> None:
    request = stream("a", "code")
    request.num_output_tokens = 500
    assert request.steps_left == 1.0


def test_what_a_finish_time_needs_follows() -> None:
    """With four tokens a step a waiting request's last token needs a quarter of the time."""
    core = registry.build("headway", latency=OnlineModel())
    slo = Slo(class_name="code", jct_s=100.0)

    def due_s(name: str, at_s: float) -> float:
        core.observe(Arrived(at_s, name, at_s, 100, 400, slo))
        request = core.live.requests[name]
        return at_s + 100.0 - request.due_at_s

    before = due_s("first", 0.0)
    core.observe(StepScheduled(0.0, {"first": 100}, {"first": 0}))
    core.observe(StepDone(0.05, {"first": 1}))
    for i in range(60):
        core.observe(StepScheduled(0.05 * (i + 1), {"first": 4}))
        core.observe(StepDone(0.05 * (i + 2), {"first": 4}))
    after = due_s("second", 3.1)
    assert after < 0.8 * before
