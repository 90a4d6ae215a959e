"""The real vLLM scheduler under a virtual clock: no model, no GPU, exact and repeatable.

Feeds a scheduler requests at virtual instants and charges every step a time from a *truth* the
policy never sees. Stock vLLM run this way is vLLM's own code, not a re-implementation.
"""

from __future__ import annotations

import heapq
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from headway.engines import wire
from headway.engines.virtual import Outcome, StepRow, VirtualCall
from headway.engines.vllm import compat
from headway.engines.vllm.bare import Engine, Swaps, build
from headway.engines.vllm.made_up_tokens import STOP, own_token, prompt_tokens
from headway.latency.model import StepShape

StepTruth = Callable[[StepShape], float]


class VirtualClock:
    """Time that moves only when the harness says so."""

    def __init__(self) -> None:
        self.time_s = 0.0

    def now_s(self) -> float:
        """Return the virtual now."""
        return self.time_s

    def arrived_at_s(self, request: Request) -> float:
        """Virtual requests carry virtual arrival times."""
        return request.arrival_time


class VirtualRun:
    """One virtual server: feed calls, step, read outcomes.

    Args:
        truth: Seconds of a step; nothing but the clock ever sees it.
        scheduler: A ready scheduler object; built from *engine* when absent.
        keep_steps: Keep a :class:`StepRow` for every step in ``rows``.
    """

    def __init__(
        self,
        engine: Engine,
        truth: StepTruth,
        scheduler: Any | None = None,
        keep_steps: bool = False,
    ) -> None:
        self.engine = engine
        self.truth = truth
        self.clock = VirtualClock()
        if scheduler is None:
            with tempfile.TemporaryDirectory() as folder:
                scheduler = build(engine, Path(folder))
        self.scheduler = scheduler
        if engine.headway is not None:
            self.scheduler.headway_clock = self.clock
        self.outcomes: dict[str, Outcome] = {}
        self.steps: list[tuple[float, dict[str, int]]] = []
        self.rows: list[StepRow] = []
        self.num_preemptions = 0
        self.link = Swaps(engine.block_copy_s)
        self._keep_steps = keep_steps
        self._pending: deque[tuple[Any, float, frozenset[str]]] = deque()
        self._ready_s = 0.0
        self._prefilling: dict[str, int] = {}
        init_none_hash(sha256)
        self._hasher = get_request_block_hasher(scheduler.hash_block_size, sha256)

    @property
    def capacity_tokens(self) -> int:
        """Tokens the KV cache holds."""
        return compat.total_blocks(self.scheduler) * self.engine.block_size

    def add(self, call: VirtualCall) -> None:
        """Hand a request to the scheduler at the current instant, if vLLM's server would."""
        outcome = self.outcomes[call.request_id] = Outcome(call)
        outcome.phases.append((call.arrived_at_s, "queued"))
        turned_away = self._at_the_door(call)
        if turned_away is not None:
            outcome.finish_reason, outcome.stop_reason = "abort", turned_away
            outcome.ended_at_s = self.clock.time_s
            return
        self._prefilling[call.request_id] = call.num_prompt_tokens
        self.scheduler.add_request(self.request_of(call))

    def request_of(self, call: VirtualCall) -> Request:
        """Return the request that vLLM's server would make of *call*."""
        params = SamplingParams(
            max_tokens=call.max_output_tokens or call.num_output_tokens,
            ignore_eos=True,
            stop_token_ids=[STOP],
            extra_args=dict(call.xargs) or None,
        )
        return Request(
            request_id=call.request_id,
            prompt_token_ids=prompt_tokens(call),
            sampling_params=params,
            pooling_params=None,
            arrival_time=call.arrived_at_s,
            priority=call.priority,
            block_hasher=self._hasher if self.engine.prefix_caching else None,
        )

    def _at_the_door(self, call: VirtualCall) -> str | None:
        """Return what vLLM's API server answers to a request it does not pass on."""
        longest, cap = self.engine.max_model_len, self.engine.max_num_queued_tokens
        if call.num_prompt_tokens >= longest:
            return wire.invalid(
                f"The prompt has {call.num_prompt_tokens} tokens; the longest has {longest - 1}."
            )
        if cap is not None and sum(self._prefilling.values()) >= cap:
            return wire.refused(0.0, "vLLM's cap on queued tokens is reached.")
        return None

    def abort(self, request_id: str) -> None:
        """Hang up, as a client would."""
        self.scheduler.finish_requests(request_id, RequestStatus.FINISHED_ABORTED)
        self._prefilling.pop(request_id, None)
        outcome = self.outcomes[request_id]
        if outcome.finish_reason is None:
            outcome.finish_reason = "abort"
            outcome.ended_at_s = self.clock.time_s

    def run(self, calls: Iterable[VirtualCall], max_steps: int = 10_000_000) -> dict[str, Outcome]:
        """Serve *calls* to the end and return their outcomes.

        What happens at one instant happens in this order: arrivals, hang-ups, the next step.
        """
        arrivals = deque(sorted(calls, key=lambda c: (c.arrived_at_s, c.request_id)))
        aborts: list[tuple[float, str]] = []
        for _ in range(max_steps):
            while arrivals and arrivals[0].arrived_at_s <= self.clock.time_s:
                call = arrivals.popleft()
                self.add(call)
                if call.abort_at_s is not None:
                    heapq.heappush(aborts, (call.abort_at_s, call.request_id))
            while aborts and aborts[0][0] <= self.clock.time_s:
                self.abort(heapq.heappop(aborts)[1])
            if self.scheduler.has_requests() or self._pending:
                self.step()
            elif arrivals:
                self.clock.time_s = max(self.clock.time_s, arrivals[0].arrived_at_s)
            else:
                return self.outcomes
        raise RuntimeError(f"still {len(self.scheduler.requests)} requests after {max_steps} steps")

    def step(self) -> None:
        """Schedule one step; take in the oldest result when the pipeline is full or idle."""
        depth = 2 if self.engine.asynchronous else 1
        scheduled = False
        if self.scheduler.has_requests() and len(self._pending) < depth:
            output = self.scheduler.schedule()
            scheduled = output.total_num_scheduled_tokens > 0
            self._launch(output)
            if scheduled and len(self._pending) < depth:
                return
        if self._pending:
            steps = [scheduled, *(bool(p[0].num_scheduled_tokens) for p in self._pending)]
            self._settle()
            if not any(steps) and self.scheduler.has_requests():
                self.clock.time_s += self.pause_s()

    def pause_s(self) -> float:
        """Return how long the engine waits after a step with nothing in it."""
        return 1e-4

    def _launch(self, output: Any) -> None:
        tokens = output.num_scheduled_tokens
        swap = output.kv_connector_metadata
        kept = {copy.request_id for copy in swap.out} if swap is not None else ()
        for request_id in output.preempted_req_ids or ():
            self.num_preemptions += 1
            phase = "swapped" if request_id in kept else "preempted"
            self.outcomes[request_id].phases.append((self.clock.time_s, phase))
        self.link.carry_out(swap, self.clock.time_s)
        if not tokens:
            self._pending.append((output, self.clock.time_s, frozenset()))
            return
        self.steps.append((self.clock.time_s, dict(tokens)))
        begins_s = max(self._ready_s, self.clock.time_s, self.link.idle_at_s)
        for request_id in compat.admitted_ids(output):
            self.outcomes[request_id].phases.append((begins_s, "prefill"))
        shape, emitting = self._shape(tokens)
        self._ready_s = begins_s + self.truth(shape)
        self._pending.append((output, self._ready_s, emitting))
        if self._keep_steps:
            self.rows.append(self._row(shape, begins_s))

    def _shape(self, tokens: Mapping[str, int]) -> tuple[StepShape, frozenset[str]]:
        """Return what the step computes, by vLLM's own counters, and who gets a token of it."""
        requests = self.scheduler.requests
        prefill_tokens = prefills = decodes = context = 0
        chunk_context = 0.0
        emitting = []
        for request_id, count in tokens.items():
            request = requests[request_id]
            before = request.num_computed_tokens - count
            if count == 1 and before >= request.num_prompt_tokens:
                decodes += 1
                context += before
            else:
                prefill_tokens += count
                prefills += 1
                chunk_context += count * (before + count / 2)
            # One token may also be a chunk of a prompt computed again: nothing comes out of that.
            if not request.is_prefill_chunk:
                emitting.append(request_id)
        shape = StepShape(prefill_tokens, prefills, decodes, context, chunk_context)
        return shape, frozenset(emitting)

    def _row(self, shape: StepShape, begins_s: float) -> StepRow:
        """Return the record of a step that has just begun."""
        scheduler = self.scheduler
        is_stock = self.engine.headway is None
        held = compat.total_blocks(scheduler) - compat.free_blocks(scheduler)
        num_running = len(scheduler.running)
        return StepRow.of(
            (begins_s, self._ready_s),
            shape,
            num_running,
            len(scheduler.requests) - num_running,
            held * self.engine.block_size,
            None if is_stock else scheduler.headway_plan,
            None if is_stock else scheduler.headway.live,
        )

    def _settle(self) -> None:
        """The oldest step ends: its tokens reach the clients."""
        output, ready_s, emitting = self._pending.popleft()
        self.clock.time_s = max(self.clock.time_s, ready_s)
        ids = list(output.num_scheduled_tokens)
        result = ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={request_id: i for i, request_id in enumerate(ids)},
            sampled_token_ids=[self.sample(output, i) if i in emitting else [] for i in ids],
            kv_connector_output=self.connector_output(output),
            pooler_output=self.pooler_output(ids, emitting),
        )
        outputs = self.scheduler.update_from_output(output, result)
        for per_client in outputs.values():
            for one in per_client.outputs:
                self._deliver(one)

    def pooler_output(self, ids: list[str], emitting: frozenset[str]) -> list[Any] | None:
        """Return what a pooling model makes of the prompts that are complete; others nothing."""
        return None

    def connector_output(self, output: Any) -> KVConnectorOutput | None:
        """Return what the workers' side of a KV connector reports of a step that ended."""
        return self.link.report(output.kv_connector_metadata)

    def sample(self, output: Any, request_id: str) -> list[int]:
        """Return the next token: the stop token when the call's own length is reached.

        Answers to equal prompts differ, so nobody finds another's in the cache.
        """
        request = self.scheduler.requests.get(request_id)
        if request is None:
            return []
        ends = request.num_output_tokens + 1 >= self.outcomes[request_id].call.num_output_tokens
        return [STOP if ends else own_token(request_id)]

    def _deliver(self, one: Any) -> None:
        outcome = self.outcomes[one.request_id]
        if one.new_token_ids:
            if outcome.phases[-1][1] == "prefill":
                outcome.phases.append((self.clock.time_s, "decode"))
                self._prefilling.pop(one.request_id, None)
            outcome.emitted_at_s.extend([self.clock.time_s] * len(one.new_token_ids))
        if one.finish_reason is not None and outcome.finish_reason is None:
            self._prefilling.pop(one.request_id, None)
            outcome.finish_reason = str(one.finish_reason)
            outcome.stop_reason = one.stop_reason if isinstance(one.stop_reason, str) else None
            outcome.ended_at_s = self.clock.time_s
