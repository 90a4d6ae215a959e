"""What chances promises were told, and what became of them."""

from __future__ import annotations

from typing import Any

from headway.engines.counted import Counted
from headway.metrics.deciles import rows_of
from headway.policy.scheduler import Scheduler
from headway.request import Request
from headway.study.run_outcome import RunOutcome


class ToldChances(Counted):
    """Keeps the chance of each request that was told one, and counts what became of it."""

    def __init__(self, core: Scheduler) -> None:
        super().__init__(core)
        self._chances: dict[str, float] = {}

    def ended(self, request: Request, broken: dict[str, Any] | None) -> None:
        """Keep the chance."""
        if self.observed.chance is not None:
            self._chances[request.request_id] = self.observed.chance

    def added_to(self, served: RunOutcome) -> RunOutcome:
        """Return what an engine hands back, with what was told."""
        served.chances = self._chances
        served.calibration = rows_of(self.observed.chances.calibration.snapshot())
        return served
