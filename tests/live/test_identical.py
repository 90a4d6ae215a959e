"""Preemption loses nothing: greedy outputs are token-identical to stock vLLM's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.live

SCRIPT = Path(__file__).with_name("generate.py")
ROOMY, TIGHT = 400, 40
"""KV blocks of 32 tokens: all 40 prompts at once, and about a quarter of them."""


Generate = Callable[[str, int], dict[str, Any]]


@pytest.fixture(scope="module")
def generate(run_engine: Callable[[Path, str], dict[str, Any]]) -> Generate:
    """Serve the prompts under a policy in so many blocks."""

    def served(policy: str, num_blocks: int) -> dict[str, Any]:
        return run_engine(SCRIPT, json.dumps({"policy": policy, "num_blocks": num_blocks}))

    return served


@pytest.fixture(scope="module")
def reference(generate: Generate) -> dict[str, Any]:
    """Stock vLLM with room for everybody."""
    result = generate("stock", ROOMY)
    assert result["preemptions"] == 0
    return result


@pytest.mark.parametrize("policy", ["fcfs", "headway"])
def test_tokens_are_identical_under_forced_preemption(
    policy: str, generate: Generate, reference: dict[str, Any]
) -> None:
    """Forty prompts in a quarter of the cache they need: preempted, no token differs."""
    result = generate(policy, TIGHT)
    assert result["preemptions"] > 0
    assert result["tokens"] == reference["tokens"]
    assert result["blocks_leaked"] == 0
