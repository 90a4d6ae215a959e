"""Steered to do nothing special, Headway schedules what vLLM schedules."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

SEEDS = range(5 if os.environ.get("HEADWAY_LONG") else 3)


def compare(lab: Any, stock: Any, ours: Any, calls: list[Any]) -> None:
    theirs = lab.start(stock)
    theirs.run(calls)
    mine = lab.start(ours)
    mine.run(calls)
    assert theirs.num_preemptions == mine.num_preemptions == 0, "this workload knows no pressure"
    for number, (a, b) in enumerate(zip(theirs.steps, mine.steps, strict=False)):
        assert a == b, f"step {number} differs"
    assert len(theirs.steps) == len(mine.steps)


@pytest.mark.parametrize("promised", [False, True])
@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("seed", SEEDS)
def test_fcfs_schedules_what_stock_schedules(
    lab: Any, seed: int, asynchronous: bool, promised: bool
) -> None:
    """Without KV pressure ``fcfs`` computes the same tokens at the same instants as stock."""
    stock = lab.Engine(
        num_blocks=4000, max_num_batched_tokens=512, max_num_seqs=24, asynchronous=asynchronous
    )
    ours = dataclasses.replace(stock, headway={"policy": "fcfs"})
    calls = lab.mixed(60, 3.0, seed, long=(400, 1800), promised=promised)
    compare(lab, stock, ours, calls)


@pytest.mark.parametrize("seed", SEEDS)
def test_fcfs_with_a_shared_prefix(lab: Any, seed: int) -> None:
    """A hit on what the same step computes is known only at admission; what it saves stays unused.

    Stock may admit one request more in that step. So the steps may differ, by little; what is
    served may not.
    """
    stock = lab.Engine(num_blocks=4000, max_num_batched_tokens=512, prefix_caching=True)
    ours = dataclasses.replace(stock, headway={"policy": "fcfs"})
    calls = [
        dataclasses.replace(c, hash_ids=("abc"[i % 3],), hash_tokens=10_000)
        for i, c in enumerate(lab.mixed(60, 2.0, seed))
    ]
    theirs, mine = lab.start(stock, seed), lab.start(ours, seed)
    served, ours_served = theirs.run(calls), mine.run(calls)
    lab.all_served(ours_served)
    for call in calls:
        expected = len(served[call.request_id].emitted_at_s)
        assert len(ours_served[call.request_id].emitted_at_s) == expected
    assert abs(len(mine.steps) - len(theirs.steps)) <= 0.03 * len(theirs.steps)


@pytest.mark.parametrize("seed", SEEDS)
def test_sarathi_is_stock_with_a_small_budget(lab: Any, seed: int) -> None:
    """``sarathi`` equals stock vLLM started with ``--max-num-batched-tokens 512``."""
    wide = lab.Engine(num_blocks=4000, max_num_batched_tokens=2048)
    stock = dataclasses.replace(wide, max_num_batched_tokens=512)
    ours = dataclasses.replace(wide, headway={"policy": "sarathi"})
    compare(lab, stock, ours, lab.mixed(60, 3.0, seed, long=(400, 1800)))


@pytest.mark.parametrize("seed", SEEDS)
def test_fcfs_equals_stock_until_the_first_preemption(lab: Any, seed: int) -> None:
    """Short of KV the two agree step by step until someone must leave.

    From there on they differ by design: ``fcfs`` plans the preemption before the step, so the
    waiting may still be admitted in it, while stock meets it inside and admits nobody.
    """
    stock = lab.Engine(num_blocks=100, max_num_batched_tokens=512)
    calls = lab.mixed(60, 3.0, seed)
    theirs, mine = (
        lab.start(stock),
        lab.start(dataclasses.replace(stock, headway={"policy": "fcfs"})),
    )
    first = min(first_preemption(theirs, calls), first_preemption(mine, calls))
    assert first > 20
    for number, (a, b) in enumerate(zip(theirs.steps[:first], mine.steps[:first], strict=True)):
        assert a == b, f"step {number} differs"


def first_preemption(run: Any, calls: list[Any]) -> int:
    """Serve *calls*; return the first step in which somebody was preempted."""
    schedule, found = run.scheduler.schedule, []

    def watched(*args: Any, **kwargs: Any) -> Any:
        output = schedule(*args, **kwargs)
        if output.preempted_req_ids:
            found.append(len(run.steps))
        return output

    run.scheduler.schedule = watched
    run.run(calls)
    assert found, "the cache was not short"
    return int(found[0])


@pytest.mark.parametrize("seed", SEEDS)
def test_fcfs_under_pressure(lab: Any, seed: int) -> None:
    """Short of KV ``fcfs`` gives everyone every token, in about stock's time."""
    stock = lab.Engine(num_blocks=70, max_num_batched_tokens=512)
    calls = lab.mixed(60, 3.0, seed)
    theirs = lab.start(stock)
    lab.all_served(theirs.run(calls))
    mine = lab.start(dataclasses.replace(stock, headway={"policy": "fcfs"}))
    lab.all_served(mine.run(calls))
    lab.is_clean(mine)
    assert mine.clock.time_s < 1.15 * theirs.clock.time_s
