"""What a plan is made of, whoever makes it: its decisions in order, and what none may leave out.

A planner fills in the decisions: who is set aside, who sits out, whose prompt gets tokens. The
default is :mod:`headway.policy.decide`; published rules are composed in :mod:`headway.kit`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from headway.latency.model import LatencyModel
from headway.policy.admit import Gate
from headway.policy.batch import StepFill
from headway.policy.chunk import Chunker
from headway.policy.draft import Draft, SwapChoice
from headway.policy.inputs import Inputs
from headway.policy.known import Known
from headway.policy.overload import overflow, refusals
from headway.policy.plan import PlanPrices, Preempt, SharedPrices, StepPlan
from headway.policy.preempt import NOBODY, Preemptor
from headway.policy.room import fund_running, never_fit, outgrown
from headway.policy.view import EngineView


class Planner(ABC):
    """Decides steps from what is known.

    One planner serves one run: parts may remember earlier plans, and its state shares the
    predictor and the ledger with it. So each plan is asked for once.

    Attributes:
        chunker: Bounds the prompt work of one step.
        gate: Decides whether a waiting request may start now.
        preemptor: Orders the running requests from the most dispensable.
        swap: Decides how a victim loses its KV.
    """

    chunker: Chunker
    gate: Gate
    preemptor: Preemptor
    swap: SwapChoice

    @abstractmethod
    def known(self, latency: LatencyModel, overload: str) -> Known:
        """Return the state this planner goes by, empty."""

    @abstractmethod
    def begin(self, draft: Draft) -> None:
        """Make the parts ready for a new plan: what they remember of the last is forgotten."""

    @abstractmethod
    def set_aside(self, draft: Draft) -> tuple[set[str], float]:
        """Return the claims that do not fit now, and the pressure on prefill (0 to 1)."""

    def hold(self, draft: Draft) -> tuple[str, ...]:
        """Return decodes that sit the step out, by default none.

        ``draft.shape`` is left with those that run.
        """
        return ()

    @abstractmethod
    def fill(self, draft: Draft, preemptor: Preemptor) -> StepFill:
        """Return the prompt work of the step, and whom it preempts."""

    def fund(self, draft: Draft, preemptor: Preemptor) -> tuple[Preempt, ...]:
        """Find the KV that running requests need; see :func:`~headway.policy.room.fund_running`."""
        return fund_running(draft, preemptor)

    def decides_decodes(self, draft: Draft) -> bool:
        """Return whether a step may be more than its decodes though nobody has a prompt to compute.

        Only where streams sit steps out for each other's sake.
        """
        return False

    def plan(self, known: Known, view: EngineView, now_s: float) -> StepPlan:
        """Decide the next step; see :class:`~headway.policy.plan.StepPlan`."""
        live = known.live
        reject, cap = never_fit(known, view), outgrown(known, view)
        known.lose_overdue(now_s)
        known.predict_again()
        known.turns.saw(view)
        if known.tenants.is_shared:
            known.tenants.weigh(now_s, view.layout.tokens(view.num_total_blocks))
        draft = Draft(inputs_of(known, view, now_s), self.swap)
        draft.gone.update(r.request_id for r in reject)
        draft.gone.update(r.request_id for r in cap)
        self.begin(draft)
        preemptor = self.preemptor if view.may_preempt else NOBODY
        preempt = self.fund(draft, preemptor)
        if not live.prefilling and not live.num_waiting and not self.decides_decodes(draft):
            return StepPlan(
                token_budget=max(len(live.decoding), 1),
                preempt=preempt,
                reject=reject,
                cap=cap,
                predicted_s=known.latency.predict_s(draft.shape),
                promised_s=self.chunker.upper_s(draft, draft.shape),
            )
        draft.set_aside, draft.pressure = self.set_aside(draft)
        known.price.pressure = draft.pressure
        if live.others and draft.given.is_overdue(live.others[0]):
            draft.pressure = 1.0
        refuse_whom = refusals if known.overload == "refuse" else overflow
        refuse = refuse_whom(known, draft)
        draft.gone.update(r.request_id for r in refuse)
        hold = self.hold(draft)
        filled = self.fill(draft, preemptor)
        shape, out = filled.shape, draft.gone.union(hold)
        num_decodes = sum(i not in out for i in live.decoding) if out else len(live.decoding)
        return StepPlan(
            token_budget=num_decodes + shape.num_prefill_tokens,
            chunks=tuple(filled.chunks),
            chunk_cap_tokens=filled.chunk_cap_tokens,
            hold=tuple(i for i in hold if i not in draft.gone),
            preempt=(*preempt, *filled.preempt),
            refuse=refuse,
            reject=reject,
            cap=cap,
            demoted=tuple(sorted(draft.set_aside)),
            predicted_s=known.latency.predict_s(shape),
            promised_s=self.chunker.upper_s(draft, shape),
            prices=prices_of(draft),
        )


def prices_of(draft: Draft) -> PlanPrices:
    """Return what a plan reckoned with, for its line in the log."""
    given = draft.given
    times, heavy = given.targets.times, given.heavy
    if times or heavy:
        gap_s = given.price.least_gap_s
        return SharedPrices(draft.per_token, gap_s, dict(times), tuple(sorted(heavy)))
    return PlanPrices(draft.per_token, given.price.least_gap_s)


def inputs_of(known: Known, view: EngineView, now_s: float) -> Inputs:
    """Return what a plan made now goes by; changes nothing."""
    ref_s = known.pace.begins_at_s(now_s)
    lagging_due_s = math.inf
    for request in known.lagging:
        gap_s = request.promised_gap_s
        if request.has_claim and gap_s is not None and request.last_token_at_s:
            due_s = request.last_token_at_s + gap_s
            if due_s > ref_s:
                lagging_due_s = min(lagging_due_s, due_s)
    return Inputs(
        view=view,
        now_s=now_s,
        ref_s=ref_s,
        step=known.pace.step,
        step_s=known.pace.step_s,
        price=known.price,
        live=known.live,
        latency=known.latency,
        max_step_s=known.pace.max_step_s,
        lagging_due_s=lagging_due_s,
        claim_tokens=max(known.claim_tokens, 1.0),
        max_wait_s=known.max_wait_s,
        targets=known.targets,
        tenants=known.tenants,
    )
