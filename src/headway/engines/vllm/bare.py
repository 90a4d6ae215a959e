"""A vLLM scheduler without an engine around it: no model, no GPU, no process.

Builds the scheduler class, stock or ours, as the engine core would.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

from vllm.config import (
    CacheConfig,
    DeviceConfig,
    KVTransferConfig,
    LoRAConfig,
    ModelConfig,
    ParallelConfig,
    SchedulerConfig,
    SpeculativeConfig,
    VllmConfig,
)
from vllm.v1.core.kv_cache_utils import resolve_kv_cache_block_sizes
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.outputs import KVConnectorOutput
from vllm.v1.structured_output import StructuredOutputManager

from headway.engines.attention_kinds import FULL
from headway.engines.virtual import HostLink, VirtualEngine
from headway.engines.vllm.driver import AsyncHeadway, SyncHeadway
from headway.engines.vllm.kv_cache_specs import groups_of
from headway.engines.vllm.swap_connector import CopyTimes, SwapMetadata, transfer_config

MODEL = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "vocab_size": 512,
    "torch_dtype": "float32",
    "eos_token_id": 2,
}
"""Shapes of no consequence: nothing is computed."""


@dataclass(frozen=True, slots=True)
class Engine(VirtualEngine):
    """The engine to build; ``num_blocks`` is vLLM's own count here, its null block included."""

    max_model_len: int = 131072
    """Longest prompt and output together; vLLM's API server refuses longer prompts."""
    scheduling_policy: str = "fcfs"
    watermark: float | None = None
    max_num_queued_tokens: int | None = None
    """Cap on prompt tokens not yet answered; vLLM's API server refuses beyond it."""
    scheduler_options: Mapping[str, Any] = field(default_factory=dict)
    """Other fields of vLLM's ``SchedulerConfig``."""
    headway: Mapping[str, Any] | None = None
    """Headway's settings; ``None`` runs stock vLLM."""
    groups: tuple[str, ...] = FULL
    """Groups of layers, which share the blocks; see :mod:`headway.engines.attention_kinds`."""
    chunked_prefill: bool = True
    """Whether a prompt may be computed in pieces."""
    max_loras: int = 0
    """Adapters that one step may use; 0 serves none."""
    num_drafts: int = 0
    """Draft tokens a stream may have verified in a step."""
    transfer: Mapping[str, Any] | None = None
    """vLLM's arguments for a KV connector; ``host_blocks`` must be 0 then."""


def build(engine: Engine, folder: Path) -> Any:
    """Return a scheduler object of vLLM (or ours) for *engine*; *folder* gets a config.json."""
    config, groups = _config_of(engine, folder)
    kv = KVCacheConfig(
        num_blocks=engine.num_blocks,
        kv_cache_tensors=[],
        kv_cache_groups=groups,
    )
    stock = AsyncScheduler if engine.asynchronous else Scheduler
    ours = AsyncHeadway if engine.asynchronous else SyncHeadway
    block_size, hash_block_size = resolve_kv_cache_block_sizes(kv, config)
    return (stock if engine.headway is None else ours)(
        vllm_config=config,
        kv_cache_config=kv,
        structured_output_manager=StructuredOutputManager(config),
        block_size=block_size,
        hash_block_size=hash_block_size,
        log_stats=False,
    )


def _config_of(engine: Engine, folder: Path) -> tuple[VllmConfig, list[Any]]:
    """Return vLLM's configuration, and the groups of layers."""
    folder.mkdir(parents=True, exist_ok=True)
    shapes = {**MODEL, "max_position_embeddings": engine.max_model_len}
    (folder / "config.json").write_text(json.dumps(shapes), encoding="utf-8")
    model = ModelConfig(
        model=str(folder),
        skip_tokenizer_init=True,
        max_model_len=engine.max_model_len,
        dtype="float32",
    )
    extra: dict[str, Any] = dict(engine.scheduler_options)
    more: dict[str, Any] = {}
    if engine.watermark is not None:
        extra["watermark"] = engine.watermark
    groups = groups_of(engine.groups, engine.block_size, engine.max_model_len)
    has_states = "aligned-state" in engine.groups
    if engine.host_blocks:
        swap = transfer_config(engine.host_blocks * groups[0].kv_cache_spec.page_size_bytes)
        more["kv_transfer_config"] = KVTransferConfig(**swap)
    elif engine.transfer is not None:
        more["kv_transfer_config"] = KVTransferConfig(**engine.transfer)
    if engine.max_loras:
        more["lora_config"] = LoRAConfig(max_loras=engine.max_loras)
    if engine.num_drafts:
        more["speculative_config"] = SpeculativeConfig(
            method="ngram",
            num_speculative_tokens=engine.num_drafts,
            prompt_lookup_max=2,
            target_model_config=model,
            target_parallel_config=ParallelConfig(),
        )
    config = VllmConfig(
        **more,
        model_config=model,
        cache_config=CacheConfig(
            block_size=engine.block_size,
            enable_prefix_caching=engine.prefix_caching,
            **({"mamba_cache_mode": "align"} if has_states else {}),
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
            enable_chunked_prefill=engine.chunked_prefill,
            **extra,
        ),
        additional_config={"headway": dict(engine.headway)} if engine.headway is not None else {},
    )
    config.scheduler_config.async_scheduling = engine.asynchronous  # On CPUs vLLM turns it off.
    config.cache_config.num_gpu_blocks = engine.num_blocks
    return config, groups


class Swaps(HostLink):
    """The workers' copies under a virtual clock; ``num_swapped`` requests were copied out."""

    num_swapped = 0

    def carry_out(self, swap: SwapMetadata | None, now_s: float) -> None:
        """Queue the copies of a step that is scheduled now."""
        if swap is None:
            return
        self.num_swapped += len(swap.out)
        for copy in (*swap.out, *swap.back):
            self.copy(len(copy.slots), now_s)

    def report(self, swap: SwapMetadata | None) -> KVConnectorOutput | None:
        """Return what the workers would report of a step that ended."""
        copies = (*swap.out, *swap.back) if swap is not None else ()
        if not copies:
            return None
        num_blocks = sum(len(copy.slots) for copy in copies)
        times = CopyTimes(num_blocks, num_blocks * self.block_copy_s)
        return KVConnectorOutput(kv_connector_worker_meta=times)
