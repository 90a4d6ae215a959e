"""Traffic whose prompts are mostly cached, on vLLM's own scheduler: no worse than stock."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from headway.engines.virtual import VirtualCall
from headway.latency import profile
from headway.latency.truth import Truth

H100 = profile.load("llama-3.1-8b@h100")


def alike(name: str, num_tokens: int = 1_000_000) -> dict[str, Any]:
    """Return the fields of a call whose first tokens are those of all with this *name*."""
    return {"hash_ids": (name,), "hash_tokens": num_tokens}


def agents(num_agents: int, num_calls: int, seed: int) -> list[VirtualCall]:
    """Long contexts that grow by tool answers, seconds between calls, short outputs."""
    rng = np.random.default_rng(seed)
    calls = []
    for agent in range(num_agents):
        at_s, context = float(rng.uniform(0, 20)), int(rng.integers(8_000, 24_000))
        for turn in range(num_calls):
            xargs = {"slo_ttft_ms": 10_000 if turn == 0 else 500, "slo_tbt_ms": 100}
            name = f"a{agent:02d}-{turn:02d}"
            length = int(rng.integers(20, 80))
            calls.append(VirtualCall(name, at_s, context, length, xargs, **alike(f"agent{agent}")))
            context += int(rng.integers(100, 600))
            at_s += float(rng.uniform(3, 6))
    return calls


def chats(num: int, rate_rps: float, num_own: int, seed: int) -> list[VirtualCall]:
    """One system prompt of 8,000 tokens for all, a question of its own in each."""
    rng = np.random.default_rng(seed)
    at_s = 0.0
    calls = [VirtualCall("first", 0.0, 8_000, 1, {}, **alike("system"))]
    for i in range(num):
        at_s += float(rng.exponential(1 / rate_rps))
        length = int(rng.integers(20, 200))
        xargs = {"slo_ttft_ms": 1000, "slo_tbt_ms": 100}
        prompt = 8_000 + num_own
        name = f"c{i:04d}"
        calls.append(VirtualCall(name, 2.0 + at_s, prompt, length, xargs, **alike("system", 8_000)))
    return calls


def share_kept(lab: Any, calls: list[VirtualCall], kv_tokens: int, headway: Any) -> float:
    """Serve *calls* and return the share of promises kept."""
    engine = lab.Engine(
        num_blocks=kv_tokens // 16 + 1,
        max_num_batched_tokens=8192,
        prefix_caching=True,
        headway=headway,
    )
    outcomes = lab.VirtualRun(engine, Truth(H100)).run(calls)
    return float(lab.attainment(o for o in outcomes.values() if o.call.xargs))


LOADS = {
    "agents": (agents(16, 12, 1), 500_000),
    "more agents": (agents(32, 12, 2), 800_000),
    "chats": (chats(300, 20.0, 230, 3), 400_000),
    "one system prompt": (chats(200, 10.0, 230, 4), 64_000),
}


@pytest.mark.parametrize("load", LOADS)
def test_no_worse_than_stock_where_prompts_are_cached(lab: Any, load: str) -> None:
    """At least what stock keeps, less one point, whether the hopeless are demoted or refused."""
    calls, kv_tokens = LOADS[load]
    stock = share_kept(lab, calls, kv_tokens, None)
    for overload in ("demote", "refuse"):
        ours = share_kept(lab, calls, kv_tokens, {"policy": "headway", "overload": overload})
        print(f"KEPT {load} {overload}: stock {stock:.3f}, headway {ours:.3f}")
        assert ours >= stock - 0.01, overload


@pytest.mark.parametrize("overload", ["demote", "refuse"])
def test_a_prompt_that_is_cached_is_as_soon_as_stock(lab: Any, overload: str) -> None:
    """60,000 tokens, all but 96 of them cached, on an idle server: not lost, not refused."""
    promise = {"slo_ttft_ms": 100}
    calls = [
        VirtualCall("first", 0.0, 60_000, 1, {}, **alike("book")),
        VirtualCall("again", 60.0, 60_096, 5, promise, **alike("book")),
        # An idle server serves one whatever it thinks of its promise, and not two.
        VirtualCall("again too", 60.0, 60_096, 5, promise, **alike("book")),
    ]
    first_s = {}
    for name, headway in (("stock", None), ("ours", {"policy": "headway", "overload": overload})):
        engine = lab.Engine(
            num_blocks=10_000,
            max_num_batched_tokens=8192,
            prefix_caching=True,
            headway=headway,
        )
        outcomes = lab.VirtualRun(engine, Truth(H100)).run(calls)
        assert len(outcomes["again"].emitted_at_s) == 5
        assert len(outcomes["again too"].emitted_at_s) == 5
        first_s[name] = outcomes["again"].emitted_at_s[0] - 60.0
    print(f"KEPT cached prompt {overload}: first token after {first_s}")
    assert first_s["ours"] <= 2 * 1.05 * first_s["stock"]  # One step more at most.
