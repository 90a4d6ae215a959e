"""A real server that records and compares: its folder, its gauge, and what is in neither."""

from __future__ import annotations

import gzip
import json
import re
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest

from headway.bench.server import LiveServer
from headway.study.recorded import verify
from headway.workloads.record_files import rows, run_of

pytestmark = pytest.mark.live

LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))
SECRET = "zanzibar"
"""A word of every prompt, which must be seen nowhere."""

WITHIN_S = 900.0
"""The shadow works at 3 % of a core, and rests after its start before it looks."""


@dataclass(frozen=True)
class Served:
    """What a server left: its folder, how many asked, and its metrics."""

    folder: Path
    num_asked: int
    metrics: str


def ask(server: LiveServer, number: int) -> None:
    body = {"model": "smollm2", "max_tokens": 24, "ignore_eos": True,
            "vllm_xargs": {"slo_ttft_ms": 60_000, "slo_tbt_ms": 10_000},
            "messages": [{"role": "user", "content": f"{number}: What is {SECRET}?"}]}  # fmt: skip
    request = urllib.request.Request(
        server.url + "/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with LOCAL.open(request, timeout=300) as answer:
        assert answer.status == 200


def metrics(server: LiveServer) -> str:
    with LOCAL.open(server.url + "/metrics", timeout=60) as answer:
        text: str = answer.read().decode()
    return text


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    """One server under light traffic until its shadow has spoken; it is stopped then."""
    root: Path = tmp_path_factory.mktemp("record")
    args = ["smollm2", "--record", str(root / "rec"), "--shadow", "fcfs"]
    number, deadline_s = 0, time.monotonic() + WITHIN_S
    with LiveServer(args, root / "server.log") as server:
        while "headway_shadow_attainment{" not in (text := metrics(server)):
            assert time.monotonic() < deadline_s, "the gauge never came"
            ask(server, number)
            number += 1
            time.sleep(1.0)
    return Served(root / "rec", number, text)


def test_the_gauge_shows_both_policies(served: Served) -> None:
    """Nobody could miss a promise of a minute: both keep everything, on all that was promised."""
    for policy, role in (("headway", "running"), ("fcfs", "shadow")):
        labels = f'engine="0",policy="{policy}",role="{role}"'
        assert f"headway_shadow_attainment{{{labels}}} 1.0" in served.metrics
    (found,) = re.findall(r'headway_shadow_requests\{engine="0"\} (\S+)', served.metrics)
    assert 0 < float(found) <= served.num_asked
    assert 'headway_recorded_lines_total{engine="0",result="dropped"} 0.0' in served.metrics


def test_the_recording_is_whole_and_replays_bit_for_bit(served: Served) -> None:
    """Every request with every token, also the last; and a fresh core plans the same."""
    found = [row for _, row in rows(run_of(served.folder))]
    arrived = [row for row in found if row.get("event") == "Arrived"]
    finished = [row for row in found if row.get("event") == "Finished"]
    tokens = sum(sum(row["num_new_tokens"].values()) for row in found if "num_new_tokens" in row)
    assert len(arrived) == len(finished) == served.num_asked
    assert tokens == 24 * served.num_asked
    assert verify(run_of(served.folder)) == sum("plan" in row for row in found) > 0


def text_of(path: Path) -> str:
    data = path.read_bytes()
    return (gzip.decompress(data) if path.suffix == ".gz" else data).decode()


def test_no_prompt_is_in_it(served: Served) -> None:
    """Neither in the files nor in the metrics."""
    texts = [text_of(path) for path in served.folder.iterdir()]
    assert texts
    assert all(SECRET not in text for text in texts)
    assert SECRET not in served.metrics


def test_the_folder_replays_under_another_policy(served: Served, tmp_path: Path) -> None:
    """``headway replay DIR``, with twice the cache."""
    out = tmp_path / "out.json"
    done = subprocess.run(
        [sys.executable, "-m", "headway", "replay", str(served.folder), "--policy", "slack,sarathi",
         "--kv-scale", "2", "--workers", "1", "--json", str(out)],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    document = json.loads(out.read_text())
    assert document["recorded"]["num_requests"] == served.num_asked
    assert document["recorded"]["attainment"] == document["same_machine"]["attainment"] == 1.0
    assert [run["policy"] for run in document["runs"]] == ["slack", "sarathi"]
    recorded_tokens = document["same_machine"]["kv_tokens"]
    assert {run["kv_tokens"] for run in document["runs"]} == {2 * recorded_tokens}


def test_nothing_of_it_outlives_the_server(served: Served) -> None:
    """Writer and shadow end with the process that started them."""
    deadline_s = time.monotonic() + 60
    while left := still_running(served.folder):
        assert time.monotonic() < deadline_s, left
        time.sleep(0.5)


def still_running(folder: Path) -> list[str]:
    listed = subprocess.run(["ps", "-eo", "args="], capture_output=True, text=True, check=True)
    return [line for line in listed.stdout.splitlines() if str(folder) in line]
