"""Headway inside vLLM: the stock scheduler, steered by a plan before every step.

A thin driver. It shows the core what the engine has (:class:`EngineView`), carries the plan
out through the hooks of ``docs/decisions/0002-steer-not-replace.md`` and reports what really
happened. The stock ``schedule()`` stays in charge of blocks, caches and every feature Headway
does not understand; nothing of it is copied.
"""

from __future__ import annotations

import logging
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
from vllm.v1.request import Request, RequestStatus

from headway.config import Settings
from headway.engines import wire
from headway.engines.journal import Journal
from headway.engines.prefix import Prefixes
from headway.engines.vllm import account, compat
from headway.engines.vllm.aside import Aside
from headway.engines.vllm.clock import WallClock
from headway.engines.vllm.external import External
from headway.engines.vllm.hindered import Hindrances
from headway.engines.vllm.kv_groups import kv_groups, room_of, view_of, whole_hits
from headway.engines.vllm.load_signal import load_signal_of
from headway.engines.vllm.model_roofline import roofline
from headway.engines.vllm.proxy_headers import ProxyHeaders
from headway.engines.vllm.queue import gated
from headway.engines.vllm.recorder import recording_of
from headway.engines.vllm.steering import Steering
from headway.engines.vllm.swap_connector import swap_connector
from headway.engines.vllm.watch import watch_of
from headway.errors import UserError
from headway.latency.online import OnlineModel
from headway.policy.events import Arrived, Finished, StepDone, SteppedAside, StepScheduled
from headway.policy.plan import StepPlan
from headway.policy.scheduler import Scheduler as Core
from headway.policy.view import EngineView
from headway.slo import NO_PROMISE

logger = logging.getLogger("vllm.headway")


