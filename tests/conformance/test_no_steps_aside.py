"""Where KV is short the plan counts the same blocks as the engine: no step comes to nothing.

Each test is one way in which a plan once started a request that the engine then could not start.
"""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from fake_connector import TRANSFER
from feature_lab import Extra, FeatureRun

from headway.engines.virtual import VirtualCall
from headway.latency import profile
from headway.latency.truth import Truth

TRUTH = Truth(profile.load("llama-3.1-8b@h100"))


def num_aside(
    lab: Any,
    calls: list[VirtualCall],
    extras: dict[str, Extra] | None = None,
    max_wait_s: float = 300.0,
    **engine: Any,
) -> int:
    """Serve *calls* and return how often Headway stepped aside."""
    headway = {"policy": "headway", "options": {"max_wait_s": max_wait_s}}
    run = FeatureRun(lab.Engine(**engine, headway=headway), TRUTH, extras or {})
    outcomes = run.run(calls, 30_000)
    assert all(o.emitted_at_s for o in outcomes.values())
    lab.is_clean(run)
    return int(run.scheduler.headway_aside.num_steps)


@pytest.mark.parametrize("num_drafts", [1, 3])
def test_drafts_take_blocks_too(lab: Any, num_drafts: int) -> None:
    """A prompt does not start in blocks that the drafts of running streams may need."""
    calls = [VirtualCall(f"s{i}", 0.0, 37 + i, 150) for i in range(16)]
    calls += [VirtualCall(f"p{i}", 0.02 + 0.005 * i, 20 + 7 * (i % 30), 5) for i in range(80)]
    assert num_aside(lab, calls, num_drafts=num_drafts, num_blocks=110) == 0


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_load_leaves_the_blocks_of_prompts_in_progress(lab: Any, asynchronous: bool) -> None:
    """KV is not fetched into blocks that a prompt lacks whose own KV is on its way."""
    calls = [VirtualCall("first", 0.0, 3_200, 20), VirtualCall("second", 0.01, 800, 20)]
    extras = {
        "first": Extra(remote_tokens=1_600, load_s=0.2),
        "second": Extra(remote_tokens=800, load_s=0.2),
    }
    engine: dict[str, Any] = {"transfer": TRANSFER, "num_blocks": 230, "asynchronous": asynchronous}
    assert num_aside(lab, calls, extras, **engine) == 0


def test_a_prefix_that_nobody_holds_any_more(lab: Any) -> None:
    """With several groups: blocks that were another's when a request came are paid for later."""
    about = {"hash_ids": ("document",), "hash_tokens": 1_000_000}
    calls = [VirtualCall("document", 0.0, 2_000, 1, **about)]
    calls += [
        VirtualCall(f"c{i}", 0.3, 2_007 + 7 * (i % 7), 60 + i % 5, **about) for i in range(24)
    ]
    engine: dict[str, Any] = {"groups": ("full", "full"), "prefix_caching": True}
    assert num_aside(lab, calls, num_blocks=270, **engine) == 0


def test_loaded_kv_that_the_longest_waiting_one_lacks(lab: Any) -> None:
    """Where nobody runs, a request whose KV is loaded goes on, though another is overdue."""
    calls = [
        VirtualCall("x", 0.0, 1_600, 30),
        VirtualCall("overdue", 0.01, 5_000, 5),
        VirtualCall("loaded", 0.02, 3_200, 5),
    ]
    extras = {"loaded": Extra(remote_tokens=3_184, load_s=0.4)}
    assert num_aside(lab, calls, extras, 0.1, transfer=TRANSFER, num_blocks=337) == 0


def test_loaded_kv_without_a_slot_for_its_adapter(lab: Any) -> None:
    """A request whose KV has come still waits for its adapter's slot, and is not planned."""
    calls = [VirtualCall("loaded", 0.0, 640, 5), VirtualCall("stream", 0.01, 40, 100)]
    extras = {
        "stream": Extra(adapter=1),
        "loaded": Extra(adapter=2, remote_tokens=624, load_s=0.05),
    }
    assert num_aside(lab, calls, extras, transfer=TRANSFER, max_loras=1) == 0


def test_a_transfer_takes_no_slot_of_an_adapter(lab: Any) -> None:
    """Whose KV has come may use the slot while the KV of others is still fetched."""
    calls = [VirtualCall("loaded", 0.0, 640, 5)]
    calls += [
        VirtualCall(f"c{i}", 0.045 + 0.001 * i, 640, 5, {"slo_ttft_ms": 9e3}) for i in range(10)
    ]
    extras = {c.request_id: Extra(adapter=2, remote_tokens=320, load_s=0.05) for c in calls}
    extras["loaded"] = Extra(adapter=1, remote_tokens=320, load_s=0.05)
    assert num_aside(lab, calls, extras, transfer=TRANSFER, max_loras=1) == 0


def test_a_prefix_of_requests_far_behind(lab: Any) -> None:
    """Whoever may pass eight that lack KV is known as well as they are."""
    about: dict[str, Any] = {"hash_ids": ("document",), "hash_tokens": 1_600}
    calls = [VirtualCall("stream", 0.0, 100, 200), VirtualCall("holder", 0.0, 1_600, 50, **about)]
    calls += [VirtualCall(f"c{i:02d}", 0.1, 1_760, 5, **about) for i in range(12)]
    assert num_aside(lab, calls, prefix_caching=True, max_num_seqs=2, num_blocks=119) == 0
