"""What being visible costs: a step of our scheduler with everything on, over one with all off.

Question: how much time do counts, stories, messages and the recording add to schedule() +
          update_from_output(), and does it matter whether readers read?
Command:  python bench/observe.py [--grid 32x0,256x0] [--json FILE]
Method:   vLLM's scheduler with Headway under the virtual clock, no model; R requests decode and
          W wait. Bare, watched with a reader that reads (what the page and /metrics need), with a
          reader that never does, and with none; recorded; and everything on, read and recorded,
          take turns in blocks of 50 steps, whose order turns round. Steps take 10 ms of virtual
          time, so each block sends one snapshot. Other work on the machine only adds time, so the
          lower quartile of the blocks is compared; the medians' ratio stands beside. What the
          API server and the recording's writer do is done by other processes and is not in it.
Bound:    1.05 for everything on. Ends in one JSON line; exit code 1 when the bound is missed.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from headway.engines.virtual import Call
from headway.engines.vllm.bare import Engine
from headway.engines.vllm.channel import Receiver, Sender
from headway.engines.vllm.harness import VirtualRun
from headway.engines.vllm.watch import Watched

STEP_S = 0.01
OUTPUT_TOKENS = 6000
BOUND = 1.05


@dataclass(frozen=True)
class Kind:
    """What is on: whether counts leave, who is there to read them, and whether it is recorded."""

    is_watched: bool = False
    reader: Literal["none", "reads", "never reads"] = "none"
    is_recorded: bool = False


KINDS = {
    "bare": Kind(),
    "none": Kind(is_watched=True),
    "reads": Kind(is_watched=True, reader="reads"),
    "never reads": Kind(is_watched=True, reader="never reads"),
    "recorded": Kind(is_recorded=True),
    "everything": Kind(is_watched=True, reader="reads", is_recorded=True),
}


def loaded(running: int, waiting: int, kind: Kind, folder: Path) -> VirtualRun:
    """Return a run in which *running* requests decode and *waiting* queue.

    The streams are promised gaps of half a step: every gap is late, the dearest case.

    Args:
        folder: For the channel and the recording, where there are any.
    """
    engine = Engine(
        num_blocks=running * (OUTPUT_TOKENS // 16 + 20),
        max_num_batched_tokens=8192,
        max_num_seqs=running,
        headway={"record": str(folder / "recording")} if kind.is_recorded else {},
    )
    run = VirtualRun(engine, lambda shape: STEP_S)
    if kind.is_watched:
        run.scheduler.headway = Watched(run.scheduler.headway, Sender(folder / "channel"))
    tight = {"slo_ttft_ms": 60_000, "slo_tbt_ms": STEP_S * 500}
    for i in range(running):
        run.add(Call(f"r{i}", 0.0, 64, OUTPUT_TOKENS, tight if i % 2 else {"slo_tbt_ms": 100}))
    while sum(r.num_output_tokens > 0 for r in run.scheduler.running) < running:
        run.step()
    for i in range(waiting):
        run.add(Call(f"w{i}", run.clock.time_s, 200 + i % 300, 100, {"slo_ttft_ms": 3.6e6}))
    return run


class Timed:
    """Charges the scheduler's two calls to a stopwatch."""

    def __init__(self, run: VirtualRun, reader: Receiver | None) -> None:
        self._run, self._reader = run, reader
        self._spent_s = 0.0
        for name in ("schedule", "update_from_output"):
            self._wrap(name)

    def _wrap(self, name: str) -> None:
        inner = getattr(self._run.scheduler, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            begun_s = time.thread_time()
            try:
                return inner(*args, **kwargs)
            finally:
                self._spent_s += time.thread_time() - begun_s

        setattr(self._run.scheduler, name, timed)

    def steps(self, count: int) -> float:
        """Run *count* steps; return seconds a step spent in the scheduler."""
        self._spent_s = 0.0
        for _ in range(count):
            self._run.step()
        if self._reader is not None:
            for _ in self._reader.receive():
                pass
        return self._spent_s / count


def compare(running: int, waiting: int, rounds: int, steps: int) -> dict[str, Any]:
    """Return milliseconds a bare step takes, and the ratio of each other one to it."""
    contenders: dict[str, Timed] = {}
    with tempfile.TemporaryDirectory() as root, ExitStack() as at_the_end:
        for name, kind in KINDS.items():
            folder = Path(root) / name.replace(" ", "-")
            folder.mkdir()
            run = loaded(running, waiting, kind, folder)
            if kind.is_recorded:
                at_the_end.callback(run.scheduler.headway.close)
            receiver = None
            if kind.reader != "none":
                receiver = Receiver(folder / "channel")
                at_the_end.callback(receiver.close)
            contenders[name] = Timed(run, receiver if kind.reader == "reads" else None)
        samples = _rounds(contenders, rounds, steps)
    row: dict[str, Any] = {"running": running, "waiting": waiting}
    row["bare_ms"] = round(_cut(samples["bare"], 0) * 1e3, 4)
    low, middle = (_cut(samples["bare"], n) for n in (0, 1))
    for name in list(KINDS)[1:]:
        own = samples[name]
        row[name] = {
            "ratio": round(_cut(own, 0) / low, 4),
            "ratio_of_medians": round(_cut(own, 1) / middle, 4),
            "adds_us": round((_cut(own, 0) - low) * 1e6, 1),
        }
    return row


def _cut(values: list[float], number: int) -> float:
    """Return a quartile, 0 for the lower."""
    return statistics.quantiles(values, n=4)[number]


def _rounds(contenders: dict[str, Timed], rounds: int, steps: int) -> dict[str, list[float]]:
    for timed in contenders.values():
        timed.steps(20)
    samples: dict[str, list[float]] = {name: [] for name in contenders}
    gc.collect()
    gc.freeze()
    names = list(contenders)
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            samples[name].append(contenders[name].steps(steps))
    gc.unfreeze()
    return samples


def main() -> None:
    """Run the grid and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--grid", default="32x0,256x0,256x1000")
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--json", default=None)
    given = parser.parse_args()
    rows = []
    for cell in given.grid.split(","):
        running, waiting = (int(x) for x in cell.split("x"))
        rows.append(compare(running, waiting, given.rounds, given.steps))
        print(rows[-1], flush=True)
    line = json.dumps({"bench": "observe", "rows": rows})
    if given.json:
        Path(given.json).write_text(line + "\n", encoding="utf-8")
    print(line)
    sys.exit(1 if any(row["everything"]["ratio"] > BOUND for row in rows) else 0)


if __name__ == "__main__":
    main()
