"""``headway verify`` on the CPU engine with the small model, from its first start to its file.

With the default of eight minutes it took 6 min 44 s on two cores with nothing beside it::

    HEADWAY_LONG=1 make test-live ARGS="tests/live/test_verify.py"
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from headway.bench.verification import ROUNDS
from headway.bench.verify_rounds import MIXED_SEED
from headway.bench.verify_rows import ROWS
from headway.bench.verify_tokens import NUM_PROMPTS, body_of
from headway.workloads.realtext import demo_workload

pytestmark = [
    pytest.mark.live,
    pytest.mark.skipif(os.environ.get("HEADWAY_LONG") != "1", reason="long: HEADWAY_LONG=1"),
]


def running(folder: Path) -> list[str]:
    """Return the command lines of servers that log into *folder*'s run."""
    found = []
    for file in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"HEADWAY_TEST={folder}".encode() in file.read_bytes():
                found.append((file.parent / "cmdline").read_bytes().decode().replace("\0", " "))
        except OSError:
            continue
    return found


def test_every_row_is_filled_and_nothing_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 0, a verdict in every row, no process left, and no prompt in what is written."""
    monkeypatch.setenv("HEADWAY_TEST", str(tmp_path))  # Its children inherit it.
    words = [sys.executable, "-m", "headway", "verify", "smollm2", "--minutes", "4"]
    done = subprocess.run(
        words, cwd=tmp_path, capture_output=True, text=True, timeout=3600, check=False
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert running(tmp_path) == []
    document = json.loads((tmp_path / "verify-out" / "verify.json").read_text(encoding="utf-8"))
    assert list(document["verdicts"]) == list(ROWS)
    unmeasured = {r["key"]: r["found"] for r in document["rows"] if r["verdict"] == "not measured"}
    assert unmeasured == {}
    # What does not depend on how busy the machine is.
    by_key = {row["key"]: row for row in document["rows"]}
    assert by_key["hooks"]["verdict"] == "ok", by_key["hooks"]
    tokens = by_key["tokens"]["figures"]
    assert tokens["num_differing"] == tokens["num_differing_of_stock"] == 0
    assert min(tokens["preempted"].values()) > 0
    prompts = [str(body_of("m", i)["prompt"]) for i in range(NUM_PROMPTS)]
    num_round = by_key["throughput"]["figures"]["num_requests"]
    num_mixed = by_key["promises"]["figures"]["stock"]["num_requests"]
    loads = {**dict.fromkeys(range(ROUNDS), num_round), MIXED_SEED: num_mixed}
    prompts += [r.prompt or "" for seed, num in loads.items() for r in demo_workload(num, seed)]
    for name in ("verify.json", "verify.html"):
        text = (tmp_path / "verify-out" / name).read_text(encoding="utf-8")
        assert not [p for p in prompts if p[:30] in text or json.dumps(p[:30])[1:-1] in text]
