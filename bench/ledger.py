"""What the KV books cost: ledger and admission over stock's schedule() + update_from_output().

Question: is the future of the cache cheap to keep, and does its cost grow gently with the queue?
Command:  python bench/ledger.py --json bench/ledger.json
Method:   the real scheduler classes under the virtual clock, no model; R requests decode, W wait
          and the cache is what is short, so that admission is decided in every step. Every call
          into the KV ledger, the gate and the predictor is charged to one stopwatch, nested
          calls once; stock runs the same load in turns, and medians are compared. What the
          stopwatch itself takes is charged to us.
Ends in one JSON line.
"""

from __future__ import annotations

import gc
import statistics
import time
from typing import Any

from plan import loaded
from stepping import Timed, cells, options, report

BOOKS = (
    "enter", "leave", "overdue", "pencil", "rub_out", "peak_with_tokens", "has_reservation_for",
)  # fmt: skip


class Stopwatch:
    """Charges calls of several objects to one sum, the outermost of nested calls alone."""

    def __init__(self) -> None:
        self.spent_s = 0.0
        self.calls = 0
        self._depth = 0

    def watch(self, owner: Any, names: tuple[str, ...]) -> None:
        """Wrap the methods of *owner* that exist among *names*."""
        for name in names:
            if hasattr(owner, name):
                setattr(owner, name, self._timed(getattr(owner, name)))

    def _timed(self, inner: Any) -> Any:
        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._depth:
                return inner(*args, **kwargs)
            self._depth = 1
            self.calls += 1
            begun = time.thread_time()
            try:
                return inner(*args, **kwargs)
            finally:
                self.spent_s += time.thread_time() - begun
                self._depth = 0

        return timed


def compare(policy: str, running: int, waiting: int, rounds: int, steps: int) -> dict[str, Any]:
    """Return milliseconds a step: stock's whole scheduler, and our books."""
    stock = Timed(loaded("stock", running, waiting, promised=True, kv_is_short=True))
    run = loaded(policy, running, waiting, promised=True, kv_is_short=True)
    core, watch = run.scheduler.headway, Stopwatch()
    watch.watch(core.known.finishes, BOOKS)
    watch.watch(core.planner.gate, ("begin", "fits", "admitted"))
    watch.watch(core.known.lengths, ("predict", "learn"))
    for _ in range(10):
        run.step()
        stock.run.step()
    gc.collect()
    gc.freeze()
    watch.calls = 0
    ours_ms, stock_ms = [], []
    for _ in range(rounds):
        stock_ms.append(1e3 * stock.steps(steps))
        watch.spent_s = 0.0
        for _ in range(steps):
            run.step()
        ours_ms.append(1e3 * watch.spent_s / steps)
    ratios = [mine / theirs for mine, theirs in zip(ours_ms, stock_ms, strict=True)]
    return {
        "policy": policy,
        "running": running,
        "waiting": waiting,
        "stock_ms": round(statistics.median(stock_ms), 4),
        "books_ms": round(statistics.median(ours_ms), 4),
        "share": round(statistics.median(ratios), 4),
        "asked_a_step": round(watch.calls / (rounds * steps), 1),
    }


def main() -> None:
    """Run the grid and print one JSON line."""
    parser = options(__doc__, "256x1000,256x16000,1024x1000", 9, 20)
    parser.add_argument("--policy", default="cacheopt,headway,slack")
    given = parser.parse_args()
    rows = []
    for policy in given.policy.split(","):
        for running, waiting in cells(given.grid):
            row = compare(policy, running, waiting, given.rounds, given.steps)
            print(row, flush=True)
            rows.append(row)
    report("ledger", rows, given.json)


if __name__ == "__main__":
    main()
