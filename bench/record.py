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

import gc
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from stepping import Timed, cells, clocked, fill, options, report

from headway.engines.virtual import VirtualCall
from headway.engines.vllm.bare import Engine
from headway.engines.vllm.harness import VirtualRun
from headway.engines.vllm.recorder import Recording

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
    # Names as long as vLLM's own: "chatcmpl-", a UUID and eight letters.
    names = (f"chatcmpl-{i:032x}-{i:08x}" for i in range(running + waiting))
    return fill(
        VirtualRun(engine, lambda shape: STEP_S),
        [
            VirtualCall(next(names), 0.0, 64, OUTPUT_TOKENS, {"slo_tbt_ms": 100})
            for _ in range(running)
        ],
        [
            VirtualCall(next(names), 0.0, 200 + i % 300, 100, {"slo_ttft_ms": 3.6e6})
            for i in range(waiting)
        ],
    )


class Recorded(Timed):
    """Knows of the scheduler's time what the recorder's own code took, and lets the writer work.

    Attributes:
        own_s: Seconds a step in the recorder, of each block.
    """

    def __init__(self, run: VirtualRun) -> None:
        super().__init__(run)
        self.own_s: list[float] = []
        self.recording: Recording = run.scheduler.headway._readers[0]
        self._told: list[float] = []
        self._inner: list[float] = []
        for name in ("observe", "plan"):
            clocked(run.scheduler.headway.core, name, self._inner.append)
            clocked(run.scheduler.headway, name, self._told.append)
        self._clock_s = _price_of_the_clock()

    def steps(self, count: int) -> float:
        """Run *count* steps; return seconds a step spent in the scheduler."""
        self._told.clear()
        self._inner.clear()
        spent_s = super().steps(count)
        own_s = sum(self._told) - sum(self._inner) - len(self._told) * self._clock_s
        self.own_s.append(own_s / count)
        while self.recording._out._waiting:
            time.sleep(0.002)
            self.recording._out.send()
        return spent_s


def _price_of_the_clock() -> float:
    """Return what one call seems to take that does nothing but be clocked twice."""
    nothing = SimpleNamespace(call=lambda: None)
    inner: list[float] = []
    told: list[float] = []
    clocked(nothing, "call", inner.append)
    clocked(nothing, "call", told.append)
    prices_s = []
    for _ in range(20):
        inner.clear()
        told.clear()
        for _ in range(100):
            nothing.call()
        prices_s.append((sum(told) - sum(inner)) / 100)
    return min(prices_s)


def compare(running: int, waiting: int, rounds: int, steps: int) -> dict[str, Any]:
    """Return milliseconds a bare step takes, the ratio of a recorded one, and what was written."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "rec"
        runs = {"bare": loaded(running, waiting, None), "on": loaded(running, waiting, folder)}
        recorded = Recorded(runs["on"])
        timed: dict[str, Timed] = {"bare": Timed(runs["bare"]), "on": recorded}
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
        runs["on"].scheduler.headway.close()
    own_s = statistics.quantiles(recorded.own_s[1:], n=4)[0]
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
        "lines": dict(recorded.recording.counts),
        "own_us": round(own_s * 1e6, 1),
        "own_share": round(own_s / low, 4),
    }


def main() -> None:
    """Measure every cell of the grid."""
    given = options(__doc__, "32x0,256x0,256x200", 40).parse_args()
    rows = []
    for running, waiting in cells(given.grid):
        rows.append(compare(running, waiting, given.rounds, given.steps))
        print(rows[-1], flush=True)
    report("record", rows, given.json)


if __name__ == "__main__":
    main()
