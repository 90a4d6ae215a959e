"""Step for step what vLLM 0.6's own scheduler does, where its Python files are at hand.

``HEADWAY_VLLM_V0`` names a folder with the ``vllm`` package of release 0.6.3.post1, unpacked from
its wheel; without it these tests skip::

    HEADWAY_VLLM_V0=/where/it/is python -m pytest tests/conformance/test_vllm_v0.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from v0_loads import Load, Step, assert_same, drawn

FOLDER = os.environ.get("HEADWAY_VLLM_V0", "")
LOADS = 300 if os.environ.get("HEADWAY_LONG") == "1" else 12

pytestmark = pytest.mark.skipif(
    not Path(FOLDER, "vllm", "core", "scheduler.py").is_file() or not FOLDER,
    reason="needs the Python files of vLLM 0.6.3.post1: HEADWAY_VLLM_V0",
)


def served(loads: list[Load]) -> list[list[Step]]:
    """Return the steps by which that release serves each load."""
    script = Path(__file__).with_name("v0_release.py")
    told = subprocess.run(
        [sys.executable, str(script), FOLDER],
        input=json.dumps([load.fields for load in loads]),
        capture_output=True,
        text=True,
        check=True,
    )
    return [[Step(*step) for step in steps] for steps in json.loads(told.stdout)]


@pytest.mark.parametrize("mode", ["recompute", "swap"])
def test_every_step_is_the_releases(mode: str) -> None:
    """On each of its steps the same requests compute the same tokens and the same are preempted."""
    loads = [drawn(seed, mode) for seed in range(LOADS)]
    num_steps = num_preempted = 0
    for load, steps in zip(loads, served(loads), strict=True):
        num_steps += assert_same(load, as_by=steps)
        num_preempted += sum(len(step.preempted) for step in steps)
    assert num_preempted > LOADS, "the cache was not short"
    print(f"{LOADS} loads, {num_steps} steps, {num_preempted} preemptions ({mode})")
