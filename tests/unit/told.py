"""What readers are told of a scheduler, made up: for the board, the page and the commands."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, BinaryIO

from headway.engines.journal import Reader
from headway.metrics.board import Board
from headway.metrics.scheduler_counts import SchedulerCounts
from headway.policy.events import Arrived, Finished, StepDone, StepScheduled
from headway.policy.live_requests import LiveRequests
from headway.policy.log import Entry, encode_lines, rows_of
from headway.request import Request
from headway.slo import Slo

LIVE = LiveRequests()

CHAT = Slo(ttft_s=1.0, class_name="chat")


class Lines(Reader):
    """Writes what happens into a binary file, every line in full."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out

    def read(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            self._out.write(encode_lines(rows_of(entry)))

    def close(self) -> None:
        self._out.close()


class Silent:
    """A sender nobody listens to."""

    has_readers = False

    def find_readers(self) -> int:
        return 0

    def close(self) -> None:
        pass


class Kept:
    """A sender that keeps what it is given."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self.last: list[dict[str, Any]] = []
        self.dropped = {"reader_slow": 2}
        self.has_readers = True

    def find_readers(self) -> int:
        return 1

    def keep(self, story: dict[str, Any]) -> None:
        self.messages.append(json.loads(json.dumps(story)))

    def send(self, message: dict[str, Any], *, is_last: bool = False) -> None:
        self.messages.append(json.loads(json.dumps(message)))
        if is_last:
            self.last.append(self.messages[-1])

    def close(self) -> None:
        pass


def serve_one(
    observed: SchedulerCounts, name: str, slo: Slo, ttft_s: float, at_s: float = 0.0
) -> dict[str, Any] | None:
    """One request of one token, alone, that waits until its only step begins."""
    observed.arrived(Arrived(at_s, name, at_s, 10, 1, slo), 1)
    observed.scheduled(StepScheduled(at_s + ttft_s / 2, {name: 10}, {name: 0}))
    observed.done(StepDone(at_s + ttft_s, {name: 1}))
    request = Request(name, slo, at_s, 10, 1)
    request.num_output_tokens = 1
    return observed.finished(Finished(at_s + ttft_s, name, "stopped"), request)


def counts(observed: SchedulerCounts, unix_s: float, engine: str = "0") -> dict[str, Any]:
    message = {**observed.snapshot(LIVE, unix_s), "engine": engine, "unix_s": unix_s}
    return json.loads(json.dumps(message))  # type: ignore[no-any-return]


def late_row(name: str, late_s: float, breaks: str = "ttft", stage: str = "queued") -> Any:
    """A live request that is late."""
    return {"id": name, "class": "chat", "breaks": breaks, "late_s": late_s, "stage": stage,
            "lived_s": late_s + 1.0}  # fmt: skip


def late_board() -> Board:
    """Two schedulers with eight late requests each, of twenty; a request broken before."""
    board = Board()
    for engine in (0, 1):
        observed = SchedulerCounts("slack", "demote")
        message = counts(observed, 100.0, str(engine))
        rows = [late_row(f"late-{i}", float(i)) for i in range(15 + engine, engine, -2)]
        message["now"] |= {"late": rows, "num_late": 20}
        board.take(message)
    return board


def a_board() -> Board:
    """One promise kept and one broken."""
    observed, board = SchedulerCounts("slack", "demote"), Board()
    for name, ttft_s in (("late-[bold]1", 3.0), ("kept-1", 0.5)):
        message = serve_one(observed, name, CHAT, ttft_s, at_s=10.0 * len(board.broken))
        if message is not None:
            board.take({**message, "engine": "0", "unix_s": 1.0})
    board.take(counts(observed, 2.0))
    return board
