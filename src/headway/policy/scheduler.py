"""The policy core: events in, plans out. One object, whoever drives it.

``observe`` is the only way state changes; ``plan`` decides one step. Conflicting goals, in
the order they win: nothing is lost or starved; a promise alive is kept; the most promises
are kept together; the accelerator stays busy.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from headway.latency.model import LatencyModel, StepShape
from headway.policy.admit import Feasibility, KvGate, prefill_speed
from headway.policy.batch import Batcher
from headway.policy.chunk import Chunker
from headway.policy.context import OVERDUE_SHARE, PlanContext
from headway.policy.events import Arrived, Event, Finished, StepDone, StepScheduled
from headway.policy.kv.ledger import KvLedger
from headway.policy.live import LiveRequests
from headway.policy.plan import Cap, Preempt, Refuse, Reject, StepPlan
from headway.policy.predict import Predictor
from headway.policy.preempt import Preemptor
from headway.policy.prioritize import Prioritizer
from headway.policy.view import EngineView
from headway.request import Request, Standing, State

CERTAIN = 0.7
"""Share of a prediction that a promise must fall short of to be called hopeless."""

LATE_SHARE = 0.2
"""Share of the capacity that a lasting overload may spend on promises already lost."""

MAX_RETRY_AFTER_S = 600.0
"""No client is told to stay away longer than this."""

RECENT_TTFT_S = 60.0
"""How long a tight TTFT keeps the steps short after its last arrival."""


@dataclass(slots=True)
class Parts:
    """What a preset is made of; each part can be switched on its own.

    ``max_wait_s`` bounds how long a request may wait for its next token. A preset that heeds no
    promises treats every request as if it had none.
    """

    predictor: Predictor
    feasibility: Feasibility
    prioritizer: Prioritizer
    chunker: Chunker
    gate: KvGate
    batcher: Batcher
    preemptor: Preemptor
    max_wait_s: float = math.inf
    heeds_promises: bool = True


@dataclass(slots=True)
class InFlight:
    """A step the engine has begun: its shape, when, and what it was predicted to take."""

    shape: StepShape
    at_s: float
    predicted_s: float
    follows: bool


class Scheduler:
    """A named composition of parts over one table of live requests.

    Args:
        overload: ``"demote"`` serves a request whose promise does not fit as best effort;
            ``"refuse"`` answers 429 at once.
    """

    def __init__(
        self, name: str, parts: Parts, latency: LatencyModel, overload: str = "demote"
    ) -> None:
        self.name = name
        self.parts = parts
        self.latency = latency
        self.overload = overload
        self.live = LiveRequests()
        self.ledger = KvLedger()
        self._in_flight: deque[InFlight] = deque()
        self._step = 0
        self._step_s = 0.05
        self._last_done_s = -math.inf
        self._idle = True
        self._lagging: list[Request] = []
        self._tightest_ttft_s = math.inf
        self._tightest_seen_s = -math.inf
        self._claim_tokens = 300.0
        self._unchecked: list[Request] = []
        self._ended: deque[tuple[float, float, bool]] = deque(maxlen=32)
        self._work_per_s = 1.0

    # -- events ---------------------------------------------------------------------------

    def observe(self, event: Event) -> None:
        """Take in what happened. Events about unknown requests are ignored: they are gone."""
        if isinstance(event, StepDone):
            self._on_done(event)
        elif isinstance(event, StepScheduled):
            self._on_scheduled(event)
        elif isinstance(event, Arrived):
            self._on_arrived(event)
        else:
            self._on_finished(event)

    def _on_arrived(self, event: Arrived) -> None:
        request = Request(
            event.request_id,
            event.slo,
            event.arrived_at_s,
            event.num_prompt_tokens,
            event.max_output_tokens,
        )
        if not self.parts.heeds_promises:
            request.standing = Standing.UNPROMISED
        elif request.has_claim and self._is_hopeless(request):
            request.standing = Standing.LOST
            request.note(event.at_s, "promise lost: not even an empty server could keep it")
        request.queued_at_s = event.at_s
        request.predicted_output_tokens = self.parts.predictor.predict(request)
        request.due_at_s = self._due_at_s(request)
        request.work_s = self._work_s(request)
        self.live.arrive(request)
        self._unchecked.append(request)
        if request.has_claim:
            self._claim_tokens += 0.05 * (event.num_prompt_tokens - self._claim_tokens)
        ttft_s = event.slo.ttft_s if request.has_claim else None
        stale = event.at_s - self._tightest_seen_s > RECENT_TTFT_S
        if ttft_s is not None and (ttft_s <= self._tightest_ttft_s or stale):
            self._tightest_ttft_s = ttft_s
            self._tightest_seen_s = event.at_s
        elif stale:
            self._tightest_ttft_s = math.inf

    def _is_hopeless(self, request: Request) -> bool:
        """Return whether the machine is too slow for this promise whatever the load."""
        slo, num_tokens = request.slo, request.num_prompt_tokens
        prompt_s = CERTAIN * self.latency.predict_s(StepShape().with_chunk(num_tokens, 0))
        step_s = CERTAIN * self.latency.predict_s(StepShape(0, 0, 1, num_tokens))
        return (
            (slo.ttft_s is not None and prompt_s > slo.ttft_s)
            or (slo.tbt_s is not None and step_s > slo.tbt_s)
            or (slo.jct_s is not None and prompt_s > slo.jct_s)
        )

    def _work_s(self, request: Request) -> float:
        """Return the engine's seconds a request takes: its prompt, and its share of steps."""
        beside = max(len(self.live.decoding), 8)
        context = self.live.sum_decode_context_tokens
        decode_s = self.latency.predict_s(StepShape(0, 0, beside, context))
        chunk = StepShape(0, 0, beside, context).with_chunk(request.num_prompt_tokens, 0)
        prompt_s = self.latency.predict_s(chunk) - decode_s
        return prompt_s + request.predicted_output_tokens * decode_s / beside

    def _due_at_s(self, request: Request) -> float:
        """Return when the next token of a waiting request is due by its promise."""
        slo = request.slo
        due_s = math.inf
        if request.first_token_at_s is None:
            if slo.ttft_s is not None:
                due_s = request.arrived_at_s + slo.ttft_s
        elif slo.tbt_s is not None and request.last_token_at_s is not None:
            due_s = request.last_token_at_s + slo.tbt_s
        if slo.jct_s is not None:
            remaining = request.predicted_output_tokens - request.num_output_tokens
            decode_s = max(remaining, 1) * self._step_s
            due_s = min(due_s, request.arrived_at_s + slo.jct_s - decode_s)
        return due_s

    def _on_scheduled(self, event: StepScheduled) -> None:
        for request_id in event.preempted:
            victim = self.live.requests.get(request_id)
            if victim is not None and victim.state is State.RUNNING:
                self._preempted(victim, event.at_s)
        for request_id, num_cached_tokens in event.admitted.items():
            request = self.live.requests.get(request_id)
            if request is not None:
                self._started(request, num_cached_tokens, event.at_s)
        if event.num_scheduled_tokens:
            self._begun(event)

    def _begun(self, event: StepScheduled) -> None:
        """A step with work in it is in flight."""
        tokens = event.num_scheduled_tokens
        shape = StepShape()
        num_prefills = 0
        finished_prompts: list[Request] = []
        for request in self.live.prefilling.values():
            chunk = tokens.get(request.request_id, 0)
            if chunk:
                shape = shape.with_chunk(chunk, request.num_computed_tokens)
                num_prefills += 1
                request.num_computed_tokens += chunk
                if request.num_computed_tokens >= request.prefill_target_tokens:
                    finished_prompts.append(request)
        num_decodes = len(tokens) - num_prefills
        share = num_decodes / len(self.live.decoding) if self.live.decoding else 0.0
        shape = StepShape(
            shape.num_prefill_tokens,
            shape.num_prefills,
            num_decodes,
            int(self.live.sum_decode_context_tokens * share),
            shape.chunk_context,
        )
        for request in finished_prompts:
            self.live.start_decode(request)
        follows = not self._idle and bool(self._in_flight or self._last_done_s > -math.inf)
        self._idle = False
        predicted_s = self.latency.predict_s(shape)
        self._in_flight.append(InFlight(shape, event.at_s, predicted_s, follows))
        self._step += 1

    def _started(self, request: Request, num_cached_tokens: int, at_s: float) -> None:
        self.live.unqueue(request)
        request.prefill_target_tokens = request.num_tokens
        request.num_computed_tokens = num_cached_tokens
        waited_s = at_s - request.queued_at_s
        is_late = waited_s >= OVERDUE_SHARE * self.parts.max_wait_s
        request.is_leftover = not request.has_claim and not is_late
        request.move(State.RUNNING, at_s, f"started after waiting {waited_s:.3f} s")
        self.live.start_prefill(request)
        self.ledger.enter(request, self._step)

    def _preempted(self, request: Request, at_s: float) -> None:
        self.live.stop_running(request)
        self.ledger.leave(request.request_id)
        request.move(State.PREEMPTED, at_s, f"preempted, {request.kv_tokens} tokens of KV lost")
        request.num_computed_tokens = 0
        request.prefill_target_tokens = request.num_tokens
        request.num_preemptions += 1
        request.queued_at_s = at_s
        request.due_at_s = self._due_at_s(request)
        self.live.queue(request)

    def _on_done(self, event: StepDone) -> None:
        at_s = event.at_s
        if self._in_flight:
            step = self._in_flight.popleft()
            duration_s = at_s - (self._last_done_s if step.follows else step.at_s)
            self.latency.observe(step.shape, duration_s)
            self._step_s += 0.05 * (duration_s - self._step_s)
        requests = self.live.requests
        decoding = self.live.decoding
        lost: list[Request] = []
        num_emitting = 0
        for request_id, num_tokens in event.num_new_tokens.items():
            request = requests.get(request_id)
            if request is None:
                continue
            if request_id in decoding:
                num_emitting += 1
                self.live.sum_decode_context_tokens += num_tokens
            request.num_output_tokens += num_tokens
            last_s = request.last_token_at_s
            request.last_token_at_s = at_s
            if request.standing is Standing.PROMISED:
                if last_s is None:
                    lost_now = self._first_token(request, at_s)
                else:
                    tbt_s = request.slo.tbt_s
                    lost_now = tbt_s is not None and at_s - last_s > tbt_s and _late_gap(request)
                if lost_now:
                    lost.append(request)
            elif last_s is None:
                request.first_token_at_s = at_s
        for request in lost:
            self._lose(request, at_s, "a token came after its due time")
        if num_emitting < len(decoding):
            self._lagging = [
                r
                for r in decoding.values()
                if r.last_token_at_s is not None and r.last_token_at_s < at_s
            ]
        else:
            self._lagging = []
        self._last_done_s = at_s
        self._idle = not self.live.requests

    def _first_token(self, request: Request, at_s: float) -> bool:
        """Note a claim's first token; return whether it broke the promise."""
        request.first_token_at_s = at_s
        ttft_s = request.slo.ttft_s
        return ttft_s is not None and at_s - request.arrived_at_s > ttft_s

    def _on_finished(self, event: Finished) -> None:
        request = self.live.requests.get(event.request_id)
        if request is None:
            return
        if request.state is State.RUNNING:
            self.live.stop_running(request)
            self.ledger.leave(request.request_id)
        else:
            self.live.unqueue(request)
        request.move(State.FINISHED, event.at_s, event.reason)
        del self.live.requests[event.request_id]
        if event.reason in ("stopped", "length"):
            self.parts.predictor.learn(request)
            self._count_served(request, event.at_s)
        if not self.live.requests and not self._in_flight:
            self._idle = True

    def _count_served(self, request: Request, at_s: float) -> None:
        """Track the best rate at which work was done lately, in its own estimate."""
        ended = self._ended
        ended.append((at_s, request.work_s, request.is_leftover))
        if len(ended) == ended.maxlen and at_s > ended[0][0]:
            rate = sum(work_s for _, work_s, _ in ended) / (at_s - ended[0][0])
            self._work_per_s = max(rate, 0.999 * self._work_per_s)

    def _lose(self, request: Request, at_s: float, why: str) -> None:
        """The promise is broken: stop competing with those that can still be kept."""
        if request.standing is not Standing.PROMISED:
            return
        self.live.change_standing(request, Standing.LOST)
        request.note(at_s, f"promise lost: {why}")
        if request.state is State.RUNNING:
            self.ledger.enter(request, self._step)

    # -- plans ----------------------------------------------------------------------------

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
        preempt = self._fund_running(ctx)
        if not live.prefilling and not live.num_waiting:
            return self._decode_only(ctx, preempt, reject, cap)
        ctx.set_aside, ctx.pressure = self.parts.feasibility.set_aside(ctx, self.parts.chunker)
        if live.others and ctx.is_overdue(live.others[0]):
            ctx.pressure = 1.0
        refuse = self._refusals(ctx) if self.overload == "refuse" else self._overflow(ctx)
        ctx.gone.update(r.request_id for r in refuse)
        hold = self._hold(ctx)
        filled = self.parts.batcher.fill(
            ctx,
            self.parts.prioritizer.candidates(ctx),
            self.parts.chunker,
            self.parts.gate,
            self.parts.preemptor,
        )
        preempt = (*preempt, *filled.preempt)
        shape = filled.shape
        out = ctx.gone.union(hold)
        num_decodes = sum(i not in out for i in live.decoding) if out else len(live.decoding)
        if not filled.chunks and not ctx.shape.num_decodes and not self._in_flight:
            self._idle = True  # Nothing runs: the next step does not follow on this one.
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
            step_s=self._step_s,
            tightest_ttft_s=self._tightest_ttft_s,
            lagging_due_s=lagging_due_s,
            live=live,
            ledger=self.ledger,
            latency=self.latency,
            shape=shape,
            claim_tokens=self._claim_tokens,
            max_wait_s=self.parts.max_wait_s,
        )

    def _decode_only(
        self,
        ctx: PlanContext,
        preempt: tuple[Preempt, ...],
        reject: tuple[Reject, ...],
        cap: tuple[Cap, ...],
    ) -> StepPlan:
        return StepPlan(
            token_budget=max(len(self.live.decoding), 1),
            preempt=preempt,
            reject=reject,
            cap=cap,
            predicted_s=self.latency.predict_s(ctx.shape),
            promised_s=self.parts.chunker.upper_s(ctx, ctx.shape),
        )

    def _never_fit(self, view: EngineView) -> tuple[Reject, ...]:
        """Reject new requests whose prompt alone exceeds the whole cache."""
        if not self._unchecked:
            return ()
        capacity = view.num_total_blocks * view.block_size_tokens
        new, self._unchecked = self._unchecked, []
        return tuple(
            Reject(
                r.request_id,
                f"The prompt has {r.num_prompt_tokens} tokens; the KV cache holds {capacity}.",
            )
            for r in new
            if r.num_prompt_tokens + 1 > capacity and r.state is State.WAITING
        )

    def _outgrown(self, view: EngineView) -> tuple[Cap, ...]:
        """End a request that alone fills the whole cache: it can never take another token."""
        capacity = view.num_total_blocks * view.block_size_tokens
        if self.live.sum_decode_context_tokens < capacity:
            return ()
        return tuple(
            Cap(r.request_id, "its tokens fill the whole KV cache")
            for r in self.live.decoding.values()
            if r.num_tokens >= capacity
        )

    def _lose_overdue(self, now_s: float) -> None:
        """Waiting claims whose due time has passed cannot be kept any more."""
        claims = self.live.claims
        late: list[Request] = []
        for request in claims:
            if request.due_at_s >= now_s:
                break
            jct_s = request.slo.jct_s
            by_estimate = jct_s is not None and now_s <= request.arrived_at_s + jct_s
            if not by_estimate or _token_overdue(request, now_s):
                late.append(request)
        for request in late:
            self._lose(request, now_s, "its due time passed while it waited")

    def _repredict(self) -> None:
        """Requests that ran longer than predicted get a new prediction."""
        for request_id in self.ledger.everyone.overdue(self._step):
            request = self.live.requests[request_id]
            request.predicted_output_tokens = self.parts.predictor.predict(request)
            self.ledger.enter(request, self._step)

    def _fund_running(self, ctx: PlanContext) -> tuple[Preempt, ...]:
        """Set aside the blocks running requests need now; preempt when there are too few."""
        live, view = self.live, ctx.view
        free = view.num_free_blocks
        prompts = sum(
            ctx.blocks(r.prefill_target_tokens) - ctx.blocks(r.num_computed_tokens)
            for r in live.prefilling.values()
        )
        if free >= prompts + len(live.decoding) and not live.num_waiting:
            return ()
        size = view.block_size_tokens
        ahead = view.num_steps_in_flight - 1
        growing = {i for i, r in live.decoding.items() if (r.num_tokens + ahead) % size == 0}
        needed = len(growing)
        victims: list[Preempt] = []
        if needed > free:
            for victim in self.parts.preemptor.for_running(ctx):
                if needed <= free or live.num_running - len(victims) <= 1:
                    break
                if victim.request_id in ctx.gone:
                    continue
                ctx.gone.add(victim.request_id)
                victims.append(
                    Preempt(victim.request_id, "recompute", "running requests need its KV")
                )
                free += ctx.freed_blocks(victim)
                needed -= victim.request_id in growing
                if victim.request_id in live.prefilling:
                    prompts -= ctx.blocks(victim.prefill_target_tokens) - ctx.blocks(
                        victim.num_computed_tokens
                    )
        ctx.num_spare_blocks = max(free - needed - prompts, 0)
        return tuple(victims)

    def _hold(self, ctx: PlanContext) -> tuple[str, ...]:
        """Let best-effort decodes sit out when even without prompts the step is too long."""
        live = self.live
        if not live.num_unclaimed_decodes or not live.claim_gaps:
            return ()
        if self.parts.chunker.upper_s(ctx, ctx.shape) <= self.parts.chunker.step_limit_s(ctx):
            return ()
        held = [r for r in live.decoding.values() if not r.has_claim and not ctx.is_overdue(r)]
        context = sum(r.num_tokens for r in held)
        ctx.shape = StepShape(
            0, 0, ctx.shape.num_decodes - len(held), ctx.shape.sum_context_tokens - context
        )
        return tuple(r.request_id for r in held)

    def _refusals(self, ctx: PlanContext) -> tuple[Refuse, ...]:
        """Refuse waiting requests whose promise does not fit, before any token of theirs."""
        speed, _ = prefill_speed(ctx, self.parts.chunker)
        backlog_s = sum(r.remaining_prefill_tokens for r in self.live.claims) / speed
        retry_s = min(max(backlog_s, self._step_s), MAX_RETRY_AFTER_S)
        aside = (r for r in self.live.claims if r.request_id in ctx.set_aside)
        lost = (r for r in self.live.others if r.standing is Standing.LOST)
        return tuple(
            Refuse(r.request_id, retry_s, "The promise asked for cannot be kept now.")
            for r in (*aside, *lost)
            if r.state is State.WAITING and r.request_id not in ctx.gone
        )

    def _overflow(self, ctx: PlanContext) -> tuple[Refuse, ...]:
        """Refuse the newest lost requests that could not be served within the longest wait.

        Until they are overdue the lost get the capacity no claim wants; then they go first,
        which may take :data:`LATE_SHARE` of it. Both at the rates the server has shown.
        Without this bound a lasting overload would leave no promise kept once the first
        request is overdue. Who asked for no promise is never refused.
        """
        live, longest_s = self.live, self.parts.max_wait_s
        if longest_s == math.inf or not live.others:
            return ()
        leftover_share = sum(leftover for _, _, leftover in self._ended) / max(len(self._ended), 1)
        share = min(leftover_share + LATE_SHARE, OVERDUE_SHARE)
        excess_s = live.others_work_s - share * longest_s * self._work_per_s
        if excess_s <= 0:
            return ()
        retry_s = min(live.others_work_s / self._work_per_s, MAX_RETRY_AFTER_S)
        refuse: list[Refuse] = []
        for request in reversed(live.others):
            if excess_s <= 0:
                break
            if request.request_id in ctx.gone:
                continue
            if request.standing is Standing.LOST and request.state is State.WAITING:
                excess_s -= request.work_s
                why = "The server is overloaded beyond its longest wait."
                refuse.append(Refuse(request.request_id, retry_s, why))
        return tuple(refuse)

    # -- checks ---------------------------------------------------------------------------

    def validate(self) -> None:
        """Recompute all books; raise :class:`~headway.errors.InvariantError` when off."""
        self.live.validate()
        self.ledger.validate({r.request_id: r for r in self.live.running()})


def _late_gap(request: Request) -> bool:
    """Count one late gap; return whether it was one too many."""
    request.num_late_gaps += 1
    return request.num_late_gaps > request.late_gaps_allowed()


def _token_overdue(request: Request, now_s: float) -> bool:
    """Return whether the promised first token itself is late, whatever the estimates say."""
    ttft_s = request.slo.ttft_s
    return (
        ttft_s is not None
        and request.first_token_at_s is None
        and now_s > request.arrived_at_s + ttft_s
    )
