"""What a shadow policy costs: the share of a core its process takes, from its start on.

Question: does the process behind --shadow stay within 3 % of one core while it has all it can do?
Command:  python bench/shadow.py [--seconds 420] [--rate 2] [--json FILE]
Method:   A minute of the workload "mixed", served in our simulator by the policy headway and
          recorded, become a folder whose newest event is now. The process reads, fits, simulates
          and tells, over and over. Its CPU time, all threads and its start included, is read from
          the operating system every five seconds; the largest share so far, not only the last, is
          what counts once it has been there a minute: before, the imports are not rested for yet.
Bound:    0.03. Ends in one JSON line with the looks it took and what it found.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from headway import registry
from headway.config import Settings
from headway.engines.journal import Journal, Reader
from headway.engines.sim.run import SimRun
from headway.engines.vllm.channel import Receiver
from headway.engines.vllm.recorder import start_of
from headway.latency import profile as profiles
from headway.latency.laptop import LAPTOP
from headway.latency.truth import Truth
from headway.policy.log import Entry, encode_lines, rows_of
from headway.study.on_sim import engine_of
from headway.study.requests import book_of, calls_of, requests_of
from headway.study.spec import Load, Machine
from headway.workloads.record_files import file_name

MACHINE = Machine("llama-3.1-8b@h100", kv_tokens=60_000)
TRAFFIC_S = 60.0
SETTLED_S = 60.0


class Shifted(Reader):
    """Keeps lines, and writes them as if the last event were now."""

    def __init__(self, path: Path) -> None:
        self._lines: list[bytes] = []
        self._path = path

    def read(self, entries: Sequence[Entry]) -> None:
        self._lines += [line for one in entries for line in encode_lines(rows_of(one)).splitlines()]

    def close(self) -> None:
        """Write the file."""
        rows = [json.loads(line) for line in self._lines]
        by_s = time.monotonic() - max(row["at_s"] for row in rows if "at_s" in row)
        with self._path.open("w", encoding="utf-8") as out:
            start = start_of(Settings(), LAPTOP, "0")
            out.write(json.dumps({"start": start}) + "\n")
            for row in rows:
                for name in ("at_s", "arrived_at_s", "now_s"):
                    if name in row:
                        row[name] += by_s
                out.write(json.dumps(row) + "\n")


def record(folder: Path, rate_rps: float) -> int:
    """Serve the traffic, leave its recording in *folder*, and return its requests."""
    load = Load("mixed", rate_rps, round(TRAFFIC_S * rate_rps))
    profile = profiles.load(MACHINE.gpu)
    lines = Shifted(folder / file_name("20260101T000000Z-1-e0", 1))
    core = Journal(registry.build("headway"), lines)
    book = book_of(load)
    calls, _ = calls_of(requests_of(load), book)
    SimRun(engine_of(MACHINE, profile), Truth(profile), core, book=book).run(calls)
    core.close()
    return len(calls)


def cpu_s(pid: int) -> float:
    """Return the CPU seconds a process has taken, from the operating system."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(seconds: float, rate_rps: float) -> dict[str, Any]:
    """Return shares, looks and findings of a process that ran for *seconds*."""
    with tempfile.TemporaryDirectory() as root:
        folder, channel = Path(root) / "rec", Path(root) / "channel"
        folder.mkdir()
        num_requests = record(folder, rate_rps)
        receiver = Receiver(channel)
        command = [sys.executable, "-m", "headway.study.shadow", str(folder), "slack"]
        process = subprocess.Popen(
            [*command, "--channel", str(channel)],
            stdin=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        begun_s, shares, told = time.monotonic(), [], []
        while time.monotonic() - begun_s < seconds:
            time.sleep(5.0)
            lived_s = time.monotonic() - begun_s
            shares.append((lived_s, cpu_s(process.pid) / lived_s))
            told += list(receiver.receive())
        assert process.stdin is not None
        process.stdin.close()
        code = process.wait(60)
        receiver.close()
    settled = [share for lived_s, share in shares if lived_s >= SETTLED_S]
    return {
        "num_requests": num_requests,
        "seconds": round(shares[-1][0], 1),
        "share": round(shares[-1][1], 4),
        "largest_share_after_a_minute": round(max(settled, default=0.0), 4),
        "looks": len(told),
        "found": next((one["attainment"] for one in told if one["attainment"]), None),
        "exit_code": code,
    }


def main() -> None:
    """Measure once."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=420.0)
    parser.add_argument("--rate", type=float, default=2.0)
    parser.add_argument("--json", default=None)
    given = parser.parse_args()
    line = json.dumps({"bench": "shadow", **measure(given.seconds, given.rate)})
    if given.json:
        Path(given.json).write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
