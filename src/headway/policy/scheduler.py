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
from headway.policy.quote import Quote, ServerLoad, load_of, quote_of
from headway.policy.view import EngineView
from headway.slo import Slo


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
        self._view: EngineView | None = None  # What the last plan was shown.

    @property
    def live(self) -> LiveRequests:
        """Every unfinished request."""
        return self.known.live

    def observe(self, event: Event) -> None:
        """Take in what happened."""
        self.known.observe(event)

    def plan(self, view: EngineView, now_s: float) -> StepPlan:
        """Decide the next step; see :class:`~headway.policy.plan.StepPlan`."""
        self._view = view
        return self.planner.plan(self.known, view, now_s)

    def quote(self, num_prompt_tokens: int, known_prefix: int, slo: Slo, now_s: float) -> Quote:
        """Say whether a request that came now could be promised *slo*; nothing changes.

        Args:
            known_prefix: Tokens of its prompt whose KV is in the server's cache.
        """
        return quote_of(self.known, self._view, num_prompt_tokens, known_prefix, slo, now_s)

    def load(self, now_s: float) -> ServerLoad:
        """Say how busy the server is; nothing changes."""
        return load_of(self.known, self._view, now_s)

    def validate(self) -> None:
        """Recompute all books; raise :class:`~headway.errors.InvariantError` when off."""
        self.known.validate()
