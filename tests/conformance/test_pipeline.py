"""Pipeline parallel: two steps in flight, each with its own requests, without async scheduling."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from feature_lab import FeatureRun

from headway.engines.virtual import Outcome, VirtualCall
from headway.engines.vllm.bare import build
from headway.latency import profile
from headway.latency.truth import Truth

TRUTH = Truth(profile.load("llama-3.1-8b@h100"))

PROMISED = {"slo_ttft_ms": 400.0, "slo_tbt_ms": 100.0}


def serve(lab: Any, folder: Path, headway: Any, calls: list[VirtualCall], **engine: Any) -> Any:
    """Serve *calls* with a scheduler for one step at a time, kept two steps ahead."""
    built = lab.Engine(headway=headway, **engine)
    scheduler = build(built, folder)
    run = FeatureRun(dataclasses.replace(built, asynchronous=True), TRUTH, {}, scheduler=scheduler)
    run.run(calls, 30_000)
    return run


def ttft_s(outcome: Outcome) -> float:
    return outcome.emitted_at_s[0] - outcome.call.arrived_at_s


@pytest.mark.parametrize("num_blocks", [2_000, 260], ids=["room", "pressure"])
def test_requests_take_turns(lab: Any, tmp_path: Path, num_blocks: int) -> None:
    """Everybody is served, and no first token is later than stock's by over a quarter."""
    calls = [VirtualCall(f"stream {i}", 0.01 * i, 200, 300) for i in range(8)]
    calls += [VirtualCall(f"chat {i}", 0.2 + 0.1 * i, 400, 30, PROMISED) for i in range(12)]
    stock = serve(lab, tmp_path / "stock", None, calls, num_blocks=num_blocks)
    ours = serve(lab, tmp_path / "ours", {"policy": "headway"}, calls, num_blocks=num_blocks)
    for name, mine in ours.outcomes.items():
        assert mine.finish_reason == stock.outcomes[name].finish_reason == "stop"
        assert len(mine.emitted_at_s) == mine.call.num_output_tokens
        if mine.call.xargs:
            assert ttft_s(mine) <= 1.25 * ttft_s(stock.outcomes[name]) + 0.010
    lab.is_clean(ours)
    assert ours.scheduler.headway_aside.num_steps == 0
    print("PP", stock.num_preemptions, ours.num_preemptions)
