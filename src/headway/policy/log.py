"""Recorded runs: events in and plans out as JSON lines, replayed bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from headway.errors import UserError
from headway.policy.events import Arrived, Event, Finished, StepDone, StepScheduled
from headway.policy.live import LiveRequests
from headway.policy.plan import StepPlan
from headway.policy.scheduler import Scheduler
from headway.policy.view import EngineView
from headway.slo import Slo

EVENTS = {cls.__name__: cls for cls in (Arrived, StepScheduled, StepDone, Finished)}


def event_line(event: Event) -> str:
    """Return one event as a JSON line."""
    return json.dumps({"event": type(event).__name__, **asdict(event)})


def plan_line(plan: StepPlan) -> str:
    """Return one plan as a JSON line."""
    return json.dumps({"plan": asdict(plan)})


def question_line(view: EngineView, now_s: float) -> str:
    """Return one call of ``plan`` as a JSON line."""
    return json.dumps({"view": asdict(view), "now_s": now_s})


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
        fields["slo"] = Slo(**fields["slo"])
    if kind is StepScheduled:
        fields["preempted"] = tuple(fields["preempted"])
    return kind(**fields)


def events_in(rows: Iterable[tuple[str, dict[str, Any]]]) -> Iterator[Event]:
    """Yield the events of a recording.

    Args:
        rows: Place (for the error sentence) and parsed line, as a reader of JSONL yields them.

    Raises:
        UserError: A line is neither an event, nor a view, nor a plan.
    """
    for where, row in rows:
        if "event" in row:
            try:
                yield parse_event(row)
            except (TypeError, KeyError):
                raise UserError(f"{where}: not an event of a recording.") from None
        elif not {"view", "plan"} & row.keys():
            raise UserError(f"{where}: expected a line of a recording, with event, view or plan.")


class Recorder:
    """A scheduler that writes down what it hears and decides; otherwise the same object."""

    def __init__(self, inner: Scheduler, path: str | Path) -> None:
        self._inner = inner
        try:
            # Open for the life of the scheduler: there is no block to leave.
            self._file = Path(path).open("w", encoding="utf-8", buffering=1 << 16)  # noqa: SIM115
        except OSError as error:
            raise UserError(f"Cannot write the recording {path}: {error.strerror}.") from None

    @property
    def live(self) -> LiveRequests:
        """The inner scheduler's live requests."""
        return self._inner.live

    def observe(self, event: Event) -> None:
        """Write the event, then pass it on."""
        self._file.write(event_line(event) + "\n")
        self._inner.observe(event)

    def plan(self, view: EngineView, now_s: float) -> StepPlan:
        """Write question and answer around the inner scheduler's plan."""
        plan = self._inner.plan(view, now_s)
        self._file.write(question_line(view, now_s) + "\n" + plan_line(plan) + "\n")
        return plan

    def close(self) -> None:
        """Flush and close the recording."""
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def replay(lines: Iterable[str], scheduler: Scheduler) -> Iterator[str]:
    """Feed a recording to *scheduler*; yield its plans as lines, in order."""
    for line in lines:
        row = json.loads(line)
        if "event" in row:
            scheduler.observe(parse_event(row))
        elif "view" in row:
            yield plan_line(scheduler.plan(EngineView(**row["view"]), row["now_s"]))
