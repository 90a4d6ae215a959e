"""What recording costs: a step of our scheduler recorded, over one that is not, same run.

Question: how much time does --record add to schedule() + update_from_output(), and is anything
          lost?
Command:  python bench/record.py [--grid 32x0,256x0] [--rounds 40] [--json FILE]
Method:   vLLM's scheduler with Headway under the virtual clock, no model; R requests decode and W
          wait. One that records and one that does not take turns in blocks of 50 steps, whose order
          turns round. After each block the writer gets the time that a real engine's steps would
          give it, so that nothing is dropped that would not be. CPU time of the scheduler's thread;
          other work on the machine only adds to it, so the lower quartiles of the blocks are
          compared. Beside that "own" is what the recorder's own code takes, clocked inside the same
          steps, less what the clock takes: on a busy machine the steadier figure of the two.
Bound:    1.05, and own_share 0.05. Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from headway.engines.virtual import Call
from headway.engines.vllm.bare import Engine
from headway.engines.vllm.harness import VirtualRun
from headway.engines.vllm.recorder import LiveRecorder

STEP_S = 0.02
OUTPUT_TOKENS = 6000
WARM_UP_STEPS = 20


def loaded(running: int, waiting: int, folder: Path | None) -> VirtualRun:
    """Return a run in which *running* requests decode and *waiting* queue; recorded in *folder*."""
    settings: dict[str, Any] = {"policy": "headway"}
    if folder is not None:
        settings |= {"record": str(folder)}
    engine = Engine(
        num_blocks=running * (OUTPUT_TOKENS // 16 + 20),
        max_num_batched_tokens=8192,
        max_num_seqs=running,
        headway=settings,
    )
    run = VirtualRun(engine, lambda shape: STEP_S)
    for i in range(running):
        # As long as vLLM's own: "chatcmpl-", a UUID and eight letters.
        run.add(Call(f"chatcmpl-{i:032x}-{i:08x}", 0.0, 64, OUTPUT_TOKENS, {"slo_tbt_ms": 100}))
    while sum(r.num_output_tokens > 0 for r in run.scheduler.running) < running:
        run.step()
    for i in range(waiting):
        name = f"chatcmpl-{i:032x}-waiting0"
        run.add(Call(name, run.clock.time_s, 200 + i % 300, 100, {"slo_ttft_ms": 3.6e6}))
    return run


class Timed:
    """Charges the scheduler's two calls to a stopwatch."""

    def __init__(self, run: VirtualRun) -> None:
        self._run = run
        self._spent_s = 0.0
        self.own_s: list[float] = []
        self._told_s = self._inner_s = self._clock_s = 0.0
        self._num_told = 0
        scheduler = run.scheduler
        for name in ("schedule", "update_from_output"):
            self._wrap(scheduler, name, "_spent_s")
        self._recorder = scheduler.headway
        if isinstance(self._recorder, LiveRecorder):
            for name in ("observe", "plan"):
                self._wrap(self._recorder._inner, name, "_inner_s")
                self._wrap(self._recorder, name, "_told_s")
            self._clock_s = self._price_of_the_clock()

    def _wrap(self, owner: Any, name: str, account: str) -> None:
        inner = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            begun_s = time.thread_time()
            try:
                return inner(*args, **kwargs)
            finally:
                took_s = time.thread_time() - begun_s
                setattr(self, account, getattr(self, account) + took_s)
                self._num_told += account == "_told_s"

        setattr(owner, name, timed)

    def _price_of_the_clock(self) -> float:
        """Return what one call seems to take that does nothing but be clocked twice."""
        nothing = SimpleNamespace(call=lambda: None)
        self._wrap(nothing, "call", "_inner_s")
        self._wrap(nothing, "call", "_told_s")
        prices_s = []
        for _ in range(20):
            self._told_s = self._inner_s = 0.0
            for _ in range(100):
                nothing.call()
            prices_s.append((self._told_s - self._inner_s) / 100)
        return min(prices_s)

    def steps(self, count: int) -> float:
        """Run *count* steps; return seconds a step spent in the scheduler."""
        self._spent_s = self._told_s = self._inner_s = 0.0
        self._num_told = 0
        for _ in range(count):
            self._run.step()
        if isinstance(self._recorder, LiveRecorder):
            own_s = self._told_s - self._inner_s - self._num_told * self._clock_s
            self.own_s.append(own_s / count)
            while self._recorder._out._waiting:
                time.sleep(0.002)
                self._recorder._out.send()
        return self._spent_s / count


def compare(running: int, waiting: int, rounds: int, steps: int) -> dict[str, Any]:
    """Return milliseconds a bare step takes, the ratio of a recorded one, and what was written."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "rec"
        runs = {"bare": loaded(running, waiting, None), "on": loaded(running, waiting, folder)}
        timed = {name: Timed(run) for name, run in runs.items()}
        for one in timed.values():
            one.steps(WARM_UP_STEPS)
        samples: dict[str, list[float]] = {name: [] for name in timed}
        order = list(timed)
        gc.collect()
        gc.disable()
        for _ in range(rounds):
            for name in order:
                samples[name].append(timed[name].steps(steps))
            order.append(order.pop(0))
        gc.enable()
        recorder = runs["on"].scheduler.headway
        recorder.close()
    own_s = statistics.quantiles(timed["on"].own_s[1:], n=4)[0]
    (low, middle), (own_low, own_middle) = (
        statistics.quantiles(samples[name], n=4)[:2] for name in ("bare", "on")
    )
    return {
        "running": running,
        "waiting": waiting,
        "bare_ms": round(low * 1e3, 4),
        "ratio": round(own_low / low, 4),
        "ratio_of_medians": round(own_middle / middle, 4),
        "adds_us": round((own_low - low) * 1e6, 1),
        "lines": dict(recorder.recorded),
        "own_us": round(own_s * 1e6, 1),
        "own_share": round(own_s / low, 4),
    }


def main() -> None:
    """Measure every cell of the grid."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--grid", default="32x0,256x0,256x200")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--json", default=None)
    given = parser.parse_args()
    rows = []
    for cell in given.grid.split(","):
        running, waiting = (int(x) for x in cell.split("x"))
        rows.append(compare(running, waiting, given.rounds, given.steps))
        print(rows[-1], flush=True)
    line = json.dumps({"bench": "record", "rows": rows})
    if given.json:
        Path(given.json).write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
