"""The policy core: events in, plans out. One object, whoever drives it.

``observe`` is the only way state changes; ``plan`` decides one step. Conflicting goals, in
the order they win: nothing is lost or starved; a promise alive is kept; the most promises
are kept together; the accelerator stays busy.
"""

from __future__ import annotations

import math
from heapq import heappop

from headway.latency.model import LatencyModel, StepShape
from headway.policy.context import PlanContext
from headway.policy.overload import overflow, refusals
from headway.policy.parts import Parts
from headway.policy.plan import Cap, Preempt, Reject, StepPlan
from headway.policy.preempt import NOBODY, Preemptor
from headway.policy.tracker import Tracker
from headway.policy.view import EngineView
from headway.request import Request, State

__all__ = ["Parts", "Scheduler"]

PRESSED_DECODE_SHARE = 0.6
"""Share of the step that decodes may take while prompts of claims wait for the rest."""


class Scheduler(Tracker):
    """A named composition of parts over one table of live requests.

    Args:
        overload: ``"demote"`` serves a request whose promise does not fit as best effort;
            ``"refuse"`` answers 429 at once.
    """

    def __init__(
        self, name: str, parts: Parts, latency: LatencyModel, overload: str = "demote"
    ) -> None:
        super().__init__(parts, latency)
        self.name = name
        self.overload = overload

    def plan(self, view: EngineView, now_s: float) -> StepPlan:
        """Decide the next step; see :class:`~headway.policy.plan.StepPlan`."""
        live = self.live
        reject = self._never_fit(view)
        cap = self._outgrown(view)
        self._lose_overdue(now_s)
        self._repredict()
        ctx = self._context(view, now_s)
        ctx.gone.update(r.request_id for r in reject)
        ctx.gone.update(r.request_id for r in cap)
        preemptor = self.parts.preemptor if view.may_preempt else NOBODY
        funder = self.parts.funder
        if funder is None:
            preempt = self._fund_running(ctx, preemptor)
        else:
            preempt = funder.fund(ctx, self.parts.predictor, preemptor)
        holder = self.parts.holder
        nobody_held = holder is None or not live.decoding
        if nobody_held and not live.prefilling and not live.num_waiting:
            return self._decode_only(ctx, preempt, reject, cap)
        ctx.set_aside, ctx.pressure = self.parts.feasibility.set_aside(ctx, self.parts.chunker)
        self.price.pressure = ctx.pressure
        if live.others and ctx.is_overdue(live.others[0]):
            ctx.pressure = 1.0
        refuse = (
            refusals(self, ctx, self.parts.chunker)
            if self.overload == "refuse"
            else overflow(self, ctx)
        )
        ctx.gone.update(r.request_id for r in refuse)
        hold = self._hold(ctx) if holder is None else holder.hold(ctx)
        filled = self.parts.batcher.fill(
            ctx,
            self.parts.prioritizer.candidates(ctx),
            self.parts.chunker,
            self.parts.gate,
            preemptor,
        )
        self.ledger.rub_out()
        preempt = (*preempt, *filled.preempt)
        shape = filled.shape
        out = ctx.gone.union(hold)
        num_decodes = sum(i not in out for i in live.decoding) if out else len(live.decoding)
        if not filled.chunks:
            self._note_idle(ctx)
        return StepPlan(
            token_budget=num_decodes + shape.num_prefill_tokens,
            chunks=tuple(filled.chunks),
            chunk_cap_tokens=filled.chunk_cap_tokens,
            hold=tuple(i for i in hold if i not in ctx.gone),
            preempt=preempt,
            refuse=refuse,
            reject=reject,
            cap=cap,
            demoted=tuple(sorted(ctx.set_aside)),
            predicted_s=self.latency.predict_s(shape),
            promised_s=self.parts.chunker.upper_s(ctx, shape),
        )

    def _context(self, view: EngineView, now_s: float) -> PlanContext:
        live = self.live
        self.ledger.layout = view.layout
        ref_s = now_s if self._idle or self._last_done_s == -math.inf else self._last_done_s
        for step in self._in_flight:
            ref_s = max(ref_s, step.at_s) + step.predicted_s
        lagging_due_s = math.inf
        for request in self._lagging:
            if request.has_claim and request.slo.tbt_s is not None and request.last_token_at_s:
                due_s = request.last_token_at_s + request.slo.tbt_s
                if due_s > ref_s:
                    lagging_due_s = min(lagging_due_s, due_s)
        shape = StepShape(0, 0, len(live.decoding), live.sum_decode_context_tokens)
        return PlanContext(
            view=view,
            now_s=now_s,
            ref_s=ref_s,
            step=self._step,
            step_s=self.step_s,
            max_step_s=self._longest.largest(0.0),
            price=self.price,
            tightest_ttft_s=self._tightest_ttft_s,
            lagging_due_s=lagging_due_s,
            live=live,
            ledger=self.ledger,
            latency=self.latency,
            shape=shape,
            claim_tokens=self._claim_tokens,
            max_wait_s=self.parts.max_wait_s,
            swap=self.parts.swap,
        )

    def _decode_only(
        self,
        ctx: PlanContext,
        preempt: tuple[Preempt, ...],
        reject: tuple[Reject, ...],
        cap: tuple[Cap, ...],
    ) -> StepPlan:
        self._note_idle(ctx)
        return StepPlan(
            token_budget=max(len(self.live.decoding), 1),
            preempt=preempt,
            reject=reject,
            cap=cap,
            predicted_s=self.latency.predict_s(ctx.shape),
            promised_s=self.parts.chunker.upper_s(ctx, ctx.shape),
        )

    def _note_idle(self, ctx: PlanContext) -> None:
        """Where nothing runs, the next step does not follow on the one before."""
        if not ctx.shape.num_decodes and not self._in_flight:
            self._idle = True

    def _never_fit(self, view: EngineView) -> tuple[Reject, ...]:
        """Reject new requests whose prompt alone exceeds the whole cache."""
        if not self._unchecked:
            return ()
        new, self._unchecked = self._unchecked, []
        layout, total = view.layout, view.num_total_blocks
        return tuple(
            Reject(
                r.request_id,
                f"The prompt has {r.num_prompt_tokens} tokens;"
                f" the KV cache holds {layout.room_tokens(0, total)}.",
            )
            for r in new
            if layout.blocks(r.num_prompt_tokens + 1) > total and r.state is State.WAITING
        )

    def _outgrown(self, view: EngineView) -> tuple[Cap, ...]:
        """End a request that alone fills the whole cache: it can never take another token."""
        layout, total = view.layout, view.num_total_blocks
        if self.live.sum_decode_context_tokens < layout.tokens(total):
            return ()
        return tuple(
            Cap(r.request_id, "its tokens fill the whole KV cache")
            for r in self.live.decoding.values()
            if layout.kept_blocks(r.num_tokens + 1) > total
        )

    def _lose_overdue(self, now_s: float) -> None:
        """Claims past their due time while they wait, or past their promised end, are lost."""
        late: list[Request] = []
        for request in self.live.claims:
            if request.due_at_s >= now_s:
                break
            # When the last token is due tells only by estimate when the next one is.
            if request.slo.jct_s is None or request.is_past_due(now_s):
                late.append(request)
        for request in late:
            self._lose(request, now_s, "its due time passed while it waited")
        while self._ends and self._ends[0][0] < now_s:
            known = self.live.requests.get(heappop(self._ends)[1])
            if known is not None and known.is_past_due(now_s):  # A name may come again.
                self._lose(known, now_s, "the time promised to its end passed")

    def _repredict(self) -> None:
        """Requests that ran longer than predicted get a new prediction."""
        for request_id in self.ledger.everyone.overdue(self._step):
            request = self.live.requests[request_id]
            request.predicted_output_tokens = self.parts.predictor.predict(request)
            self.ledger.enter(request, self._step)

    def _fund_running(self, ctx: PlanContext, preemptor: Preemptor) -> tuple[Preempt, ...]:
        """Set aside the blocks running requests need now; preempt when there are too few."""
        live, view, layout = self.live, ctx.view, ctx.layout
        free = view.num_free_blocks
        prompts = ctx.prompt_blocks()
        most = prompts + layout.most_growth * len(live.decoding)
        if free >= most and not live.num_waiting:
            ctx.num_spare_blocks = free - most
            return ()
        growing = ctx.growth_blocks()
        needed = sum(growing.values())
        victims: list[Preempt] = []
        if needed > free:
            ctx.num_short_blocks = needed - free
            for victim in preemptor.for_running(ctx):
                if needed <= free or live.num_running - len(victims) <= 1:
                    break
                if victim.request_id in ctx.gone:
                    continue
                victims.append(ctx.preempt(victim, "running requests need its KV"))
                free += ctx.freed_blocks(victim)
                needed -= growing.get(victim.request_id, 0)
                if victim.request_id in live.prefilling:
                    prompts -= ctx.missing_blocks(victim)
        ctx.num_spare_blocks = max(free - needed - ctx.draft_blocks() - prompts, 0)
        return tuple(victims)

    def _hold(self, ctx: PlanContext) -> tuple[str, ...]:
        """Let streams without a promised gap sit out while they make the step too long."""
        live, latency = self.live, self.latency
        if not live.claim_gaps:
            return ()
        pressed = bool(live.claims) or any(r.has_claim for r in live.prefilling.values())
        share = PRESSED_DECODE_SHARE if pressed else 1.0
        most_s = share * self.parts.chunker.step_limit_s(ctx) / latency.margin(False, 0.05)
        shape = ctx.shape
        if latency.predict_s(shape) <= most_s:
            return ()
        held: list[str] = []
        for request in self._loose(ctx):
            held.append(request.request_id)
            context = shape.sum_context_tokens - request.num_tokens
            shape = StepShape(0, 0, shape.num_decodes - 1, context)
            if latency.predict_s(shape) <= most_s:
                break
        ctx.shape = shape
        return tuple(held)

    def _loose(self, ctx: PlanContext) -> list[Request]:
        """Return decodes that can wait a step, the most patient first."""
        loose: list[tuple[float, int, Request]] = []
        for request in self.live.decoding.values():
            if not request.has_claim:
                if not ctx.is_overdue(request):
                    loose.append((-math.inf, -request.order, request))
            elif request.slo.tbt_s is None and request.slo.jct_s is not None:
                left_s = request.arrived_at_s + request.slo.jct_s - ctx.now_s
                spare_s = left_s - 2.0 * request.steps_left * self.step_s
                if spare_s > 0:
                    loose.append((-spare_s, -request.order, request))
        return [request for *_, request in sorted(loose, key=lambda item: item[:2])]
