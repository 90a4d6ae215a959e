"""vLLM's own scheduling options: each works beside Headway, or start refuses it in a sentence."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from headway.errors import UserError
from headway.policy.plan import Chunk, StepPlan

PROMISED = {"slo_ttft_ms": 60_000, "slo_tbt_ms": 60_000}


def most_running(run: Any) -> list[int]:
    """Note how many run after every step of *run*."""
    schedule, running = run.scheduler.schedule, []

    def counted(*args: Any, **kwargs: Any) -> Any:
        output = schedule(*args, **kwargs)
        running.append(len(run.scheduler.running))
        return output

    run.scheduler.schedule = counted
    return running


# -- --max-num-active-seqs ----------------------------------------------------------------------


@pytest.mark.parametrize("asynchronous", [False, True])
def test_no_more_run_than_may_be_active(lab: Any, asynchronous: bool) -> None:
    """The plan knows the bound: it is reached, never passed, and no admission is in vain."""
    engine = lab.Engine(
        asynchronous=asynchronous,
        max_num_seqs=16,
        scheduler_options={"max_num_active_seqs": 3},
        headway={},
    )
    calls = [lab.Call(f"r{i}", 0.01 * i, 40, 30) for i in range(12)]
    run = lab.start(engine)
    running = most_running(run)
    plans = planned(run)
    lab.all_served(run.run(calls))
    lab.is_clean(run)
    assert max(running) == 3
    asked = [c.request_id for plan in plans for c in plan.chunks if c.admit]
    assert len(asked) == len(calls), "each was admitted when the plan said so"


def planned(run: Any) -> list[Any]:
    """Note every plan of *run*."""
    core, plans = run.scheduler.headway, []
    plan = core.plan

    def noted(view: Any, now_s: float) -> Any:
        plans.append(plan(view, now_s))
        return plans[-1]

    core.plan = noted
    return plans


def test_active_bound_is_as_fast_as_stocks(lab: Any) -> None:
    """Best effort with room ends at the same instants as on stock vLLM with the option."""
    stock = lab.Engine(max_num_seqs=16, scheduler_options={"max_num_active_seqs": 3})
    calls = [lab.Call(f"r{i}", 0.2 * i, 40, 10 + i) for i in range(12)]
    ended = []
    for engine in (stock, dataclasses.replace(stock, headway={})):
        outcomes = lab.start(engine, noise=0.0).run(calls)
        ended.append({i: o.emitted_at_s for i, o in outcomes.items()})
    assert ended[0] == ended[1]


def test_who_sits_out_keeps_its_place(lab: Any) -> None:
    """Stock may not give the place of a running request away that the plan leaves out."""
    run = lab.start(lab.Engine(scheduler_options={"max_num_active_seqs": 1}, headway={}))
    scheduler = run.scheduler
    run.add(lab.Call("runs", 0.0, 40, 30))
    for _ in range(5):
        run.step()
    run.add(lab.Call("waits", 0.0, 40, 5))
    core, plan = scheduler.headway, scheduler.headway.plan

    def holding(view: Any, now_s: float) -> Any:
        return dataclasses.replace(plan(view, now_s), hold=("runs",))

    core.plan = holding
    scheduler._sessions.add("waits")  # As a session it is shown whatever the plan says.
    scheduler.schedule()
    assert [r.request_id for r in scheduler.running] == ["runs"]
    assert scheduler.max_num_active_reqs == 1


# -- --prefill-schedule-interval ----------------------------------------------------------------


def throttled(run: Any, interval: int) -> tuple[list[int], list[bool]]:
    """Throttle prompts as a data-parallel rank's engine core does, in all steps but every Nth.

    Returns:
        For each step how many tokens of prompts it computed, and whether stock thought itself
        too busy to throttle after it.
    """
    schedule, prompts, bound = run.scheduler.schedule, [], []

    def cadenced() -> Any:
        output = schedule(throttle_prefills=bool(len(prompts) % interval))
        requests = run.scheduler.requests
        prompts.append(
            sum(
                n
                for i, n in output.num_scheduled_tokens.items()
                if requests[i].num_output_tokens == 0
            )
        )
        bound.append(run.scheduler.prefill_capacity_bound)
        return output

    run.scheduler.schedule = cadenced
    return prompts, bound


def test_held_back_requests_leave_the_throttle_on(lab: Any) -> None:
    """A chat's tight gaps leave little of a step for the documents: nobody lacks capacity."""
    run = lab.start(lab.Engine(num_blocks=4000, headway={}))
    run.add(lab.Call("chat", 0.0, 40, 400, {"slo_ttft_ms": 1000, "slo_tbt_ms": 120}))
    for _ in range(20):
        run.step()
    for i in range(6):
        run.add(lab.Call(f"document{i}", run.clock.time_s, 1500, 5))
    prompts, bound = throttled(run, 4)
    for _ in range(40):
        run.step()
    assert not any(bound)
    with_prompts = [i for i, tokens in enumerate(prompts) if tokens]
    assert with_prompts
    assert all(i % 4 == 0 for i in with_prompts)
    assert len(run.scheduler.waiting) >= 2, "requests were held back all the time"


