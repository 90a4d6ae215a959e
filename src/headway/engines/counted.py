"""A reader of the journal that counts all it reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from headway.engines.journal import Reader
from headway.metrics.scheduler_counts import SchedulerCounts
from headway.policy.events import Arrived, Finished, StepDone, SteppedAside, StepScheduled
from headway.policy.log import Entry
from headway.policy.scheduler import Scheduler
from headway.request import Request


class Counted(Reader):
    """Counts what a core hears and decides.

    Args:
        unix_at_zero_s: See :class:`~headway.metrics.scheduler_counts.SchedulerCounts`.
    """

    def __init__(self, core: Scheduler, unix_at_zero_s: float = 0.0) -> None:
        self._core = core
        self._requests: dict[str, Request] = {}
        self.observed = SchedulerCounts(core.name, core.known.overload, unix_at_zero_s)

    def read(self, entries: Sequence[Entry]) -> None:
        """Count what happened."""
        observed = self.observed
        for entry in entries:
            if isinstance(entry, tuple):
                observed.planned(entry[2], entry[0], entry[3])
            elif isinstance(entry, StepDone):
                observed.done(entry)
            elif isinstance(entry, StepScheduled):
                observed.scheduled(entry)
            elif isinstance(entry, SteppedAside):
                observed.num_asides += 1
            elif isinstance(entry, Arrived):
                request = self._core.live.requests[entry.request_id]
                self._requests[entry.request_id] = request
                observed.arrived(entry, request.predicted_output_tokens)
            elif isinstance(entry, Finished):
                ended = self._requests.pop(entry.request_id, None)
                if ended is not None:
                    self.ended(ended, observed.finished(entry, ended))

    def ended(self, request: Request, broken: dict[str, Any] | None) -> None:
        """A request left and was counted; *broken* tells about a broken promise."""
