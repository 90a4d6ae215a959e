"""What a decision costs: our schedule() + update_from_output() over stock's, same run.

Question: how much time does Headway add to a step of vLLM's own scheduler?
Command:  make bench   (or: python bench/plan.py --json bench/plan.json)
Method:   the real scheduler classes under the virtual clock, no model; R requests decode and
          W wait; stock and ours alternate in blocks of steps, and the medians are compared.
Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from typing import Any

from headway.engines.virtual import Call
from headway.engines.vllm.bare import Engine
from headway.engines.vllm.harness import VirtualRun
from headway.latency.model import StepShape

OUTPUT_TOKENS = 4000


def truth(shape: StepShape) -> float:
    """Steps of a small model on a large GPU; only the virtual clock sees it."""
    return 0.006 + 2e-5 * shape.num_prefill_tokens + 3e-6 * shape.num_decodes


def loaded(
    policy: str, running: int, waiting: int, promised: bool, kv_is_short: bool = False
) -> VirtualRun:
    """Return a run in which *running* requests decode and *waiting* ones queue.

    They queue because no more may run at once, or, with *kv_is_short*, because KV is what lacks:
    then admission is decided anew in every step.
    """
    engine = Engine(
        num_blocks=running * (24 if kv_is_short else 300) + 1000 * (not kv_is_short),
        block_size=16,
        max_num_batched_tokens=8192,
        max_num_seqs=4 * running if kv_is_short else running,
        headway=None if policy == "stock" else {"policy": policy},
    )
    run = VirtualRun(engine, truth)
    xargs: dict[str, Any] = {"slo_ttft_ms": 60000, "slo_tbt_ms": 100} if promised else {}
    for i in range(running):
        run.add(Call(f"r{i}", 0.0, 64, OUTPUT_TOKENS, xargs))
    while sum(r.num_output_tokens > 0 for r in run.scheduler.running) < running:
        run.step()
    queued = {"slo_ttft_ms": 3.6e6, "slo_tbt_ms": 100} if promised else {}
    for i in range(waiting):
        run.add(Call(f"w{i}", run.clock.time_s, 200 + i % 300, 100, queued))
    return run


class Timed:
    """Charges the two calls of the scheduler under test to a stopwatch."""

    def __init__(self, run: VirtualRun) -> None:
        self.run = run
        self.spent_s = 0.0
        for name in ("schedule", "update_from_output"):
            self._wrap(name)

    def _wrap(self, name: str) -> None:
        inner = getattr(self.run.scheduler, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            begun = time.thread_time()
            try:
                return inner(*args, **kwargs)
            finally:
                self.spent_s += time.thread_time() - begun

        setattr(self.run.scheduler, name, timed)

    def steps(self, count: int) -> float:
        """Run *count* steps; return seconds a step spent in the scheduler."""
        self.spent_s = 0.0
        for _ in range(count):
            self.run.step()
        return self.spent_s / count


def compare(policy: str, running: int, waiting: int, rounds: int, steps: int) -> dict[str, Any]:
    """Return milliseconds a step of stock and of *policy*, and their ratio."""
    pair = {
        name: Timed(loaded(name, running, waiting, promised=True)) for name in ("stock", policy)
    }
    for timed in pair.values():
        timed.steps(10)
    samples: dict[str, list[float]] = {name: [] for name in pair}
    gc.collect()
    gc.freeze()
    for _ in range(rounds):
        for name, timed in pair.items():
            samples[name].append(timed.steps(steps) * 1e3)
    ratios = [ours / stock for ours, stock in zip(samples[policy], samples["stock"], strict=True)]
    return {
        "policy": policy,
        "running": running,
        "waiting": waiting,
        "stock_ms": round(statistics.median(samples["stock"]), 4),
        "ours_ms": round(statistics.median(samples[policy]), 4),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_min": round(min(ratios), 3),
        "ratio_max": round(max(ratios), 3),
    }


def cells(grid: str) -> list[tuple[int, int]]:
    """Read ``256x0,256x1000``: requests running and waiting."""
    return [
        (int(running), int(waiting)) for running, waiting in (c.split("x") for c in grid.split(","))
    ]


def report(bench: str, rows: list[dict[str, Any]], path: str | None) -> None:
    """Print the JSON line a benchmark ends in, and write it to *path*."""
    line = json.dumps({"bench": bench, "rows": rows})
    if path:
        with open(path, "w", encoding="utf-8") as file:
            file.write(line + "\n")
    print(line)


def main() -> None:
    """Run the grid and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policy", default="headway")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--grid", default="256x0,256x1000,1024x0,1024x1000,256x20000,1024x20000")
    parser.add_argument("--json", default=None)
    given = parser.parse_args()
    rows = []
    for running, waiting in cells(given.grid):
        row = compare(given.policy, running, waiting, given.rounds, given.steps)
        print(row, flush=True)
        rows.append(row)
    report("plan", rows, given.json)


if __name__ == "__main__":
    main()
