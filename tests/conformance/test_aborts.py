"""Clients that hang up leave nothing behind."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from headway import registry

pytest.importorskip("vllm", reason="vLLM is not installed")


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("policy", registry.names())
def test_abort_storm(lab: Any, policy: str, asynchronous: bool) -> None:
    """100 requests, half hung up on at random instants: all books return to their start."""
    import dataclasses

    rng = Random(11)
    calls = [
        dataclasses.replace(c, abort_at_s=c.arrived_at_s + rng.expovariate(0.3)) if i % 2 else c
        for i, c in enumerate(lab.mixed(100, 6.0, 4))
    ]
    engine = lab.Engine(
        num_blocks=90,
        max_num_batched_tokens=512,
        asynchronous=asynchronous,
        headway={"policy": policy},
    )
    run = lab.start(engine)
    outcomes = run.run(calls)
    lab.is_clean(run)
    assert sum(o.finish_reason == "abort" for o in outcomes.values()) > 15
    lab.all_served({i: o for i, o in outcomes.items() if o.call.abort_at_s is None})


@pytest.mark.parametrize("asynchronous", [False, True])
def test_hanging_up_frees_blocks_within_two_steps(lab: Any, asynchronous: bool) -> None:
    """Two steps after a client hung up mid-stream its blocks are free again."""
    engine = lab.Engine(num_blocks=200, asynchronous=asynchronous, headway={"policy": "headway"})
    run = lab.start(engine)
    run.add(lab.Call("stays", 0.0, 100, 500))
    run.add(lab.Call("leaves", 0.0, 1000, 500))
    for _ in range(20):
        run.step()
    assert run.outcomes["leaves"].emitted_at_s
    before = lab.free_blocks(run)
    run.abort("leaves")
    for _ in range(2):
        run.step()
    assert lab.free_blocks(run) >= before + 1000 // 16
    assert "leaves" not in run.scheduler.headway.live.requests
    run.scheduler.headway.validate()


@pytest.mark.parametrize("asynchronous", [False, True])
def test_hanging_up_while_waiting_preempted_or_prefilling(lab: Any, asynchronous: bool) -> None:
    """A request may leave in any state; the others are served to the end."""
    engine = lab.Engine(
        num_blocks=40,
        max_num_batched_tokens=64,
        max_num_seqs=16,
        asynchronous=asynchronous,
        headway={"policy": "fcfs"},
    )
    run = lab.start(engine)
    names = [f"r{i}" for i in range(8)]
    for name in names:
        run.add(lab.Call(name, 0.0, 100, 120))
    seen = set()
    for _ in range(3000):
        run.step()
        for name in ("r7", "r1", "r2", "r3"):
            request = run.scheduler.headway.live.requests.get(name)
            state = request and (
                "prefilling"
                if name in run.scheduler.headway.live.prefilling
                else request.state.value
            )
            if state and state not in seen:
                seen.add(state)
                run.abort(name)
                break
        if not run.scheduler.has_requests():
            break
    outcomes = run.run([])
    lab.is_clean(run)
    assert {"waiting", "prefilling", "running"} <= seen
    served = {i: o for i, o in outcomes.items() if o.finish_reason != "abort"}
    assert len(served) >= 4
    lab.all_served(served)
