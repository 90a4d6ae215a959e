"""What the core knows: every event lands here, and nothing else changes state."""

from __future__ import annotations

import math
from heapq import heappop, heappush

from headway.latency.model import LatencyModel, StepShape
from headway.policy.accepted import AcceptedTokens
from headway.policy.appointments import Appointments
from headway.policy.estimates import due_at_s, is_hopeless, work_s
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
from headway.policy.finishes import Finishes
from headway.policy.inputs import OVERDUE_SHARE
from headway.policy.live_requests import LiveRequests
from headway.policy.pace import Pace
from headway.policy.predict import Predictor
from headway.policy.prices import GapPrices
from headway.policy.recent import NEWEST_WEIGHT
from headway.policy.targets import Targets
from headway.policy.tenants import Tenants
from headway.policy.tokens import take_step
from headway.policy.turns import Turns
from headway.policy.work_rate import WorkRate
from headway.request import NATURAL_ENDS, Request, Standing, State


class Known:
    """The requests, their standing, the steps in flight and what recent ones taught.

    Args:
        lengths: Predicts outputs, and learns from those that end.
        max_wait_s: The longest a request may wait for its turn; ``inf`` when unbounded.
        overload: What becomes of a promise that does not fit, as the operator wants it:
            ``"demote"`` serves it as best effort, ``"refuse"`` answers 429 at once.
        finishes: Kept of the running requests; a planner that reckons with the KV they will hold
            brings its own.
    """

    heeds_promises = True

    def __init__(
        self,
        latency: LatencyModel,
        lengths: Predictor,
        max_wait_s: float = math.inf,
        overload: str = "demote",
        finishes: Finishes | None = None,
    ) -> None:
        self.latency = latency
        self.lengths = lengths
        self.max_wait_s = max_wait_s
        self.overload = overload
        self.finishes = Finishes() if finishes is None else finishes
        self.live = LiveRequests()
        self.pace = Pace(latency)
        self.price = GapPrices()
        self.accepted = AcceptedTokens()
        self.appointments = Appointments()
        self.targets = Targets()
        self.tenants = Tenants()
        self.turns = Turns()
        self.unchecked: list[Request] = []
        """Came since the last plan, which looks whether they can ever fit."""
        self.lagging: list[Request] = []
        """Decodes that the last step brought no token."""
        self.work_rate = WorkRate()
        self.claim_tokens = 0.0
        """Prompt tokens of a typical claim, what one more promise costs; 0 before any came."""
        self.num_learned_prompt_tokens = 0
        self._ends: list[tuple[float, str]] = []  # A heap of when promised ends are due.

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
            for request in filter(None, map(self.live.requests.get, event.planned)):
                request.note(event.at_s, "not started as planned: the engine decides a step")
        else:
            self._on_finished(event)

    def _on_arrived(self, event: Arrived) -> None:
        request = event.request()
        self._judge(request, event.at_s)
        request.queued_at_s = event.at_s
        request.predicted_output_tokens = self.lengths.predict(request)
        request.tokens_a_step = self.accepted.of(request.slo.class_name)
        request.due_at_s = due_at_s(request, self.pace.step_s)
        request.work_s = self._work_s(request)
        request.is_expected = self.appointments.keeps(event)
        self.tenants.arrived(request, event.at_s)
        if request.slo.tenant not in self.tenants.heavy:
            self.turns.arrived(request, self.latency, self.live, self.pace, self.work_rate)
        self.live.arrive(request)
        self.unchecked.append(request)
        if request.has_claim:
            num_tokens = max(request.remaining_prefill_tokens, 1)
            weight = NEWEST_WEIGHT if self.claim_tokens else 1.0
            self.claim_tokens += weight * (num_tokens - self.claim_tokens)
            self.targets.arrived(request.slo)
            self.price.learn(request, event.at_s, self.targets.worth(request))
        if (jct_s := event.slo.jct_s) is not None:
            heappush(self._ends, (event.arrived_at_s + jct_s, event.request_id))

    def _judge(self, request: Request, at_s: float) -> None:
        """Say how a newcomer stands; a planner that heeds no promises takes all for best effort."""
        if request.has_claim and is_hopeless(request, self.latency):
            request.standing = Standing.LOST
            request.note(at_s, "promise lost: not even an empty server could keep it")

    def _on_found(self, event: PrefixFound) -> None:
        """Take in what the prefix cache holds of those who wait."""
        for request_id, (num_found, num_held) in event.tokens.items():
            request = self.live.requests.get(request_id)
            if request is None or request.state is State.RUNNING:
                continue
            request.num_found_tokens, request.num_held_tokens = num_found, num_held
            self._reconsider(request, event.at_s)
        for request_id, (computed_by, num_common) in event.coming.items():
            if request := self.live.requests.get(request_id):
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
                self._reconsider(request, event.at_s)

    def _reconsider(self, request: Request, at_s: float) -> None:
        """Compete again, if what the cache holds now makes a promise possible that was not."""
        self.live.change_work(request, self._work_s(request))
        was_hopeless = request.standing is Standing.LOST and not request.num_output_tokens
        is_over = not was_hopeless or request.is_past_due(at_s)
        if not (is_over or is_hopeless(request, self.latency)):
            self.live.change_standing(request, Standing.PROMISED)
            request.note(at_s, "its prompt is in the cache now: the promise may be kept")

    def _work_s(self, request: Request) -> float:
        return work_s(request, self.latency, self.live)

    def _on_scheduled(self, event: StepScheduled) -> None:
        for request_id in event.preempted:
            victim = self.live.requests.get(request_id)
            if victim and victim.state is State.RUNNING:
                self._preempted(victim, event.at_s, request_id in event.swapped)
        for request_id, num_cached_tokens in event.admitted.items():
            if request := self.live.requests.get(request_id):
                self._started(request, num_cached_tokens, event.at_s)
        if event.num_scheduled_tokens:
            self._begun(event)
        else:  # Whatever was planned: a wait is no step.
            self.pace.stop()

    def _begun(self, event: StepScheduled) -> None:
        """A step with work in it is in flight."""
        tokens, live = event.num_scheduled_tokens, self.live
        chunked = [r for r in live.prefilling.values() if tokens.get(r.request_id)]
        num_decodes = len(tokens) - len(chunked)
        share = num_decodes / len(live.decoding) if live.decoding else 0.0
        decodes = StepShape(0, 0, num_decodes, int(live.sum_decode_context_tokens * share))
        shape = decodes
        for request in chunked:
            chunk = tokens[request.request_id]
            shape = shape.with_chunk(chunk, request.num_computed_tokens)
            request.num_computed_tokens += chunk
        self.pace.begun(shape, event.at_s, self.latency.predict_s(shape))
        chunks = [(r, tokens[r.request_id]) for r in chunked]
        self.tenants.begun(self.pace.step, self.latency, decodes, shape, chunks)
        for request in chunked:
            if request.num_computed_tokens >= request.prefill_target_tokens:
                self.live.start_decode(request)
                self.tenants.decodes(request, self.pace.step)

    def _started(self, request: Request, num_cached_tokens: int, at_s: float) -> None:
        self.live.unqueue(request)
        request.takes_kv(num_cached_tokens)
        waited_s = at_s - request.queued_at_s
        is_late = waited_s >= OVERDUE_SHARE * self.max_wait_s
        request.is_leftover = not (request.has_claim or is_late)
        found = f", {num_cached_tokens} tokens found in a cache" if num_cached_tokens else ""
        request.move(State.RUNNING, at_s, f"started after waiting {waited_s:.3f} s{found}")
        self.live.start_prefill(request)
        self.finishes.enter(request, self.pace.step)

    def _preempted(self, request: Request, at_s: float, is_swapped: bool) -> None:
        self._stop_running(request)
        fate = "kept on the host" if is_swapped else "lost"
        request.move(State.PREEMPTED, at_s, f"preempted, {request.kv_tokens} tokens of KV {fate}")
        request.loses_kv()
        request.queued_at_s = at_s
        request.due_at_s = due_at_s(request, self.pace.step_s)
        self.live.queue(request)

    def _stop_running(self, request: Request) -> None:
        self.live.stop_running(request)
        self.finishes.leave(request.request_id)
        self.tenants.stopped(request)

    def _on_done(self, event: StepDone) -> None:
        at_s = event.at_s
        ended = self.pace.done(at_s)
        if ended:
            self.latency.observe(*ended)
            self.tenants.done(at_s, ended[1])
            self.num_learned_prompt_tokens += ended[0].num_prefill_tokens
        taken = take_step(self.live, event.num_new_tokens, at_s)
        self.lagging = taken.lagging
        if taken.has_drafts or self.accepted.is_used:
            self.accepted.learn(event.num_new_tokens, self.live.decoding)
        for request in taken.lost:
            dear = ": such gaps cost the others more promises" * self.price.is_dear(request)
            self._lose(request, at_s, f"a token came after its due time{dear}")
        if not self.live.requests:
            self.pace.stop()

    def _on_finished(self, event: Finished) -> None:
        request = self.live.requests.get(event.request_id)
        if request is None:
            return
        if request.state is State.RUNNING:
            self._stop_running(request)
        else:
            self.live.unqueue(request)
        self.tenants.left(request)
        if request.has_claim and event.reason != "aborted":  # Who hangs up is nobody's fault.
            self.targets.ended(request.slo, is_kept=event.reason in NATURAL_ENDS)
        request.move(State.FINISHED, event.at_s, event.reason)
        request.num_computed_tokens = 0  # Its KV is gone.
        self.live.leave(request)
        request.num_found_tokens = request.num_cached_tokens
        if event.reason in NATURAL_ENDS:
            self.lengths.learn(request)
            # What was estimated when it came would be the guess of a model that knew less.
            request.predicted_output_tokens = request.num_output_tokens
            self.work_rate.add(
                event.at_s, self._work_s(request), request.is_leftover, self.live.num_waiting
            )
        elif request.num_output_tokens:
            self.lengths.learn_cut(request)
        if not self.live.requests and not self.pace.in_flight:
            self.pace.stop()

    def lose_overdue(self, now_s: float) -> None:
        """Claims past their due time while they wait, or past their promised end, are lost."""
        for request in self.live.past_due(now_s):
            gave_way = ", behind tenants who had less" * (request.slo.tenant in self.tenants.heavy)
            self._lose(request, now_s, f"its due time passed while it waited{gave_way}")
        while self._ends and self._ends[0][0] < now_s:
            ended = self.live.requests.get(heappop(self._ends)[1])
            if ended and ended.is_past_due(now_s):  # A name may come again.
                self._lose(ended, now_s, "the time promised to its end passed")

    def predict_again(self) -> None:
        """Requests that ran longer than predicted get a new prediction."""
        for request_id in self.finishes.overdue(self.pace.step):
            request = self.live.requests[request_id]
            request.predicted_output_tokens = self.lengths.predict(request)
            self.finishes.enter(request, self.pace.step)

    def _lose(self, request: Request, at_s: float, why: str) -> None:
        """The promise is broken: stop competing with those that can still be kept."""
        if request.standing is not Standing.PROMISED:
            return
        self.live.change_standing(request, Standing.LOST)
        self.targets.ended(request.slo, is_kept=False)
        request.note(at_s, f"promise lost: {why}")
        if request.state is State.RUNNING:
            self.finishes.enter(request, self.pace.step)

    def validate(self) -> None:
        """Recompute everything kept; raise :class:`~headway.errors.InvariantError` when off."""
        self.live.validate()
        self.finishes.validate({r.request_id: r for r in self.live.running()})
        self.tenants.validate(self.live.requests)
