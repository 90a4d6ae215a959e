"""The real vLLM scheduler under a virtual clock: no model, no GPU, exact and repeatable.

Builds the scheduler class as the engine would, feeds it requests at virtual instants, and
charges every step a time from a *truth* the policy never sees. Stock vLLM run this way is
vLLM's own code, not a re-implementation.
"""

from __future__ import annotations

import heapq
import json
import os
import tempfile
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

import torch
from vllm.config import (
    CacheConfig,
    DeviceConfig,
    ModelConfig,
    ParallelConfig,
    SchedulerConfig,
    VllmConfig,
)
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from headway.engines.virtual import Call, Outcome
from headway.engines.vllm.scheduler import AsyncHeadway, SyncHeadway
from headway.latency.model import StepShape

StepTruth = Callable[[StepShape], float]

MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131072,
    "vocab_size": 512,
    "torch_dtype": "float32",
    "eos_token_id": 2,
}
"""Shapes of no consequence: nothing is computed."""

TOKEN, STOP = 7, 2


@dataclass(frozen=True, slots=True)
class Engine:
    """The engine to build. Sizes in blocks and tokens, as vLLM's own arguments."""

    num_blocks: int = 1000
    block_size: int = 16
    max_num_batched_tokens: int = 2048
    max_num_seqs: int = 256
    max_model_len: int = 131072
    scheduling_policy: str = "fcfs"
    asynchronous: bool = False
    prefix_caching: bool = False
    watermark: float | None = None
    headway: Mapping[str, Any] | None = None
    """Headway's settings; ``None`` runs stock vLLM."""


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


