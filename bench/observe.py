"""What being visible costs: a step of our scheduler with everything on, over one with all off.

Question: how much time do counts, stories, messages and the recording add to schedule() +
          update_from_output(), and does it matter whether readers read?
Command:  python bench/observe.py [--grid 32x0,256x0] [--json FILE]
Method:   vLLM's scheduler with Headway under the virtual clock, no model; R requests decode and
          W wait. Bare, watched with a reader that reads (what the page and /metrics need), with a
          reader that never does, and with none; recorded; telling its load to nobody, and to one
          that reads; and everything on, read and recorded, take turns in blocks of 50 steps, whose
          order turns round. Steps take 10 ms of virtual
          time, so each block sends one snapshot. Other work on the machine slows the blocks of a
          round alike: each is divided by the bare one of its own round, and the ratio is the
          median of the rounds. "again" is bare a second time: how far it is from 1 is what such a
          ratio is worth. What the API server and the recording's writer do is done by other
          processes and is not in it.
Bound:    1.05 for everything on, 1.01 for load that nobody asks for. Ends in one
          JSON line; exit code 1 when a bound is missed.
"""

from __future__ import annotations

import gc
import os
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest import mock

from stepping import Timed, cells, fill, options, report

from headway.engines.virtual import VirtualCall
from headway.engines.vllm.bare import Engine
from headway.engines.vllm.channel import CHANNEL_VARIABLE, LOAD_CHANNEL_VARIABLE, Receiver
from headway.engines.vllm.harness import VirtualRun

STEP_S = 0.01
OUTPUT_TOKENS = 6000
BOUNDS = {"everything": 1.05, "load": 1.01}


@dataclass(frozen=True)
class Kind:
    """What is on: whether counts or the load leave, who reads them, and whether it is recorded."""

    is_watched: bool = False
    tells_load: bool = False
    reader: Literal["none", "reads", "never reads"] = "none"
    is_recorded: bool = False


KINDS = {
    "bare": Kind(),
    "again": Kind(),
    "none": Kind(is_watched=True),
    "reads": Kind(is_watched=True, reader="reads"),
    "never reads": Kind(is_watched=True, reader="never reads"),
    "recorded": Kind(is_recorded=True),
    "load": Kind(tells_load=True),
    "load read": Kind(tells_load=True, reader="reads"),
    "everything": Kind(is_watched=True, tells_load=True, reader="reads", is_recorded=True),
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
    channels = {
        CHANNEL_VARIABLE: str(folder / "channel") if kind.is_watched else "",
        LOAD_CHANNEL_VARIABLE: str(folder / "load") if kind.tells_load else "",
    }
    with mock.patch.dict(os.environ, channels):
        run = VirtualRun(engine, lambda shape: STEP_S)
    tight = {"slo_ttft_ms": 60_000, "slo_tbt_ms": STEP_S * 500}
    return fill(
        run,
        (
            VirtualCall(f"r{i}", 0.0, 64, OUTPUT_TOKENS, tight if i % 2 else {"slo_tbt_ms": 100})
            for i in range(running)
        ),
        (
            VirtualCall(f"w{i}", 0.0, 200 + i % 300, 100, {"slo_ttft_ms": 3.6e6})
            for i in range(waiting)
        ),
    )


class Read(Timed):
    """Lets readers read after every block."""

    def __init__(self, run: VirtualRun, readers: list[Receiver]) -> None:
        super().__init__(run)
        self._readers = readers

    def steps(self, count: int) -> float:
        """Run *count* steps; return seconds a step spent in the scheduler."""
        spent_s = super().steps(count)
        for reader in self._readers:
            for _ in reader.receive():
                pass
        return spent_s


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
            sent = {"channel": kind.is_watched, "load": kind.tells_load}
            receivers = []
            if kind.reader != "none":
                receivers = [Receiver(folder / part) for part, is_sent in sent.items() if is_sent]
            for receiver in receivers:
                at_the_end.callback(receiver.close)
            contenders[name] = Read(run, receivers) if kind.reader == "reads" else Timed(run)
        samples = _rounds(contenders, rounds, steps)
    row: dict[str, Any] = {"running": running, "waiting": waiting}
    bare = samples["bare"]
    row["bare_ms"] = round(statistics.median(bare) * 1e3, 4)
    for name in list(KINDS)[1:]:
        pairs = list(zip(samples[name], bare, strict=True))
        ratios = statistics.quantiles((own / base for own, base in pairs), n=4)
        row[name] = {
            "ratio": round(ratios[1], 4),
            "quartiles": [round(ratios[0], 4), round(ratios[2], 4)],
            "adds_us": round(statistics.median(own - base for own, base in pairs) * 1e6, 1),
        }
    return row


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
    given = options(__doc__, "32x0,256x0,256x1000", 24).parse_args()
    rows = []
    for running, waiting in cells(given.grid):
        rows.append(compare(running, waiting, given.rounds, given.steps))
        print(rows[-1], flush=True)
    report("observe", rows, given.json)
    is_over = any(row[kind]["ratio"] > bound for row in rows for kind, bound in BOUNDS.items())
    sys.exit(int(is_over))


if __name__ == "__main__":
    main()
