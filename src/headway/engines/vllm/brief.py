"""What a recording is told: steps together, without what repeats (``writer.py`` adds it again)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from headway.policy.events import StepDone, StepScheduled
from headway.policy.log import Entry, encode_lines, row_of, rows_of


class Out(Protocol):
    """Where the lines go."""

    def write(self, lines: bytes, num_lines: int) -> bool:
        """Take whole lines in, or drop them; return whether they were taken."""


class Brief:
    """What is to be recorded: encoded some steps at a time, what repeats left out.

    A step whose event differs from the one before in its instant alone, as while the same
    requests decode, is a line of that instant; the writer writes it out in full. After lines
    were dropped the next ones are full again.
    """

    def __init__(self, out: Out) -> None:
        self._out = out
        # Of the last lines; None where the next one has to be full.
        self._scheduled: Mapping[str, int] | None = None
        self._emitted: Mapping[str, int] | None = None

    def write(self, entries: Sequence[Entry]) -> None:
        """Encode what happened and hand it on."""
        rows: list[dict[str, Any]] = []
        for entry in entries:
            if isinstance(entry, StepDone):
                tokens = entry.num_new_tokens
                repeats = same(tokens, self._emitted)
                rows.append({"event": "StepDone", "at_s": entry.at_s} if repeats else row_of(entry))
                self._emitted = tokens
            elif isinstance(entry, StepScheduled):
                rows.append(self._scheduled_row(entry))
            else:
                rows += rows_of(entry)
        if not self._out.write(encode_lines(rows), len(rows)):
            self._scheduled = self._emitted = None

    def _scheduled_row(self, event: StepScheduled) -> dict[str, Any]:
        if event.admitted or event.preempted:
            self._scheduled = None
            return row_of(event)
        last, self._scheduled = self._scheduled, event.num_scheduled_tokens
        if same(self._scheduled, last):
            return {"event": "StepScheduled", "at_s": event.at_s}
        return row_of(event)


def same(tokens: Mapping[str, int], others: Mapping[str, int] | None) -> bool:
    """Whether two are equal and in one order: a recording is the same to the byte."""
    return tokens == others and list(tokens) == list(others)
