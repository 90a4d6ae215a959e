"""The simulated server: what happens when, swap, the steady state, and mistakes."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from headway import registry
from headway.engines.sim.run import SimRun
from headway.engines.virtual import VirtualCall, VirtualEngine
from headway.errors import UserError
from headway.latency.fixed import FixedModel
from headway.latency.laptop import LAPTOP
from headway.latency.model import StepShape
from headway.policy.events import Arrived, Event, Finished, StepDone, StepScheduled
from headway.policy.plan import Preempt, StepPlan
from headway.policy.scheduler import Scheduler
from headway.policy.view import EngineView

STEP_S = 0.125
"""A power of two, so that instants add up exactly."""


def truth(shape: StepShape) -> float:
    return STEP_S


def fcfs() -> Scheduler:
    return registry.build("fcfs", latency=FixedModel(LAPTOP.coefficients()))


def mixed(num: int, seed: int, rate_rps: float = 20.0) -> list[VirtualCall]:
    rng = np.random.default_rng(seed)
    at_s = np.cumsum(rng.exponential(1 / rate_rps, num)).tolist()
    return [
        VirtualCall(
            f"r{i:03d}",
            at_s[i],
            int(rng.integers(1, 200)),
            int(rng.integers(1, 80)),
            {"slo_ttft_ms": 3000, "slo_tbt_ms": 200} if i % 2 else {},
            abort_at_s=at_s[i] + 1.0 if i % 9 == 0 else None,
        )
        for i in range(num)
    ]


class Heard(Scheduler):
    """A policy that remembers what it heard and when it planned."""

    def __init__(self) -> None:
        core = fcfs()
        super().__init__("heard", core.planner, core.known.latency)
        self.heard: list[tuple[float, str, tuple[str, ...]]] = []

    def observe(self, event: Event) -> None:
        if isinstance(event, Arrived | Finished):
            ids: tuple[str, ...] = (event.request_id,)
        elif isinstance(event, StepScheduled):
            ids = tuple(event.num_scheduled_tokens)
        else:
            ids = tuple(event.num_new_tokens)
        self.heard.append((event.at_s, type(event).__name__, ids))
        super().observe(event)

    def plan(self, view: EngineView, now_s: float) -> StepPlan:
        self.heard.append((now_s, "plan", ()))
        return super().plan(view, now_s)


def test_at_one_instant_tokens_then_arrivals_then_hang_ups_then_the_plan() -> None:
    """Whatever happens at the end of a step is known to the next plan, in this order."""
    policy = Heard()
    run = SimRun(VirtualEngine(), truth, policy)
    run.run(
        [
            VirtualCall("a", 0.0, 8, 3),
            VirtualCall("c", STEP_S, 8, 1),
            VirtualCall("b", STEP_S, 8, 9, abort_at_s=2 * STEP_S),
        ]
    )
    at = {t: [(kind, ids) for at_s, kind, ids in policy.heard if at_s == t] for t in (STEP_S, 0.25)}
    assert at[STEP_S] == [
        ("StepDone", ("a",)),
        ("Arrived", ("b",)),
        ("Arrived", ("c",)),
        ("plan", ()),
        ("StepScheduled", ("a", "b", "c")),
    ]
    assert at[0.25] == [
        ("StepDone", ("a", "b", "c")),
        ("Finished", ("c",)),
        ("Finished", ("b",)),
        ("plan", ()),
        ("StepScheduled", ("a",)),
    ]


def test_phases_and_ends() -> None:
    """A request is queued, computed and streamed; its client sees each step's end."""
    run = SimRun(VirtualEngine(max_num_batched_tokens=8), truth, fcfs())
    outcome = run.run([VirtualCall("a", 0.5, 16, 3)])["a"]
    assert outcome.phases == [(0.5, "queued"), (0.5, "prefill"), (0.75, "decode")]
    assert list(outcome.emitted_at_s) == [0.75, 0.875, 1.0]
    assert (outcome.finish_reason, outcome.ended_at_s) == ("stop", 1.0)


@pytest.mark.parametrize("policy", registry.names())
def test_steady_steps_change_nothing(policy: str) -> None:
    """With and without the shortcut for steps that change nothing, the run is the same."""
    schedules = []
    for glides in (True, False):
        engine = VirtualEngine(num_blocks=60, max_num_seqs=12)
        run = SimRun(engine, lambda s: 0.01 + 1e-4 * s.num_decodes, registry.build(policy))
        run._may_glide = glides
        run._keep_schedule = True
        outcomes = run.run(mixed(40, 3))
        assert run.machine.pool.num_free == run.machine.pool.num_total
        schedules.append((run.schedule, {i: list(o.emitted_at_s) for i, o in outcomes.items()}))
    assert schedules[0] == schedules[1]


def test_most_steps_of_a_long_answer_are_steady() -> None:
    """A lone stream of 100 tokens leaves the shortcut only to begin and to end."""
    run = SimRun(VirtualEngine(), truth, fcfs())
    launched: list[Any] = []
    launch = run._launch
    run._launch = lambda *given: (launched.append(given), launch(*given))[1]  # type: ignore[assignment,method-assign]
    run.run([VirtualCall("a", 0.0, 8, 100)])
    assert run.num_steps == 100
    assert len(launched) == 3, "the prompt, the last token, and nothing left to do"


