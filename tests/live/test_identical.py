"""Preemption loses nothing: greedy outputs are token-identical to stock vLLM's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.live

SCRIPT = Path(__file__).with_name("generate.py")
ROOMY, TIGHT = 400, 40
"""KV blocks of 32 tokens: all 40 prompts at once, and about a quarter of them."""


def generate(policy: str, num_blocks: int) -> dict[str, Any]:
    """Run one engine in a process of its own."""
    settings = json.dumps({"policy": policy, "num_blocks": num_blocks})
    done = subprocess.run(
        [sys.executable, str(SCRIPT), settings],
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(x for x in done.stdout.splitlines() if x.startswith("RESULT "))
    result: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
    return result


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    """Stock vLLM with room for everybody."""
    result = generate("stock", ROOMY)
    assert result["preemptions"] == 0
    return result


@pytest.mark.parametrize("policy", ["fcfs", "slack"])
def test_tokens_are_identical_under_forced_preemption(
    policy: str, reference: dict[str, Any]
) -> None:
    """Forty prompts in a quarter of the cache they need: preempted, no token differs."""
    result = generate(policy, TIGHT)
    assert result["preemptions"] > 0
    assert result["tokens"] == reference["tokens"]
    assert result["blocks_leaked"] == 0