def build(engine: Engine, folder: Path) -> Any:
    """Return a scheduler object of vLLM (or ours) for *engine*; *folder* gets a config.json."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(MODEL), encoding="utf-8")
    model = ModelConfig(
        model=str(folder),
        skip_tokenizer_init=True,
        max_model_len=engine.max_model_len,
        dtype="float32",
    )
    extra: dict[str, Any] = {}
    if engine.watermark is not None:
        extra["watermark"] = engine.watermark
    config = VllmConfig(
        model_config=model,
        cache_config=CacheConfig(
            block_size=engine.block_size, enable_prefix_caching=engine.prefix_caching
        ),
        parallel_config=ParallelConfig(),
        device_config=DeviceConfig("cpu"),
        scheduler_config=SchedulerConfig(
            max_num_batched_tokens=engine.max_num_batched_tokens,
            max_num_seqs=engine.max_num_seqs,
            max_model_len=engine.max_model_len,
            is_encoder_decoder=False,
            policy=engine.scheduling_policy,
            async_scheduling=engine.asynchronous,
            enable_chunked_prefill=True,
            **extra,
        ),
        additional_config={"headway": dict(engine.headway)} if engine.headway is not None else {},
    )
    config.cache_config.num_gpu_blocks = engine.num_blocks
    spec = FullAttentionSpec(
        block_size=engine.block_size, num_kv_heads=4, head_size=16, dtype=torch.float32
    )
    kv = KVCacheConfig(
        num_blocks=engine.num_blocks,
        kv_cache_tensors=[],
        kv_cache_groups=[KVCacheGroupSpec(["layer"], spec)],
    )
    stock = AsyncScheduler if engine.asynchronous else Scheduler
    ours = AsyncHeadway if engine.asynchronous else SyncHeadway
    return (stock if engine.headway is None else ours)(
        vllm_config=config,
        kv_cache_config=kv,
        structured_output_manager=StructuredOutputManager(config),
        block_size=engine.block_size,
        log_stats=False,
    )


class VirtualRun:
    """One virtual server: feed calls, step, read outcomes."""

    def __init__(self, engine: Engine, truth: StepTruth, scheduler: Any | None = None) -> None:
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
        self.num_preemptions = 0
        self._pending: deque[tuple[Any, float, frozenset[str]]] = deque()
        self._ready_s = 0.0
        init_none_hash(sha256)
        self._hasher = get_request_block_hasher(engine.block_size, sha256)

    def add(self, call: Call) -> None:
        """Hand a request to the scheduler at the current instant."""
        self.outcomes[call.request_id] = Outcome(call)
        head = call.shared_prefix or call.request_id
        filler = sum(head.encode()) % 400 + 3
        params = SamplingParams(
            max_tokens=call.max_output_tokens or call.num_output_tokens,
            ignore_eos=True,
            stop_token_ids=[STOP],
            extra_args=dict(call.xargs) or None,
        )
        request = Request(
            request_id=call.request_id,
            prompt_token_ids=[filler] * call.num_prompt_tokens,
            sampling_params=params,
            pooling_params=None,
            arrival_time=call.arrived_at_s,
            priority=call.priority,
            block_hasher=self._hasher if self.engine.prefix_caching else None,
        )
        self.scheduler.add_request(request)

    def abort(self, request_id: str) -> None:
        """Hang up, as a client would."""
        self.scheduler.finish_requests(request_id, RequestStatus.FINISHED_ABORTED)
        outcome = self.outcomes[request_id]
        if outcome.finish_reason is None:
            outcome.finish_reason = "abort"
            outcome.ended_at_s = self.clock.time_s

    def run(self, calls: Iterable[Call], max_steps: int = 10_000_000) -> dict[str, Outcome]:
        """Serve *calls* to the end and return their outcomes."""
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
            self._settle()
            if not scheduled and not self._pending and self.scheduler.has_requests():
                self.clock.time_s += 1e-4

    def _launch(self, output: Any) -> None:
        tokens = dict(output.num_scheduled_tokens)
        if not tokens:
            self._pending.append((output, self.clock.time_s, frozenset()))
            return
        self.steps.append((self.clock.time_s, tokens))
        begins_s = max(self._ready_s, self.clock.time_s)
        self._ready_s = begins_s + self.truth(self._shape(tokens))
        requests = self.scheduler.requests
        emitting = frozenset(i for i in tokens if not requests[i].is_prefill_chunk)
        self._pending.append((output, self._ready_s, emitting))

    def _shape(self, tokens: Mapping[str, int]) -> StepShape:
        """Return what the step really computes, from vLLM's own counters."""
        shape = StepShape()
        decodes = context = 0
        for request_id, count in tokens.items():
            request = self.scheduler.requests[request_id]
            before = request.num_computed_tokens - count
            if before >= request.num_prompt_tokens and count == 1:
                decodes += 1
                context += before
            else:
                shape = shape.with_chunk(count, before)
        return StepShape(
            shape.num_prefill_tokens, shape.num_prefills, decodes, context, shape.chunk_context
        )

    def _settle(self) -> None:
        """The oldest step ends: its tokens reach the clients."""
        output, ready_s, emitting = self._pending.popleft()
        self.clock.time_s = max(self.clock.time_s, ready_s)
        self.num_preemptions += len(output.preempted_req_ids or ())
        ids = list(output.num_scheduled_tokens)
        result = ModelRunnerOutput(
            req_ids=ids,
            req_id_to_index={request_id: i for i, request_id in enumerate(ids)},
            sampled_token_ids=[self._sample(i) if i in emitting else [] for i in ids],
        )
        outputs = self.scheduler.update_from_output(output, result)
        for per_client in outputs.values():
            for one in per_client.outputs:
                self._deliver(one)

    def _sample(self, request_id: str) -> list[int]:
        """Return the next token: the stop token when the call's own length is reached."""
        request = self.scheduler.requests.get(request_id)
        if request is None:
            return []
        ends = request.num_output_tokens + 1 >= self.outcomes[request_id].call.num_output_tokens
        return [STOP if ends else TOKEN]

    def _deliver(self, one: Any) -> None:
        outcome = self.outcomes[one.request_id]
        outcome.emitted_at_s.extend([self.clock.time_s] * len(one.new_token_ids))
        if one.finish_reason is not None and outcome.finish_reason is None:
            outcome.finish_reason = str(one.finish_reason)
            outcome.stop_reason = one.stop_reason if isinstance(one.stop_reason, str) else None
            outcome.ended_at_s = self.clock.time_s