@pytest.mark.parametrize("until_s", [0.01, 0.07, 0.3])
def test_advancing_in_slices_is_the_same(until_s: float) -> None:
    """A server advanced piece by piece, as a router does, ends as one run in one go."""
    whole = SimRun(VirtualEngine(num_blocks=60), truth, fcfs(), keep_schedule=True)
    whole.run(mixed(30, 1))
    parts = SimRun(VirtualEngine(num_blocks=60), truth, fcfs(), keep_schedule=True)
    clock_s = 0.0
    for call in mixed(30, 1):
        while clock_s < call.arrived_at_s:
            clock_s = min(clock_s + until_s, call.arrived_at_s)
            parts.advance(clock_s)
            assert parts.now_s <= clock_s, "the future is not looked into"
        parts.submit(call)
    parts.advance(float("inf"))
    assert parts.schedule == whole.schedule


class Swapper(Heard):
    """Preempts one request by swap in the plan of its tenth token, and hears what was kept."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[tuple[str, ...]] = []

    def observe(self, event: Event) -> None:
        if isinstance(event, StepScheduled) and event.preempted:
            self.kept.append(event.swapped)
        super().observe(event)

    def plan(self, view: EngineView, now_s: float) -> StepPlan:
        plan = super().plan(view, now_s)
        victim = self.live.requests.get("a")
        if victim is None or victim.num_output_tokens != 10 or victim.num_preemptions:
            return plan
        return replace(plan, preempt=(Preempt("a", "swap", "for the test"),))


def swapped(host_blocks: int) -> SimRun:
    """Serve a victim beside another; a block of 16 tokens takes 2 s over the link."""
    engine = VirtualEngine(
        host_blocks=host_blocks, copy_gib_per_s=1.0, kv_bytes_per_token=2**30 // 8
    )
    run = SimRun(engine, truth, Swapper(), keep_schedule=True, keep_steps=True)
    run.run([VirtualCall("a", 0.0, 40, 20), VirtualCall("b", 0.0, 8, 40)])
    return run


def test_swap_copies_whole_blocks_out_and_in() -> None:
    """49 tokens have KV: three blocks go out and come back, one token is computed again."""
    run = swapped(host_blocks=3)
    assert run.num_preemptions == {"recompute": 0, "swap": 1}
    assert isinstance(run.policy, Swapper)
    assert run.policy.kept == [("a",)]
    assert run.machine.host.link.num_blocks_copied == 6
    assert run.machine.host.num_free == 3
    resumed = next(t for _, t in run.schedule if t.get("a", 1) != 1 and t["a"] != 40)
    assert resumed["a"] == 2, "the token beyond the whole blocks, and the newest"
    waits_s = [row.begins_s - before.ends_s for before, row in pairwise(run.steps)]
    assert [w for w in waits_s if w] == [6.0, 6.0], "the link is waited for both ways"
    assert len(run.outcomes["a"].emitted_at_s) == 20
    assert [phase for _, phase in run.outcomes["a"].phases] == [
        "queued", "prefill", "decode", "swapped", "prefill", "decode",
    ]  # fmt: skip


def test_a_full_host_pool_means_recompute() -> None:
    """A victim of three blocks does not fit two: everything is computed again, nothing copied."""
    run = swapped(host_blocks=2)
    assert run.num_preemptions == {"recompute": 1, "swap": 0}
    assert isinstance(run.policy, Swapper)
    assert run.policy.kept == [()]
    assert "swapped" not in [phase for _, phase in run.outcomes["a"].phases]
    assert run.machine.host.link.num_blocks_copied == 0
    assert any(tokens.get("a") == 50 for _, tokens in run.schedule)
    assert len(run.outcomes["a"].emitted_at_s) == 20


def test_a_run_is_repeatable() -> None:
    """The same calls give the same run, to the byte."""

    def served() -> str:
        run = SimRun(VirtualEngine(num_blocks=60), truth, registry.build("slack"), keep_steps=True)
        return repr((run.run(mixed(40, 2)), run.steps))

    assert served() == served()


@pytest.mark.parametrize("name", ["num_blocks", "block_size", "copy_gib_per_s"])
def test_an_engine_without_size_is_a_mistake(name: str) -> None:
    """The sentence names the field."""
    with pytest.raises(UserError, match=f"The engine's {name} must be greater than 0, not 0."):
        VirtualEngine(**{name: 0})


def test_mistaken_calls() -> None:
    """Two calls of one name, or one without tokens, are refused with a sentence."""
    run = SimRun(VirtualEngine(), truth, fcfs())
    with pytest.raises(UserError, match="names must be unique"):
        run.run([VirtualCall("a", 0.0, 4, 1), VirtualCall("a", 1.0, 4, 1)])
    with pytest.raises(UserError, match="at least one token in and one out"):
        run.submit(VirtualCall("b", 0.0, 0, 1))


def test_events_are_not_written_to() -> None:
    """The shared token map of steady steps reaches the policy unchanged each time."""
    policy = Heard()
    SimRun(VirtualEngine(), truth, policy).run(
        [VirtualCall("a", 0.0, 8, 20), VirtualCall("b", 0.0, 8, 20)]
    )
    done = [ids for _, kind, ids in policy.heard if kind == StepDone.__name__]
    assert done == [("a", "b")] * 20
