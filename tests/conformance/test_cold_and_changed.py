"""A server that does not know its speed, or knows it no more, on vLLM's own scheduler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from headway import registry
from headway.engines.virtual import Outcome, VirtualCall
from headway.latency import profile
from headway.latency.model import StepShape
from headway.latency.online import WARM_STEPS
from headway.latency.truth import Truth

H100 = profile.load("llama-3.1-8b@h100")
PROMISE = {"slo_ttft_ms": 1000, "slo_tbt_ms": 100}


def small(name: str, index: int, at_s: float) -> VirtualCall:
    prompt, output = 150 + 37 * index % 200, 5 + 13 * index % 10
    return VirtualCall(f"{name}{index:05d}", at_s, prompt, output, PROMISE)


def num_refused(lab: Any, overload: str, num: int, max_wait_s: float, num_before: int) -> int:
    """Return how many of *num* that come at once are refused after *num_before* one by one."""
    options = {"max_wait_s": max_wait_s}
    engine = lab.Engine(
        num_blocks=30_000,
        max_num_batched_tokens=8192,
        headway={"policy": "headway", "overload": overload, "options": options},
    )
    before = [small("before", i, 0.2 * i) for i in range(num_before)]
    burst = [small("burst", i, 0.2 * num_before + 10.0) for i in range(num)]
    outcomes = lab.VirtualRun(engine, Truth(H100)).run([*before, *burst])
    return sum(outcomes[call.request_id].finish_reason == "abort" for call in burst)


@pytest.mark.parametrize("overload", ["demote", "refuse"])
@pytest.mark.parametrize(
    ("num", "max_wait_s"), [(100, 10.0), (100, 60.0), (500, 10.0), (500, 60.0), (2000, 10.0)]
)
def test_a_cold_server_refuses_no_more_of_a_burst(
    lab: Any, num: int, max_wait_s: float, overload: str
) -> None:
    """Than the same server once it is warm, and 2 % of the burst."""
    cold, warm = (num_refused(lab, overload, num, max_wait_s, before) for before in (0, 100))
    print(f"REFUSED of {num}, {overload}, {max_wait_s:.0f} s: cold {cold}, warm {warm}")
    assert cold <= warm + 0.02 * num


REFUSING = [name for name in registry.names() if registry.build(name).known.heeds_promises]


class Spell:
    """Steps of a second between two instants, and of 20 ms before and after."""

    def __init__(self, since_s: float, until_s: float) -> None:
        self.since_s, self.until_s = since_s, until_s
        self.run: Any = None

    def __call__(self, shape: StepShape) -> float:
        return 1.0 if self.since_s <= self.run.clock.time_s < self.until_s else 0.02


def through(lab: Any, spell: Spell, calls: list[VirtualCall], policy: str) -> dict[str, Outcome]:
    """Serve *calls* in refuse mode."""
    engine = lab.Engine(headway={"policy": policy, "overload": "refuse"})
    spell.run = lab.VirtualRun(engine, spell)
    outcomes: dict[str, Outcome] = spell.run.run(calls)
    return outcomes


@pytest.mark.parametrize("num_good", [0, 20])
@pytest.mark.parametrize("policy", REFUSING)
def test_who_comes_a_minute_after_a_slow_spell_is_served(
    lab: Any, policy: str, num_good: int
) -> None:
    """A minute of slow steps, at the start or after good requests, does no lasting harm."""
    spell = Spell(1.0 * num_good, 1.0 * num_good + 60.0)
    calls = [VirtualCall(f"r{i:03d}", 1.0 * i, 200, 5, PROMISE) for i in range(num_good + 160)]
    outcomes = through(lab, spell, calls, policy).values()
    before = [o for o in outcomes if o.call.arrived_at_s < spell.until_s]
    later = [o for o in outcomes if o.call.arrived_at_s >= spell.until_s + 60.0]
    served, kept = share(later, is_served), share(later, lab.attained)
    print(f"SERVED {policy}: until then {share(before, is_served):.2f}, later {served:.3f}")
    warm = before[WARM_STEPS:]
    assert num_good or share(warm, is_served) < 0.5  # It does refuse.
    assert len(later) == 40
    assert served >= 0.95
    assert kept >= 0.95


def is_served(outcome: Outcome) -> bool:
    return outcome.finish_reason in ("stop", "length")


def share(outcomes: list[Outcome], holds: Callable[[Outcome], bool]) -> float:
    return sum(map(holds, outcomes)) / len(outcomes)


class FirstPrompts:
    """A mixed step takes half a second more until an instant, as when kernels are compiled."""

    def __init__(self, until_s: float = 0.0) -> None:
        self.until_s = until_s
        self.run: Any = None

    def __call__(self, shape: StepShape) -> float:
        seconds = 0.006 + 2e-5 * shape.num_prefill_tokens + 3e-6 * shape.num_decodes
        is_slow = shape.is_mixed and self.run.clock.time_s < self.until_s
        return seconds + 0.5 * is_slow


@pytest.mark.parametrize("overload", ["demote", "refuse"])
def test_the_first_prompts_of_a_server_may_be_long_ones(lab: Any, overload: str) -> None:
    """Four steps alike, full of prompt, do not tell what a short one costs beside a stream."""
    calls = [
        VirtualCall(f"r{i:02d}", 0.0, 30_000, 2000, {"slo_ttft_ms": 60_000, "slo_tbt_ms": 100})
        for i in range(16)
    ]
    engine = lab.Engine(
        num_blocks=60_000,
        max_num_batched_tokens=8192,
        headway={"policy": "headway", "overload": overload},
    )
    truth = FirstPrompts()
    truth.run = lab.VirtualRun(engine, truth)
    outcomes = truth.run.run(calls)
    assert lab.attainment(outcomes.values()) == 1.0


@pytest.mark.parametrize("overload", ["demote", "refuse"])
def test_an_estimate_that_no_step_confirms_is_tried(lab: Any, overload: str) -> None:
    """Prompts were slow, and only streams have run since: who comes now finds out they are not."""
    truth = FirstPrompts(until_s=60.0)
    patient = {**PROMISE, "slo_ttft_ms": 20_000}
    calls = [VirtualCall(f"a{i:02d}", 1.0 * i, 150 + 10 * (i % 20), 10, PROMISE) for i in range(50)]
    calls += [VirtualCall(f"l{i}", 54.0, 16, 4000, patient) for i in range(8)]
    calls += [
        VirtualCall(f"b{i:02d}", 62.0 + 0.5 * i, 150 + 10 * i, 10, PROMISE) for i in range(20)
    ]
    engine = lab.Engine(
        num_blocks=60_000,
        max_num_batched_tokens=8192,
        headway={"policy": "headway", "overload": overload},
    )
    truth.run = lab.VirtualRun(engine, truth)
    outcomes = truth.run.run(calls)
    later = [outcomes[call.request_id] for call in calls if call.request_id[0] == "b"]
    assert lab.attainment(later) == 1.0
