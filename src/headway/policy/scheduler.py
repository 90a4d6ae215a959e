"""The policy core: events in, plans out. One object, whoever drives it.

``observe`` is the only way state changes; ``plan`` decides one step. Conflicting goals, in
the order they win: nothing is lost or starved; a promise alive is kept; the most promises
are kept together; the accelerator stays busy.
"""

from __future__ import annotations

from headway.latency.model import LatencyModel
from headway.policy.events import Event
from headway.policy.live_requests import LiveRequests
from headway.policy.plan import StepPlan
from headway.policy.planner import Planner
from headway.policy.view import EngineView


class Scheduler:
    """What is known, and who plans by it.

    Args:
        overload: See :class:`~headway.policy.known.Known`.
    """

    def __init__(
        self, name: str, planner: Planner, latency: LatencyModel, overload: str = "demote"
    ) -> None:
        self.name = name
        self.planner = planner
        self.known = planner.known(latency, overload)

    @property
    def live(self) -> LiveRequests:
        """Every unfinished request."""
        return self.known.live

    def observe(self, event: Event) -> None:
        """Take in what happened."""
        self.known.observe(event)

    def plan(self, view: EngineView, now_s: float) -> StepPlan:
        """Decide the next step; see :class:`~headway.policy.plan.StepPlan`."""
        return self.planner.plan(self.known, view, now_s)

    def validate(self) -> None:
        """Recompute all books; raise :class:`~headway.errors.InvariantError` when off."""
        self.known.validate()