class HeadwayMixin(Steering):
    """Goes before a scheduler class of vLLM: its every step follows a plan, the rest is stock."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        compat.probe(self)
        given = (self.vllm_config.additional_config or {}).get("headway")
        self.headway_settings = Settings.parse(given)
        self.headway_clock = WallClock()
        guess = roofline(self.vllm_config)
        core = self.headway_settings.build(latency=OnlineModel(guess))
        recording = recording_of(self.headway_settings, guess, self.vllm_config)
        counts = recording.counts if recording is not None else None
        budgets = self.headway_settings.budgets
        self.headway_watch = watch_of(core, self, counts, budgets)
        signal = load_signal_of(core, self.vllm_config)
        readers = [r for r in (recording, self.headway_watch, signal) if r is not None]
        self.headway: Core | Journal = Journal(core, *readers) if readers else core
        self.headway_plan = StepPlan(0)
        self.headway_book = self.headway_settings.book()
        self._proxies = ProxyHeaders.believed_by(given or {})
        self._stock_max_step_tokens = self.max_num_scheduled_tokens
        self._external = External(self)
        self._hindrances = Hindrances(self, self._external)
        elsewhere = self._external.find if self._external.exists else None
        self._kv_groups = kv_groups(self)
        self._kv_view = view_of(self, self._kv_groups)
        # Where blocks come free as a prompt is computed, it need not find room for all at once.
        passes = any(group.most_blocks > group.kept_blocks for group in self._kv_groups or ())
        needed = self.scheduler_reserve_full_isl
        self._needs_whole = (needed and not passes, needed)  # In a step of ours, in one of stock's.
        look_up = compat.prefix_look_up(self)
        whole = None if look_up else whole_hits(self, self._kv_groups)
        self._prefixes = Prefixes(self.block_size, look_up, compat.block_name, whole, elsewhere)
        self.headway_aside = Aside()
        self._steps_in_flight = 0
        self._sessions: set[str] = set()
        self._ended: list[Finished] = []
        self.headway_swap = swap_connector(self)
        self._answers: list[tuple[int, EngineCoreOutput]] = []
        self._updating = False
        self._own_end: str | None = None  # Of the request that :meth:`_end` is ending.
        self.waiting = gated(self.waiting)
        self.kv_holding_waiting = gated(self.kv_holding_waiting)
        logger.info(
            "Headway schedules: policy %s, overload %s.",
            self.headway_settings.policy,
            self.headway_settings.overload,
        )

    # -- requests come and go ---------------------------------------------------------------

    def add_request(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Take a request in and tell the core what it was promised."""
        is_new = request.request_id not in self.requests
        super().add_request(request, *args, **kwargs)
        if not is_new:
            return
        if compat.is_session(request):
            self._sessions.add(request.request_id)
            return
        params = request.sampling_params
        extra_args = params.extra_args if params is not None else None
        mistake = None
        slo = NO_PROMISE
        try:
            slo = self.headway_book.resolve(extra_args)
            account.watch(self.headway_watch, request.request_id, extra_args)
        except UserError as error:
            mistake = str(error)
        now_s = self.headway_clock.now_s()
        reached_at_s = min(self.headway_clock.arrived_at_s(request), now_s)
        way = self._proxies.told_in(extra_args, request.arrival_time)
        self.headway.observe(
            Arrived(
                now_s,
                request.request_id,
                reached_at_s - way.age_s,
                request.num_prompt_tokens,
                max(request.max_tokens, 1),
                slo,
                *self._prefixes.find(request.request_id, request, request.num_tokens),
                way.last_try,
            )
        )
        if self.headway_watch is not None and way.start is not None:
            self.headway_watch.forwarded(request.request_id, way.start, reached_at_s)
        self._hindrances.look_at([request.request_id])
        if mistake is not None:
            self._end(request.request_id, RequestStatus.FINISHED_ABORTED, wire.invalid(mistake))

    def _tell_waiting(self) -> None:
        """Tell the core who cannot start, and what the caches hold of those who can."""
        now_s = self.headway_clock.now_s()
        hindered = self._hindrances.news(now_s)
        if hindered is not None:
            self.headway.observe(hindered)
        news = self._prefixes.news(now_s, self.headway.live, self.requests)
        if news is not None:
            self.headway.observe(news)

    def _free_request(self, request: Request, *args: Any, **kwargs: Any) -> Any:
        """Hear of every end of a request, whoever caused it."""
        self._sessions.discard(request.request_id)
        for kept in (self._prefixes, self._external, self._hindrances):
            kept.forget(request.request_id)
        reason = self._own_end or compat.end_of(request)
        self._ended.append(Finished(self.headway_clock.now_s(), request.request_id, reason))
        result = super()._free_request(request, *args, **kwargs)
        if not self._updating:
            self._tell_ended()
        return result

    def _tell_ended(self) -> None:
        ended, self._ended = self._ended, []
        for event in ended:
            self.headway.observe(event)

    def _end(self, request_id: str, status: RequestStatus, answer: str | None) -> None:
        """End a request on the core's word and keep an answer for its client."""
        request = self.requests.get(request_id)
        if request is None or request.is_finished():
            return
        self._own_end = wire.outcome_of(answer)
        self.finish_requests(request_id, status)
        self._own_end = None
        self._answers.append(
            (
                request.client_index,
                EngineCoreOutput(
                    request_id=request_id,
                    new_token_ids=[],
                    finish_reason=RequestStatus.get_finished_reason(status),
                    stop_reason=answer,
                    events=request.take_events(),
                ),
            )
        )

    # -- one step -------------------------------------------------------------------------

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """Plan, steer the stock loop by the plan, and report what it did."""
        self._tell_waiting()
        plan = self.headway_plan = self.headway.plan(self._view(), self.headway_clock.now_s())
        self._end_planned(plan)
        self._preempt_planned(plan)
        if is_stocks := self.headway_aside.take():
            aside = SteppedAside(self.headway_clock.now_s(), self.headway_aside.planned)
            self.headway.observe(aside)
        hidden = [] if is_stocks else self._arrange_running(plan)
        self._open_gate(plan, is_stocks, hidden)
        self.scheduler_reserve_full_isl = self._needs_whole[is_stocks]
        self.max_num_active_reqs -= len(hidden)  # They keep their places.
        try:
            output = super().schedule(*args, **kwargs)
            is_full = self.max_num_scheduled_tokens >= self._stock_max_step_tokens
            compat.tell_capacity(self, is_full)
        finally:
            self.waiting.close()
            self.kv_holding_waiting.close()
            self.max_num_scheduled_tokens = self._stock_max_step_tokens
            self.max_num_active_reqs += len(hidden)
            self.scheduler_config.long_prefill_token_threshold = 0
            if hidden:
                self.running.extend(hidden)
        preempted = tuple(compat.preempted_ids(output))
        if not any((*args, *kwargs.values())):  # A throttled step starts nobody.
            self._judge(plan, output.num_scheduled_tokens, preempted)
        self._report(plan, output, preempted)
        return output

    def _view(self) -> EngineView:
        return EngineView(
            **room_of(self, self._kv_groups),
            **self._kv_view,
            max_num_running=compat.most_running(self),
            max_step_tokens=self._stock_max_step_tokens,
            num_steps_in_flight=self._steps_in_flight,
            num_drafts=self.num_spec_tokens,
            **self._external.view(),
            **(self.headway_swap.view() if self.headway_swap is not None else {}),
        )

    def _end_planned(self, plan: StepPlan) -> None:
        for reject in plan.reject:
            self._end(
                reject.request_id, RequestStatus.FINISHED_ABORTED, wire.invalid(reject.reason)
            )
        for refuse in plan.refuse:
            answer = wire.refused(refuse.retry_after_s, refuse.reason)
            self._end(refuse.request_id, RequestStatus.FINISHED_ABORTED, answer)
        for cap in plan.cap:
            self._end(cap.request_id, RequestStatus.FINISHED_LENGTH_CAPPED, None)

    def _report(self, plan: StepPlan, output: Any, preempted: tuple[str, ...]) -> None:
        """Tell the core what the stock loop did."""
        tokens = output.num_scheduled_tokens
        self._hindrances.look_at(c.request_id for c in plan.chunks if c.request_id not in tokens)
        self._hindrances.look_at(preempted)
        host = self.headway_swap
        kept = tuple(i for i in preempted if host is not None and host.slots.tokens(i))
        admitted = {
            request_id: self.requests[request_id].num_computed_tokens - tokens[request_id]
            for request_id in compat.admitted_ids(output)
        }
        self.headway.observe(
            StepScheduled(self.headway_clock.now_s(), dict(tokens), admitted, preempted, kept)
        )
        if tokens:
            self._steps_in_flight += 1

    def update_from_output(
        self, scheduler_output: Any, *args: Any, **kwargs: Any
    ) -> dict[int, EngineCoreOutputs]:
        """Let the stock code take the tokens in, then tell the core and answer the refused."""
        self._updating = True
        try:
            outputs = super().update_from_output(scheduler_output, *args, **kwargs)
        finally:
            self._updating = False
        if scheduler_output.num_scheduled_tokens:
            self._steps_in_flight -= 1
            emitted = {
                o.request_id: len(o.new_token_ids)
                for per_client in outputs.values()
                for o in per_client.outputs
                if o.new_token_ids
            }
            self.headway.observe(StepDone(self.headway_clock.now_s(), emitted))
        self._tell_ended()
        if self._answers:
            answers, self._answers = self._answers, []
            for client_index, answer in answers:
                outputs.setdefault(client_index, EngineCoreOutputs()).outputs.append(answer)
        if self.headway_watch is not None:
            account.put_into(outputs, self.headway_watch.accounts)
        return outputs

    def shutdown(self) -> None:
        """End as the stock scheduler does, the recording written."""
        super().shutdown()
        if isinstance(self.headway, Journal):
            self.headway.close()


class AsyncHeadway(HeadwayMixin, AsyncScheduler):
    """For engines that schedule one step ahead."""


class SyncHeadway(HeadwayMixin, Scheduler):
    """For engines that schedule when the step before has ended."""
