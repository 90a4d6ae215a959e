"""What the benchmarks of a step share: a loaded scheduler, a stopwatch on it, and the report."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from headway.engines.virtual import VirtualCall
from headway.engines.vllm.harness import VirtualRun


def fill(
    run: VirtualRun, streams: Iterable[VirtualCall], queue: Iterable[VirtualCall]
) -> VirtualRun:
    """Step until all *streams* decode, then add the *queue*, which comes at that instant."""
    calls = list(streams)
    for call in calls:
        run.add(call)
    while sum(r.num_output_tokens > 0 for r in run.scheduler.running) < len(calls):
        run.step()
    for call in queue:
        run.add(replace(call, arrived_at_s=run.clock.time_s))
    return run


def clocked(owner: Any, name: str, charge: Callable[[float], None]) -> None:
    """Tell *charge* the CPU seconds of this thread that each call of a method takes."""
    inner = getattr(owner, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        begun_s = time.thread_time()
        try:
            return inner(*args, **kwargs)
        finally:
            charge(time.thread_time() - begun_s)

    setattr(owner, name, timed)


class Timed:
    """Charges the two calls of the scheduler under test to a stopwatch."""

    def __init__(self, run: VirtualRun) -> None:
        self.run = run
        self.spent_s = 0.0
        for name in ("schedule", "update_from_output"):
            clocked(run.scheduler, name, self._charge)

    def _charge(self, spent_s: float) -> None:
        self.spent_s += spent_s

    def steps(self, count: int) -> float:
        """Run *count* steps; return seconds a step spent in the scheduler."""
        self.spent_s = 0.0
        for _ in range(count):
            self.run.step()
        return self.spent_s / count


def options(doc: str | None, grid: str, rounds: int, steps: int = 50) -> argparse.ArgumentParser:
    """Return the options every benchmark of a step has, under the first line of *doc*."""
    parser = argparse.ArgumentParser(description=(doc or "").partition("\n")[0])
    parser.add_argument("--grid", default=grid, help="requests running x waiting, A,B,…")
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--steps", type=int, default=steps, help="of a round")
    parser.add_argument("--json", default=None)
    return parser


def cells(grid: str) -> list[tuple[int, int]]:
    """Read ``256x0,256x1000``: requests running and waiting."""
    return [
        (int(running), int(waiting))
        for running, waiting in (cell.split("x") for cell in grid.split(",") if cell)
    ]


def report(bench: str, rows: list[dict[str, Any]], path: str | None) -> None:
    """Print the JSON line a benchmark ends in, and write it to *path*."""
    line = json.dumps({"bench": bench, "rows": rows})
    if path:
        Path(path).write_text(line + "\n", encoding="utf-8")
    print(line)