def test_a_full_step_turns_the_throttle_off(lab: Any) -> None:
    """As in stock vLLM, prompts that fill whole steps are not spread over every fourth."""
    stock = lab.Engine(num_blocks=4000, max_num_batched_tokens=512)
    most = []
    for engine in (stock, dataclasses.replace(stock, headway={})):
        run = lab.start(engine, noise=0.0)
        run.add(lab.Call("runs", 0.0, 20, 400))
        for _ in range(4):
            run.step()
        for i in range(8):
            run.add(lab.Call(f"d{i}", run.clock.time_s, 2000, 5))
        prompts, bound = throttled(run, 4)
        while run.scheduler.requests.keys() - {"runs"}:
            run.step()
        assert any(bound)
        most.append(len(prompts))
    assert most[1] <= 1.05 * most[0] + 4


# -- options that decide what the plan decides ----------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"scheduling_policy": "priority"}, "--scheduling-policy priority"),
        (
            {"scheduler_options": {"long_prefill_token_threshold": 64}},
            "--long-prefill-token-threshold",
        ),
        (
            {
                "scheduler_options": {
                    "long_prefill_token_threshold": 64,
                    "long_prefill_token_threshold_adaptive": True,
                }
            },
            "-adaptive",
        ),
    ],
)
def test_what_decides_twice_is_refused(lab: Any, changes: dict[str, Any], option: str) -> None:
    """One sentence at start names the option and what to do; stock alone takes it."""
    lab.start(lab.Engine(**changes))
    with pytest.raises(UserError, match=option) as told:
        lab.start(lab.Engine(**changes, headway={}))
    assert "leave it out" in str(told.value)


def test_adaptive_without_a_threshold_changes_nothing(lab: Any) -> None:
    """It has no effect on stock, so it may not raise the cap that a plan sets for a step."""
    options = {"long_prefill_token_threshold_adaptive": True}
    run = lab.start(lab.Engine(num_blocks=4000, scheduler_options=options, headway={}))
    for name in "ab":
        run.add(lab.Call(name, 0.0, 5000, 5))
    core = run.scheduler.headway
    chunks = [Chunk(name, 10, True, "") for name in "ab"]
    core.plan = lambda *_: StepPlan(2048, tuple(chunks), chunk_cap_tokens=10)
    assert run.scheduler.schedule().num_scheduled_tokens == {"a": 10, "b": 10}


# -- preemption ------------------------------------------------------------------------------------


@pytest.mark.parametrize("delivers", [False, True])
def test_planned_preemptions_drop_what_is_in_flight_where_stocks_do(
    lab: Any, delivers: bool
) -> None:
    """A connector that hands KV over must not see a token whose KV has been freed."""
    engine = lab.Engine(num_blocks=40, asynchronous=True, headway={})
    run = lab.start(engine)
    run.scheduler.requires_kv_delivery = delivers
    told = []
    preempt = run.scheduler._preempt_request

    def watched(request: Any, *args: Any, **kwargs: Any) -> None:
        preempt(request, *args, **kwargs)
        told.append(request.drop_stale_output)

    run.scheduler._preempt_request = watched
    calls = [lab.Call(f"r{i}", 0.0, 100, 60) for i in range(4)]
    promised = {"slo_ttft_ms": 2500, "slo_tbt_ms": 400}
    calls += [lab.Call(f"c{i}", 1.0 + i, 200, 20, promised) for i in range(4)]
    lab.all_served(run.run(calls))
    assert told
    assert set(told) == {delivers}
