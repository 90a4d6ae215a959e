"""Where KV is short the plan counts the same blocks as the engine: no step comes to nothing.

Each test is one way in which a plan once started a request that the engine then could not start.
"""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from fake_connector import TRANSFER
from feature_lab import Extra, FeatureRun

from headway.engines.virtual import Call
from headway.latency import profile
from headway.latency.truth import Truth

TRUTH = Truth(profile.load("llama-3.1-8b@h100"))


def num_aside(
    lab: Any, calls: list[Call], extras: dict[str, Extra] | None = None, **engine: Any
) -> int:
    """Serve *calls* and return how often Headway stepped aside."""
    run = FeatureRun(lab.Engine(**engine, headway={"policy": "headway"}), TRUTH, extras or {})
    outcomes = run.run(calls, 30_000)
    assert all(o.emitted_at_s for o in outcomes.values())
    lab.is_clean(run)
    return int(run.scheduler.headway_aside.num_steps)


@pytest.mark.parametrize("num_drafts", [1, 3])
def test_drafts_take_blocks_too(lab: Any, num_drafts: int) -> None:
    """A prompt does not start in blocks that the drafts of running streams may need."""
    calls = [Call(f"s{i}", 0.0, 37 + i, 150) for i in range(16)]
    calls += [Call(f"p{i}", 0.02 + 0.005 * i, 20 + 7 * (i % 30), 5) for i in range(80)]
    assert num_aside(lab, calls, num_drafts=num_drafts, num_blocks=110) == 0


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_load_leaves_the_blocks_of_prompts_in_progress(lab: Any, asynchronous: bool) -> None:
    """KV is not fetched into blocks that a prompt lacks whose own KV is on its way."""
    calls = [Call("first", 0.0, 3_200, 20), Call("second", 0.01, 800, 20)]
    extras = {
        "first": Extra(remote_tokens=1_600, load_s=0.2),
        "second": Extra(remote_tokens=800, load_s=0.2),
    }
    engine: dict[str, Any] = {"transfer": TRANSFER, "num_blocks": 230, "asynchronous": asynchronous}
    assert num_aside(lab, calls, extras, **engine) == 0


def test_a_prefix_that_nobody_holds_any_more(lab: Any) -> None:
    """With several groups: blocks that were another's when a request came are paid for later."""
    about = {"hash_ids": ("document",), "hash_tokens": 1_000_000}
    calls = [Call("document", 0.0, 2_000, 1, **about)]
    calls += [Call(f"c{i}", 0.3, 2_007 + 7 * (i % 7), 60 + i % 5, **about) for i in range(24)]
    engine: dict[str, Any] = {"groups": ("full", "full"), "prefix_caching": True}
    assert num_aside(lab, calls, num_blocks=270, **engine) == 0
