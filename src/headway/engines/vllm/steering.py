"""Carrying a plan out: what the stock loop is shown before its step, and what came of it.

Mixed into the driver (``driver.py``). The stock loop spends a budget of tokens on
``self.running`` in order, then on whom the waiting queues present; nothing else of it is steered.
"""

from __future__ import annotations

import time
from typing import Any

from vllm.v1.core.sched.interface import PauseState
from vllm.v1.request import Request, RequestStatus

from headway.policy.plan import StepPlan


class Steering:
    """Takes victims' KV, sets who runs and who may enter, before the stock loop's step."""

    def _preempt_planned(self, plan: StepPlan) -> None:
        for preempt in plan.preempt:
            request = self.requests.get(preempt.request_id)
            if request is None or request.status != RequestStatus.RUNNING:
                continue
            if not self._request_blocks_can_be_freed(request):
                continue
            self.running.remove(request)
            if preempt.how == "swap" and self.headway_swap is not None:
                self.headway_swap.try_keep(request)
            self._preempt_request(
                request, time.monotonic(), drop_stale_output=self.requires_kv_delivery
            )

    def _arrange_running(self, plan: StepPlan) -> list[Request]:
        """Order the running requests for the stock loop; return those that sit this step out.

        Decodes come first, then prompts in the plan's order: the loop spends the budget, and
        finds its victim, from this order.
        """
        prefilling = self.headway.live.prefilling
        if not prefilling and not plan.hold:
            return []
        chunk_order = [c.request_id for c in plan.chunks if not c.admit]
        chosen = set(chunk_order)
        out = set(plan.hold)
        out.update(i for i in prefilling if i not in chosen)
        prompts: dict[str, Request] = {}
        decodes: list[Request] = []
        hidden: list[Request] = []
        for request in self.running:
            if request.request_id in out:
                hidden.append(request)
            elif request.request_id in chosen:
                prompts[request.request_id] = request
            else:
                decodes.append(request)
        self.running = decodes + [prompts[i] for i in chunk_order if i in prompts]
        return hidden

    def _open_gate(self, plan: StepPlan, is_stocks: bool, hidden: list[Request]) -> None:
        """Set the budget, the one cap for all chunks, and whom the waiting loop may see.

        A step that is stock's has the whole budget and sees everybody, in our order. So has a
        prompt that the engine computes at once or not at all.
        """
        admit = [c.request_id for c in plan.chunks if c.admit]
        whole = bool(admit) and not self.scheduler_config.enable_chunked_prefill
        budget = plan.token_budget + self._num_drafted(plan) + self._to_state_boundary(plan)
        if self._sessions or whole or is_stocks:
            budget = self._stock_max_step_tokens
        self.max_num_scheduled_tokens = min(budget, self._stock_max_step_tokens)
        self.scheduler_config.long_prefill_token_threshold = (
            0 if is_stocks else plan.chunk_cap_tokens
        )
        if is_stocks:
            ended = {e.request_id for e in (*plan.refuse, *plan.reject, *plan.preempt)}
            waiting = (r.request_id for r in self.headway.live.waiting())
            admit = [*admit, *(i for i in waiting if i not in ended and i not in admit)]
        shown = [*self._sessions, *self._hindrances.startable(admit, hidden)]
        self.waiting.present(shown)
        self.kv_holding_waiting.present(shown)

    def _to_state_boundary(self, plan: StepPlan) -> int:
        """Return the tokens that a cut chunk lacks to the next recurrent state worth keeping.

        With such states cached, the stock loop ends chunks where a block does; one that ends
        before the first such place would be cut to nothing.
        """
        if not self.need_mamba_block_aligned_split or not plan.chunks:
            return 0
        chunk = plan.chunks[-1]
        request = self.requests.get(chunk.request_id)
        known = self.headway.live.requests.get(chunk.request_id)
        if request is None or known is None:
            return 0
        size, start = self.cache_config.block_size, known.num_ready_tokens
        enough = min(size - start % size, request.num_tokens - start)
        return max(enough - chunk.num_tokens, 0)

    def _num_drafted(self, plan: StepPlan) -> int:
        """Return the tokens of this step beyond the plan's: drafts that are to be verified.

        A prompt with one token left starts as a decode, padded to as many as could be drafted.
        """
        if not self.num_spec_tokens:
            return 0
        padded = sum(chunk.admit and chunk.num_tokens == 1 for chunk in plan.chunks)
        wanted = (
            r.num_tokens_with_spec + r.num_output_placeholders - r.num_computed_tokens
            for r in self.running
            if r.request_id in self.headway.live.decoding
        )
        return padded * self.num_spec_tokens + sum(max(n - 1, 0) for n in wanted)

    def _judge(self, plan: StepPlan, tokens: Any, preempted: tuple[str, ...]) -> None:
        """See whether what was planned came to nothing.

        A step in which the stock loop preempted somebody starts nobody, nor does a paused engine.
        After a planned preemption blocks that a victim shared are held by nobody: who was to find
        them held does with what is found now, a plan later.
        """
        if (not plan.chunks and tokens) or preempted:
            return
        if self.pause_state != PauseState.UNPAUSED:
            return
        is_hindered, live = self._hindrances.is_hindered, self.headway.live
        meant = [
            c.request_id
            for c in plan.chunks
            if c.request_id in self.requests and not is_hindered(c.request_id)
        ]
        decides_nothing = not (plan.chunks or plan.reject or plan.refuse or plan.cap)
        is_idle = not (tokens or self._steps_in_flight or live.num_running or live.hindered)
        stalled = decides_nothing and is_idle and live.num_waiting > 0
        self.headway_aside.judge(meant, tokens, stalled=stalled)
