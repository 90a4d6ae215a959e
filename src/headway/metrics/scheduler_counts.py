"""What a running scheduler tells about itself: events and plans in, snapshots out.

Pure: no clock, no socket. Lives in the scheduler's process, so its cost a step must not grow
with the number of running requests in Python code; see :mod:`headway.metrics.lateness_book`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from headway.metrics.budgets import ErrorBudgets
from headway.metrics.chance import Chances, is_kept
from headway.metrics.define import is_bounded
from headway.metrics.kv_split import kv_split
from headway.metrics.lateness_book import LatenessBook
from headway.metrics.overdue import overdue
from headway.metrics.request_lateness import Lateness, LiveLateness
from headway.metrics.server_load import IDLE
from headway.metrics.tally import (
    PLAN_BOUNDS_S,
    RATIO_BOUNDS,
    STEP_BOUNDS_S,
    Histogram,
    Tallies,
    outcome_of,
    promise_of,
)
from headway.metrics.tenant_counts import TenantCounts
from headway.policy.events import Arrived, Finished, StepDone, StepScheduled
from headway.policy.live_requests import LiveRequests
from headway.policy.plan import StepPlan
from headway.policy.quote import ServerLoad
from headway.policy.view import EngineView
from headway.request import Request

SCHEMA = 1


class SchedulerCounts:
    """Counts of one scheduler since its start. Instants are its driver's clock, in seconds.

    Args:
        unix_at_zero_s: What the wall clock says when that clock says 0, for error budgets that
            outlive the process.
    """

    def __init__(self, policy: str = "", overload: str = "", unix_at_zero_s: float = 0.0) -> None:
        self.tallies = Tallies()
        self.book = LatenessBook(self.tallies)
        self.policy, self.overload = policy, overload
        self.preemptions = {"recompute": 0, "swap": 0}
        self.num_asides = 0
        self.plan_s = Histogram(PLAN_BOUNDS_S)
        self.steps = {kind: Histogram(STEP_BOUNDS_S) for kind in ("decode", "mixed")}
        self.ratios = {kind: Histogram(RATIO_BOUNDS) for kind in ("decode", "mixed")}
        self.beyond = {"decode": 0, "mixed": 0}
        self.bounded = {"decode": 0, "mixed": 0}
        self.tokens = {"computed": 0, "output": 0}
        self.lengths = {"covered": 0, "exceeded": 0}
        self.chances = Chances(self.book.live)
        self.unix_at_zero_s = unix_at_zero_s
        self.budgets = ErrorBudgets()
        self.tenants = TenantCounts()
        self.longest_step_s = 0.0
        self._plan = StepPlan(0)
        self._view: EngineView | None = None
        self.lateness: Lateness | None = None
        """Of the request that ended last; ``None`` where nothing was known of it."""
        self.chance: float | None = None
        """What that one was told when it started; ``None`` where it was told nothing."""
        self._in_flight: deque[tuple[str, StepPlan, float, EngineView | None]] = deque()

    # -- what happens -----------------------------------------------------------------------

    def planned(self, plan: StepPlan, view: EngineView, took_s: float) -> None:
        """The core answered with *plan* after *took_s* seconds."""
        self.plan_s.add(took_s)
        self._plan, self._view = plan, view
        self.chances.planned(plan.chunks)

    def arrived(self, event: Arrived, predicted_output_tokens: int) -> None:
        """A request arrived and the core predicted its length."""
        live = self.book.arrived(
            event.request_id, event.slo, event.arrived_at_s, event.num_prompt_tokens
        )
        live.predicted_output_tokens = predicted_output_tokens
        live.tally.offered += 1
        slo = event.slo
        live.tally.saw(slo)
        live.payer = self.tenants.arrived(slo.tenant)
        self.budgets.aim("class", slo.class_name, slo.target)
        if slo.tenant:
            self.budgets.aim("tenant", slo.tenant, slo.tenant_target)

    def scheduled(self, event: StepScheduled) -> None:
        """A step was begun, or requests lost their place."""
        for request_id in event.preempted:
            swapped = request_id in event.swapped
            self.preemptions["swap" if swapped else "recompute"] += 1
            self.book.preempted(request_id, event.at_s, swapped=swapped)
        tokens = event.num_scheduled_tokens
        if not tokens:
            return
        plan, admitted = self._plan, event.admitted
        num_tokens = sum(tokens.values())
        kind = "mixed" if num_tokens > len(tokens) or admitted else "decode"
        bound_s = bound_of(plan)
        self._in_flight.append((kind, plan, bound_s, self._view))
        self.book.scheduled(event.at_s, admitted, bound_s)
        self.chances.started(admitted, event.at_s)
        for request_id in admitted:
            started = self.book.live.get(request_id)
            self.tenants.started(request_id, started.payer if started is not None else None)
        self.tenants.scheduled(event.at_s, tokens, num_tokens)
        self.tokens["computed"] += num_tokens

    def done(self, event: StepDone) -> None:
        """The oldest step in flight ended."""
        if not self._in_flight:
            return
        kind, plan, bound_s, view = self._in_flight.popleft()
        free_tokens = view.layout.tokens(view.num_free_blocks) if view is not None else 0
        emitted = event.num_new_tokens
        self.tenants.done(event.at_s, emitted)
        self.book.done(event.at_s, emitted, free_tokens)
        took_s = self.book.last_step_s
        self.steps[kind].add(took_s)
        if plan.predicted_s > 0:
            self.ratios[kind].add(took_s / plan.predicted_s)
        if bound_s < math.inf:
            self.bounded[kind] += 1
            self.beyond[kind] += took_s > bound_s
        if took_s > self.longest_step_s:
            self.longest_step_s = took_s
        self.tokens["output"] += sum(emitted.values())

    def finished(self, event: Finished, request: Request) -> dict[str, Any] | None:
        """A request left; return what to tell about it when it broke its promise."""
        self.lateness = self.chance = None
        live = self.book.live.get(event.request_id)
        if live is None:
            return None
        outcome = outcome_of(event.reason)
        ended_well = outcome == "finished"
        num_output_tokens = request.num_output_tokens
        lateness = self.book.finished(
            event.request_id,
            event.at_s,
            num_output_tokens,
            ended_well=ended_well,
            was_refused=outcome in ("refused", "rejected"),
        )
        self.lateness = lateness
        if not self.book.live and self._view is not None:
            # Nobody holds KV any more; the next plan, which will see it, may be long in coming.
            self._view = replace(self._view, num_free_blocks=self._view.num_total_blocks)
        kept = is_kept(lateness, ended_well=ended_well)
        self.chance = self.chances.ended(event.request_id, event.at_s, kept)
        tally = live.tally
        tally.outcomes[outcome] += 1
        tally.output_tokens += num_output_tokens
        if lateness.longest_gap_s is not None:
            tally.pause.add(lateness.longest_gap_s)
        if ended_well:
            covered = num_output_tokens <= live.predicted_output_tokens
            self.lengths["covered" if covered else "exceeded"] += 1
        self._account(live, outcome, num_output_tokens, event.at_s, lateness.attained)
        if not live.slo.is_promise:
            return None
        tally.promised += 1
        if lateness.attained:
            tally.attained += 1
            tally.attained_tokens += num_output_tokens
            return None
        for promise in lateness.broke:
            tally.broke[promise] += 1
        if lateness.total_late_s > 0:
            tally.late += 1
            for cause, seconds in lateness.late_s.items():
                tally.late_s[cause] += seconds
        return _told(live, lateness, request, outcome, event.at_s)

    def _account(
        self, live: LiveLateness, outcome: str, num_output_tokens: int, at_s: float, is_kept: bool
    ) -> None:
        """Count the end of a request for who pays and for who has a target."""
        slo, request_id = live.slo, live.request_id
        self.tenants.stopped((request_id,))
        if live.payer is not None:
            started = live.first_start_at_s is not None
            live.payer.ended(
                outcome,
                live.num_prompt_tokens if started else 0,
                num_output_tokens,
                is_kept if slo.is_promise else None,
            )
        if slo.is_promise:
            for kind, name in (("class", slo.class_name), ("tenant", slo.tenant)):
                self.budgets.ended(kind, name, at_s + self.unix_at_zero_s, is_kept=is_kept)

    # -- what is told -----------------------------------------------------------------------

    def snapshot(
        self,
        live: LiveRequests,
        at_s: float,
        multipliers: Mapping[str, float] | None = None,
        load: ServerLoad = IDLE,
    ) -> dict[str, Any]:
        """Return all counts and the present state as JSON's types; costs a scan of the live.

        Counts grow for ever; ``now`` is the present, and ``now.longest_step_s`` the longest
        step since the last snapshot.

        Args:
            multipliers: What each group with a target weighs beside the others, by its name.
            load: How busy the scheduler says it is.
        """
        longest_s, self.longest_step_s = self.longest_step_s, 0.0
        num_late, late = overdue(self.book.live.values(), at_s)
        return {
            "schema": SCHEMA,
            "kind": "counts",
            "at_s": at_s,
            "policy": self.policy,
            "overload": self.overload,
            "counts": {
                "classes": {n: t.snapshot() for n, t in self.tallies.by_class.items()},
                "preemptions": dict(self.preemptions),
                "asides": self.num_asides,
                "plan": self.plan_s.snapshot(),
                "steps": {kind: h.snapshot() for kind, h in self.steps.items()},
                "ratios": {kind: h.snapshot() for kind, h in self.ratios.items()},
                "beyond": dict(self.beyond),
                "bounded": dict(self.bounded),
                "tokens": dict(self.tokens),
                "lengths": dict(self.lengths),
                "chances": self.chances.calibration.snapshot(),
                "tenants": self.tenants.snapshot(),
            },
            "budgets": self.budgets.snapshot(at_s + self.unix_at_zero_s),
            "now": {
                "running": live.num_running,
                "waiting": live.num_waiting + len(live.hindered),
                "longest_step_s": longest_s,
                "kv": kv_split(live, self._view),
                "load": asdict(load),
                "num_late": num_late,
                "late": late,
                "multipliers": dict(multipliers or {}),
            },
        }


def bound_of(plan: StepPlan) -> float:
    """Return the seconds a step may take by its plan, ``inf`` without a bound."""
    return plan.promised_s if is_bounded(plan.predicted_s, plan.promised_s) else math.inf


def _told(
    live: LiveLateness, lateness: Lateness, request: Request, outcome: str, at_s: float
) -> dict[str, Any]:
    """Return the story of a request that broke its promise; no text of its prompt is in it."""
    arrived_at_s = live.arrived_at_s
    story = [[at - arrived_at_s, what] for at, what in request.story]
    if live.elsewhere_s:
        story.insert(1, [live.elsewhere_s, "reached this server"])
    return {
        "schema": SCHEMA,
        "kind": "broken",
        "id": live.request_id,
        "class": live.slo.class_name,
        "outcome": outcome,
        "promise": promise_of(live.slo),
        "ended_at_s": at_s,
        "lived_s": at_s - arrived_at_s,
        "ttft_s": lateness.ttft_s,
        "jct_s": lateness.jct_s,
        "tpot_s": lateness.tpot_s,
        "pause_s": lateness.longest_gap_s,
        "broke": list(lateness.broke),
        "num_gaps": lateness.num_gaps,
        "num_late_gaps": lateness.num_late_gaps,
        "num_prompt_tokens": live.num_prompt_tokens,
        "num_output_tokens": request.num_output_tokens,
        "num_preemptions": live.num_preemptions,
        "late_s": lateness.total_late_s,
        "by_cause_s": {cause: seconds for cause, seconds in lateness.late_s.items() if seconds},
        "story": story,
    }
