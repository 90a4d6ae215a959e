"""Every policy serves every request to the end, whatever the KV cache is short of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from headway import registry
from headway.study.spec import Load, Machine, RunSpec
from headway.study.virtual_run import execute
from headway.workloads.schema import WorkloadRequest, write_jsonl

pytest.importorskip("vllm", reason="vLLM is not installed")

POLICIES = registry.names()

WAYS = [
    (policy, asynchronous)
    for number, policy in enumerate(POLICIES)
    for asynchronous in (False, True)
    if policy in ("fcfs", registry.DEFAULT) or asynchronous is bool(number % 2)
]
"""Rivals are planned step by step or one step ahead, by turns; test_aborts.py has both of all."""


@pytest.mark.parametrize(("policy", "asynchronous"), WAYS)
def test_everyone_is_served_under_pressure(lab: Any, policy: str, asynchronous: bool) -> None:
    """With KV for a few requests only, each still gets exactly its tokens and all is freed."""
    engine = lab.Engine(
        num_blocks=70,
        max_num_batched_tokens=512,
        max_num_seqs=32,
        asynchronous=asynchronous,
        headway={"policy": policy},
    )
    run = lab.start(engine)
    outcomes = run.run(lab.mixed(120, 4.0, 1))
    lab.all_served(outcomes)
    lab.is_clean(run)
    if policy not in ("orca", "trt_noevict", "pastfuture"):  # They wait rather than preempt.
        assert run.num_preemptions > 0, "the cache was not short"


@pytest.mark.parametrize("asynchronous", [False, True])
def test_prefix_cache_under_pressure(lab: Any, asynchronous: bool) -> None:
    """Shared and evicted prefixes do not unbalance the books."""
    import dataclasses

    engine = lab.Engine(
        num_blocks=80,
        max_num_batched_tokens=512,
        prefix_caching=True,
        asynchronous=asynchronous,
        headway={"policy": "headway"},
    )
    run = lab.start(engine)
    calls = [
        dataclasses.replace(c, hash_ids=("abcd"[i % 4],), hash_tokens=10_000)
        for i, c in enumerate(lab.mixed(100, 4.0, 2))
    ]
    lab.all_served(run.run(calls))
    lab.is_clean(run)


@pytest.mark.parametrize("policy", POLICIES)
def test_half_the_cache_each(lab: Any, policy: str) -> None:
    """Prompts of half the cache each are served one or two at a time, none for ever waiting."""
    run = lab.start(lab.Engine(num_blocks=65, headway={"policy": policy}))
    calls = [lab.Call(f"h{i:02d}", 0.1 * i, 512, 40, {"slo_ttft_ms": 2000}) for i in range(12)]
    lab.all_served(run.run(calls))
    lab.is_clean(run)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("policy", POLICIES)
def test_a_prompt_that_can_never_fit(lab: Any, policy: str, asynchronous: bool) -> None:
    """It is answered in the first step with a sentence, and its neighbours do not notice."""
    engine = lab.Engine(num_blocks=33, asynchronous=asynchronous, headway={"policy": policy})
    run = lab.start(engine)
    calls = [lab.Call("big", 0.0, 600, 5), *(lab.Call(f"s{i}", 0.0, 50, 5) for i in range(3))]
    outcomes = run.run(calls)
    big = outcomes.pop("big")
    assert big.finish_reason == "abort"
    assert big.stop_reason.startswith("headway:invalid:")
    assert "600" in big.stop_reason
    assert big.ended_at_s < 1.0
    lab.all_served(outcomes)
    lab.is_clean(run)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_prompt_that_can_never_fit_alone(lab: Any, policy: str) -> None:
    """It is answered also when no other request makes the engine step."""
    run = lab.start(lab.Engine(num_blocks=33, headway={"policy": policy}))
    outcome = run.run([lab.Call("big", 0.0, 600, 5)], max_steps=50)["big"]
    assert outcome.stop_reason.startswith("headway:invalid:")
    lab.is_clean(run)


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("policy", POLICIES)
def test_outgrowing_the_whole_cache(lab: Any, policy: str, asynchronous: bool) -> None:
    """A request that comes to own the whole cache ends as if its length limit were reached."""
    engine = lab.Engine(num_blocks=17, asynchronous=asynchronous, headway={"policy": policy})
    run = lab.start(engine)
    calls = [lab.Call("grows", 0.0, 200, 400), lab.Call("short", 0.5, 20, 10)]
    outcomes = run.run(calls, max_steps=5000)
    grows = outcomes["grows"]
    assert grows.finish_reason == "length"
    assert len(grows.emitted_at_s) >= 256 - 200
    assert len(outcomes["short"].emitted_at_s) == 10
    lab.is_clean(run)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_prompt_of_exactly_the_cache(lab: Any, policy: str) -> None:
    """A prompt that leaves no room for a token is answered; one token smaller, it is served."""
    run = lab.start(lab.Engine(num_blocks=17, headway={"policy": policy}))
    calls = [lab.Call("whole", 0.0, 256, 5), lab.Call("almost", 0.0, 255, 5)]
    outcomes = run.run(calls, max_steps=1000)
    assert outcomes["whole"].finish_reason is not None
    assert len(outcomes["almost"].emitted_at_s) >= 1
    assert outcomes["almost"].finish_reason == "length"
    lab.is_clean(run)


@pytest.mark.parametrize("policy", POLICIES)
def test_a_cache_of_one_block(lab: Any, policy: str) -> None:
    """With one block, requests that fit it are served one after the other."""
    run = lab.start(lab.Engine(num_blocks=2, headway={"policy": policy}))
    calls = [lab.Call(f"r{i}", 0.0, 8, 6) for i in range(5)]
    calls.append(lab.Call("big", 0.0, 40, 6))
    outcomes = run.run(calls, max_steps=2000)
    assert outcomes.pop("big").stop_reason.startswith("headway:invalid:")
    lab.all_served(outcomes)
    lab.is_clean(run)


@pytest.mark.parametrize(
    ("policy", "num"),
    [(policy, 2000 if policy == registry.DEFAULT else 500) for policy in POLICIES],
)
def test_a_burst_at_one_instant(lab: Any, policy: str, num: int) -> None:
    """Many times what the server holds at once is served to the last."""
    engine = lab.Engine(
        num_blocks=3 * num // 4,
        max_num_batched_tokens=2 * num,
        max_num_seqs=num // 8,
        headway={"policy": policy},
    )
    run = lab.VirtualRun(engine, lab.truth())
    calls = [
        lab.Call(f"r{i:04d}", 0.0, 20 + i % 50, 4 + i % 5, {"slo_ttft_ms": 5000} if i % 2 else {})
        for i in range(num)
    ]
    outcomes = run.run(calls, max_steps=20_000)
    run.scheduler.headway.validate()
    lab.all_served(outcomes)
    lab.is_clean(run)


@pytest.mark.parametrize(
    ("engine", "policy"), [("vllm", "stock"), ("vllm", "headway"), ("sim", "headway")]
)
def test_what_the_whole_cache_cannot_hold(tmp_path: Path, engine: str, policy: str) -> None:
    """A workload with such requests ends on either engine: nobody waits for what is not there."""
    path = tmp_path / "load.jsonl"
    sizes = [(4_000, 5), (5_000, 5), (3_000, 5_000), (50, 20)]
    write_jsonl(path, [WorkloadRequest(f"r{i}", 0.1 * i, *size) for i, size in enumerate(sizes)])
    machine = Machine("llama-3.1-8b@h100", kv_tokens=4_000)
    result = execute(RunSpec(policy, engine, Load(str(path)), machine))
    assert result.run["too_long"] == {"cut": ("r2",), "never_fit": ("r0", "r1")}
    records = list(result.records)
    records.sort(key=lambda record: record.arrived_at_s)
    assert [record.outcome for record in records] == ["failed", "failed", "finished", "finished"]
    assert 1_000 <= len(records[2].emitted_at_s) <= 1_001
    assert len(records[3].emitted_at_s) == 20
