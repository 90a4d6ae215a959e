"""What the core knows: every event lands here, and nothing else changes state."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from heapq import heappush

from headway.kit.parts import Parts
from headway.latency.model import LatencyModel, StepShape
from headway.policy.accepted import Accepted
from headway.policy.appointments import Appointments
from headway.policy.context import OVERDUE_SHARE
from headway.policy.events import (
    Arrived,
    CannotStart,
    Event,
    Finished,
    PrefixFound,
    StepDone,
    SteppedAside,
    StepScheduled,
)
from headway.policy.kv.ledger import KvLedger
from headway.policy.live import LiveRequests
from headway.policy.price import StepPrice
from headway.policy.recent import LongestRecent
from headway.request import Request, Standing, State

CERTAIN = 0.7
"""Share of a prediction that a promise must fall short of to be called hopeless."""

RECENT_TTFT_S = 60.0
"""How long the tightest TTFT of late is remembered."""


@dataclass(slots=True)
class InFlight:
    """A step the engine has begun: its shape, when, and what it was predicted to take."""

    shape: StepShape
    at_s: float
    predicted_s: float
    follows: bool


class Tracker:
    """The table of live requests, the ledger and the clockwork, kept by events."""

    def __init__(self, parts: Parts, latency: LatencyModel) -> None:
        self.parts = parts
        self.latency = latency
        self.live = LiveRequests()
        self.ledger = KvLedger(parts.lending)
        self._in_flight: deque[InFlight] = deque()
        self._step = 0
        self.step_s = 0.05
        self._longest = LongestRecent()
        self._last_done_s = -math.inf
        self._idle = True
        self._lagging: list[Request] = []
        self._tightest_ttft_s = math.inf
        self._tightest_seen_s = -math.inf
        self._claim_tokens = 300.0
        self.price = StepPrice()
        self.accepted = Accepted()
        self._unchecked: list[Request] = []
        self._ends: list[tuple[float, str]] = []  # A heap of when promised ends are due.
        self.ended: deque[tuple[float, float, bool]] = deque(maxlen=32)
        self.work_per_s = 1.0
        self.num_learned_prompt_tokens = 0
        self.appointments = Appointments()

    def observe(self, event: Event) -> None:
        """Take in what happened. Events about unknown requests are ignored: they are gone."""
        if isinstance(event, StepDone):
            self._on_done(event)
        elif isinstance(event, StepScheduled):
            self._on_scheduled(event)
        elif isinstance(event, Arrived):
            self._on_arrived(event)
        elif isinstance(event, PrefixFound):
            self._on_found(event)
        elif isinstance(event, CannotStart):
            self._on_cannot_start(event)
        elif isinstance(event, SteppedAside):
            for request_id in event.planned:
                if request := self.live.requests.get(request_id):
                    request.note(event.at_s, "not started as planned: the engine decides a step")
        else:
            self._on_finished(event)

    def _on_arrived(self, event: Arrived) -> None:
        request = event.request()
        if not self.parts.heeds_promises:
            request.standing = Standing.UNPROMISED
        elif request.has_claim and self.is_hopeless(request):
            request.standing = Standing.LOST
            request.note(event.at_s, "promise lost: not even an empty server could keep it")
        request.queued_at_s = event.at_s
        request.predicted_output_tokens = self.parts.predictor.predict(request)
        request.tokens_a_step = self.accepted.of(request.slo.class_name)
        request.due_at_s = self._due_at_s(request)
        request.work_s = self._work_s(request)
        request.is_expected = self.appointments.keeps(event)
        self.live.arrive(request)
        self._unchecked.append(request)
        if request.has_claim:
            self._claim_tokens += 0.05 * (request.remaining_prefill_tokens - self._claim_tokens)
            self.price.learn(request, event.at_s)
        if event.slo.jct_s is not None:
            heappush(self._ends, (event.arrived_at_s + event.slo.jct_s, event.request_id))
        ttft_s = event.slo.ttft_s if request.has_claim else None
        stale = event.at_s - self._tightest_seen_s > RECENT_TTFT_S
        if ttft_s is not None and (ttft_s <= self._tightest_ttft_s or stale):
            self._tightest_ttft_s = ttft_s
            self._tightest_seen_s = event.at_s
        elif stale:
            self._tightest_ttft_s = math.inf

    def _on_found(self, event: PrefixFound) -> None:
        """Take in what the prefix cache holds of those who wait."""
        for request_id, (num_found, num_held) in event.tokens.items():
            request = self.live.requests.get(request_id)
            if request is None or request.state is State.RUNNING:
                continue
            request.num_found_tokens, request.num_held_tokens = num_found, num_held
            self.live.change_work(request, self._work_s(request))
            self._hope_again(request, event.at_s)
        for request_id, (computed_by, num_common) in event.coming.items():
            request = self.live.requests.get(request_id)
            if request is not None:
                request.computed_by, request.num_common_tokens = computed_by, num_common

    def _on_cannot_start(self, event: CannotStart) -> None:
        """Take in who waits for what no plan can give, and whose KV was loaded meanwhile."""
        for request_id, why in event.why.items():
            request = self.live.requests.get(request_id)
            if request is None or request.state is State.RUNNING:
                continue
            request.num_computed_tokens = event.num_loaded_tokens.get(request_id, 0)
            if request.num_computed_tokens:
                request.num_found_tokens = request.num_held_tokens = 0
            self.live.hinder(request, why)
            request.note(event.at_s, f"cannot start: {why}" if why else "could start now")
            if not why:
                self.live.change_work(request, self._work_s(request))
                self._hope_again(request, event.at_s)

    def _hope_again(self, request: Request, at_s: float) -> None:
        """Compete again, if what the cache holds now makes a promise possible that was not."""
        was_hopeless = request.standing is Standing.LOST and not request.num_output_tokens
        if was_hopeless and not request.is_past_due(at_s) and not self.is_hopeless(request):
            self.live.change_standing(request, Standing.PROMISED)
            request.note(at_s, "its prompt is in the cache now: the promise may be kept")

    def is_hopeless(self, request: Request) -> bool:
        """Return whether the machine is too slow for this promise whatever the load."""
        slo, num_tokens = request.slo, request.num_prompt_tokens
        tbt_s = request.promised_gap_s
        prompt = StepShape().with_chunk(request.remaining_prefill_tokens, request.num_ready_tokens)
        prompt_s = CERTAIN * self.latency.predict_s(prompt)
        step_s = CERTAIN * self.latency.predict_s(StepShape(0, 0, 1, num_tokens))
        return (
            (slo.ttft_s is not None and prompt_s > slo.ttft_s)
            or (tbt_s is not None and step_s > tbt_s)
            or (slo.jct_s is not None and prompt_s > slo.jct_s)
        )

    def _work_s(self, request: Request) -> float:
        """Return the engine's seconds a request takes: its prompt, and its share of steps."""
        beside = max(len(self.live.decoding), 8)
        context = self.live.sum_decode_context_tokens
        decode_s = self.latency.predict_s(StepShape(0, 0, beside, context))
        chunk = StepShape(0, 0, beside, context).with_chunk(
            max(request.num_prompt_tokens - request.num_ready_tokens, 0), request.num_ready_tokens
        )
        prompt_s = self.latency.predict_s(chunk) - decode_s
        num_steps = request.predicted_output_tokens / request.tokens_a_step
        return prompt_s + num_steps * decode_s / beside

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
            decode_s = request.steps_left * self.step_s
            due_s = min(due_s, request.arrived_at_s + slo.jct_s - decode_s)
        return due_s

    def _on_scheduled(self, event: StepScheduled) -> None:
        for request_id in event.preempted:
            victim = self.live.requests.get(request_id)
            if victim is not None and victim.state is State.RUNNING:
                self._preempted(victim, event.at_s, request_id in event.swapped)
        for request_id, num_cached_tokens in event.admitted.items():
            request = self.live.requests.get(request_id)
            if request is not None:
                self._started(request, num_cached_tokens, event.at_s)
        if event.num_scheduled_tokens:
            self._begun(event)

    def _begun(self, event: StepScheduled) -> None:
        """A step with work in it is in flight."""
        tokens, live = event.num_scheduled_tokens, self.live
        chunked = [r for r in live.prefilling.values() if tokens.get(r.request_id)]
        num_decodes = len(tokens) - len(chunked)
        share = num_decodes / len(live.decoding) if live.decoding else 0.0
        shape = StepShape(0, 0, num_decodes, int(live.sum_decode_context_tokens * share))
        finished_prompts: list[Request] = []
        for request in chunked:
            chunk = tokens[request.request_id]
            shape = shape.with_chunk(chunk, request.num_computed_tokens)
            request.num_computed_tokens += chunk
            if request.num_computed_tokens >= request.prefill_target_tokens:
                finished_prompts.append(request)
        for request in finished_prompts:
            self.live.start_decode(request)
        follows = not self._idle and bool(self._in_flight or self._last_done_s > -math.inf)
        self._idle = False
        predicted_s = self.latency.predict_s(shape)
        self._in_flight.append(InFlight(shape, event.at_s, predicted_s, follows))
        self._step += 1

    def _started(self, request: Request, num_cached_tokens: int, at_s: float) -> None:
        self.live.unqueue(request)
        request.hindrance = ""
        request.prefill_target_tokens = request.num_tokens
        request.num_computed_tokens = num_cached_tokens
        request.num_shared_tokens = min(request.num_held_tokens, num_cached_tokens)
        request.num_found_tokens = request.num_held_tokens = 0
        request.computed_by = ""
        if num_cached_tokens and not request.num_preemptions:
            self.ledger.found_tokens[request.request_id] = num_cached_tokens
        waited_s = at_s - request.queued_at_s
        is_late = waited_s >= OVERDUE_SHARE * self.parts.max_wait_s
        request.is_leftover = not request.has_claim and not is_late
        request.move(State.RUNNING, at_s, _started_as(waited_s, num_cached_tokens))
        self.live.start_prefill(request)
        self.ledger.enter(request, self._step)

    def _preempted(self, request: Request, at_s: float, is_swapped: bool) -> None:
        self.live.stop_running(request)
        self.ledger.leave(request.request_id)
        fate = "kept on the host" if is_swapped else "lost"
        request.move(State.PREEMPTED, at_s, f"preempted, {request.kv_tokens} tokens of KV {fate}")
        request.num_computed_tokens = request.num_shared_tokens = 0
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
            self.num_learned_prompt_tokens += step.shape.num_prefill_tokens
            self.step_s += 0.05 * (duration_s - self.step_s)
            self._longest.add(duration_s)
        requests = self.live.requests
        decoding = self.live.decoding
        gaps_s = self.live.claim_gaps
        tightest_s = gaps_s.keys()[0] if gaps_s else math.inf
        lost: list[Request] = []
        num_emitting = context_tokens = 0
        for request_id, num_tokens in event.num_new_tokens.items():
            request = decoding.get(request_id)
            if request is not None:
                num_emitting += 1
                context_tokens += num_tokens
                last_s = request.last_token_at_s
                if last_s is not None and at_s - last_s <= tightest_s:  # Nearly every token.
                    request.num_output_tokens += num_tokens
                    request.last_token_at_s = at_s
                    continue
            else:
                request = requests.get(request_id)
                if request is None:
                    continue
            if self._take_tokens(request, num_tokens, at_s):
                lost.append(request)
        self.live.sum_decode_context_tokens += context_tokens
        if context_tokens > num_emitting or self.accepted.is_used:
            self.accepted.learn(event.num_new_tokens, decoding)
        for request in lost:
            why = ": such gaps cost the others more promises" if self.price.is_dear(request) else ""
            self._lose(request, at_s, f"a token came after its due time{why}")
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

    def _take_tokens(self, request: Request, num_tokens: int, at_s: float) -> bool:
        """Count new tokens of a request; return whether they broke its promise."""
        request.num_output_tokens += num_tokens
        if request.state is State.PREEMPTED:  # It was in flight, and is to be computed again too.
            request.prefill_target_tokens = request.num_tokens
        last_s = request.last_token_at_s
        request.last_token_at_s = at_s
        if request.standing is Standing.PROMISED:
            if last_s is None:
                return self._first_token(request, at_s)
            tbt_s = request.slo.tbt_s
            return tbt_s is not None and at_s - last_s > tbt_s and _late_gap(request)
        if last_s is None:
            request.first_token_at_s = at_s
        return False

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
        request.num_computed_tokens = 0  # Its KV is gone.
        del self.live.requests[event.request_id]
        request.num_found_tokens = self.ledger.found_tokens.get(event.request_id, 0)
        self.ledger.forget(event.request_id)
        if event.reason in ("stopped", "length"):
            self.parts.predictor.learn(request)
            self._count_served(request, event.at_s)
        elif request.num_output_tokens:
            self.parts.predictor.learn_cut(request)
        if not self.live.requests and not self._in_flight:
            self._idle = True

    def _count_served(self, request: Request, at_s: float) -> None:
        """Track the best rate at which work was done lately, as it is estimated now.

        What was estimated when it came would be the guess of a model that knew less.
        """
        ended = self.ended
        request.predicted_output_tokens = request.num_output_tokens
        ended.append((at_s, self._work_s(request), request.is_leftover))
        if len(ended) == ended.maxlen and at_s > ended[0][0]:
            rate = sum(work_s for _, work_s, _ in ended) / (at_s - ended[0][0])
            self.work_per_s = max(rate, 0.999 * self.work_per_s)

    def _lose(self, request: Request, at_s: float, why: str) -> None:
        """The promise is broken: stop competing with those that can still be kept."""
        if request.standing is not Standing.PROMISED:
            return
        self.live.change_standing(request, Standing.LOST)
        request.note(at_s, f"promise lost: {why}")
        if request.state is State.RUNNING:
            self.ledger.enter(request, self._step)

    def validate(self) -> None:
        """Recompute all books; raise :class:`~headway.errors.InvariantError` when off."""
        self.live.validate()
        self.ledger.validate({r.request_id: r for r in self.live.running()})


def _started_as(waited_s: float, num_cached_tokens: int) -> str:
    """Return the line of a story for a start."""
    found = f", {num_cached_tokens} tokens found in a cache" if num_cached_tokens else ""
    return f"started after waiting {waited_s:.3f} s{found}"


def _late_gap(request: Request) -> bool:
    """Count one late gap; return whether it was one too many."""
    request.num_late_gaps += 1
    return request.num_late_gaps > request.late_gaps_allowed()
