"""Recorded runs: events in and plans out as JSON lines, replayed bit for bit.

Lines are encoded by msgspec, which writes a step of 256 requests in 15 microseconds where
``json`` takes 145: a live server records inside its scheduling loop. Numbers read back are the
same to the last bit; a number that is not finite is written as ``null``.

A line holds ``event``, ``view`` (a call of ``plan``, with ``now_s``) or ``plan`` (its answer). What
a live server keeps may also hold ``start`` (who scheduled, first line of each file) and ``gap``
(lines were dropped here: a recording with a gap is a workload still, but does not replay bit for
bit). No line holds any text of a prompt or an answer: the core never sees one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, get_args

import msgspec

from headway.errors import UserError
from headway.policy.events import Arrived, Event, StepScheduled
from headway.policy.plan import StepPlan
from headway.policy.scheduler import Scheduler
from headway.policy.view import EngineView
from headway.slo import Slo

EVENTS = {cls.__name__: cls for cls in get_args(Event)}

_FIELDS = {cls: tuple(f.name for f in fields(cls)) for cls in EVENTS.values()}
_ENCODER = msgspec.json.Encoder()


Entry = Event | tuple[EngineView, float, StepPlan, float]
"""An event; or a call of ``plan``: what it was shown, when, its answer, and the seconds it took."""


def event_line(event: Event) -> str:
    """Return one event as a JSON line."""
    return _ENCODER.encode(row_of(event)).decode()


def plan_line(plan: StepPlan) -> str:
    """Return one plan as a JSON line."""
    return _ENCODER.encode({"plan": plan}).decode()


def question_line(view: EngineView, now_s: float) -> str:
    """Return one call of ``plan`` as a JSON line."""
    return _ENCODER.encode({"view": view, "now_s": now_s}).decode()


def row_of(event: Event) -> dict[str, Any]:
    """Return what the line of an event holds."""
    kind = type(event)
    row: dict[str, Any] = {"event": kind.__name__}
    for name in _FIELDS[kind]:
        row[name] = getattr(event, name)
    if isinstance(event, Arrived):
        row["slo"] = event.slo.stamp()  # An endless pause as a text: as a number it is null.
    return row


def rows_of(entry: Entry) -> tuple[dict[str, Any], ...]:
    """Return what the lines of an entry hold: one of an event, two of a plan."""
    if isinstance(entry, tuple):
        view, now_s, plan, _ = entry
        return {"view": view, "now_s": now_s}, {"plan": plan}
    return (row_of(entry),)


def encode_lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Return what lines hold as JSON lines, their ends included."""
    return _ENCODER.encode_lines(rows)


def parse_event(row: dict[str, Any]) -> Event:
    """Return the event a line describes.

    Raises:
        UserError: The line names no known event.
    """
    fields = dict(row)
    kind = EVENTS.get(fields.pop("event"))
    if kind is None:
        raise UserError(f"{row['event']!r} is no event; known are {', '.join(EVENTS)}.")
    if kind is Arrived:
        slo, pause_s = fields["slo"], fields["slo"].get("pause_s")  # An endless one is a text.
        fields["slo"] = Slo(**{**slo, "pause_s": None if pause_s is None else float(pause_s)})
    if kind is StepScheduled:
        fields["preempted"] = tuple(fields["preempted"])
        fields["swapped"] = tuple(fields.get("swapped", ()))  # Older recordings do not tell.
    return kind(**fields)


def replay(lines: Iterable[str], scheduler: Scheduler) -> Iterator[str]:
    """Feed a recording to *scheduler*; yield its plans as lines, in order.

    Raises:
        UserError: Lines are missing: the plans after a gap would be others.
    """
    for line in lines:
        row = json.loads(line)
        if "event" in row:
            scheduler.observe(parse_event(row))
        elif "view" in row:
            yield plan_line(scheduler.plan(EngineView(**row["view"]), row["now_s"]))
        elif "gap" in row:
            raise UserError("Lines are missing here: what has a gap does not replay bit for bit.")
