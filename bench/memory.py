"""What the policy remembers: bytes a live request, and growth over a million finished ones.

Question: does the core's state stay at a few KiB a live request, and flat as requests pass?
Command:  python bench/memory.py --json bench/memory.json
Method:   the bare core with a trivial engine; tracemalloc for live requests, resident memory
          of the process for the long run (tracing a million requests would distort it).
Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import tracemalloc
from pathlib import Path
from typing import Any

from headway import registry
from headway.policy.events import Arrived, Finished, StepDone, StepScheduled
from headway.policy.scheduler import Scheduler
from headway.policy.view import EngineView
from headway.slo import Slo

SLO = Slo(ttft_s=1.0, tbt_s=0.2, class_name="chat")
VIEW = EngineView(10_000, 10_000, 16, 256, 8192)


def resident_bytes() -> int:
    """Return the memory of this process that is in RAM."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * 4096


def live_request_bytes(policy: str, waiting: int, running: int) -> float:
    """Return bytes the core holds for each of *waiting* and *running* live requests."""
    core = registry.build(policy)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for i in range(running):
        core.observe(Arrived(0.0, f"r{i}", 0.0, 100, 1000, SLO))
    tokens = {f"r{i}": 100 for i in range(running)}
    core.observe(StepScheduled(0.0, tokens, dict.fromkeys(tokens, 0)))
    core.observe(StepDone(0.01, dict.fromkeys(tokens, 1)))
    for i in range(waiting):
        core.observe(Arrived(0.02, f"w{i}", 0.02, 100, 1000, SLO))
    core.plan(VIEW, 0.02)
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return used / (waiting + running)


def pass_through(core: Scheduler, first: int, count: int, now_s: float) -> float:
    """Serve *count* requests, 64 at a time, each in two steps; return the later instant."""
    for start in range(first, first + count, 64):
        ids = [f"r{i}" for i in range(start, min(start + 64, first + count))]
        for request_id in ids:
            core.observe(Arrived(now_s, request_id, now_s, 100, 50, SLO))
        core.plan(VIEW, now_s)
        core.observe(StepScheduled(now_s, dict.fromkeys(ids, 100), dict.fromkeys(ids, 0)))
        now_s += 0.05
        core.observe(StepDone(now_s, dict.fromkeys(ids, 1)))
        for request_id in ids:
            core.observe(Finished(now_s, request_id, "stopped"))
    return now_s


def main() -> None:
    """Measure both and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policy", default="slack")
    parser.add_argument("--finished", type=int, default=1_000_000)
    parser.add_argument("--json", default=None)
    given = parser.parse_args()
    per_request = live_request_bytes(given.policy, waiting=20_000, running=256)
    core = registry.build(given.policy)
    tenth = given.finished // 10
    now_s, marks = 0.0, []
    for part in range(10):
        now_s = pass_through(core, part * tenth, tenth, now_s)
        marks.append(resident_bytes())
    result: dict[str, Any] = {
        "bench": "memory",
        "bytes_a_live_request": round(per_request),
        "finished": tenth * 10,
        "resident_mb_after_each_tenth": [round(mark / 1e6, 1) for mark in marks],
        "growth_after_first_tenth": round(marks[-1] / marks[0] - 1, 4),
    }
    line = json.dumps(result)
    if given.json:
        Path(given.json).write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
