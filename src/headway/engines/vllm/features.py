"""What an engine was found to have: the hooks, the features that are on, the sizes.

Told with every snapshot, so that whoever looks at a server sees what Headway steers there, what it
leaves to the stock loop, and what it does not know.
"""

from __future__ import annotations

from typing import Any

import vllm
from vllm.platforms import current_platform

from headway.engines.vllm.compat import prefix_look_up, total_blocks, wrong_class
from headway.engines.vllm.swap_connector import block_bytes
from headway.engines.vllm.vllm_names import ATTRIBUTES, CLASSES, PARAMETERS, TRIED
from headway.errors import UserError


def features_of(scheduler: Any) -> dict[str, Any]:
    """Return what *scheduler* was found to have, as JSON's types.

    ``mistake`` and ``unknown`` are sentences on what is wrong, and what Headway leaves to vLLM for
    want of understanding; sizes are in tokens, blocks and bytes of one worker.
    """
    version = str(vllm.__version__)
    return {
        "vllm": version,
        "is_tried": version.partition("+")[0] in TRIED,
        "num_hooks": len(ATTRIBUTES) + sum(map(len, CLASSES.values())) + len(PARAMETERS),
        "scheduler": type(scheduler).__name__,
        "mistake": wrong_class(scheduler),
        "unknown": _unknown(scheduler),
        "on": _on(scheduler),
        "device": _device(),
        "dtype": str(scheduler.vllm_config.model_config.dtype).removeprefix("torch."),
        "sizes": _sizes(scheduler),
    }


def _on(scheduler: Any) -> dict[str, Any]:
    """Return the features by name: ``True``, ``False``, or which."""
    parallel, lora = scheduler.vllm_config.parallel_config, scheduler.lora_config
    connector = scheduler.connector
    groups = scheduler.kv_cache_config.kv_cache_groups
    return {
        "asynchronous scheduling": bool(scheduler.scheduler_config.async_scheduling),
        "chunked prefill": bool(scheduler.scheduler_config.enable_chunked_prefill),
        "prefix caching": bool(scheduler.kv_cache_manager.enable_caching),
        "cached blocks known one by one": prefix_look_up(scheduler) is not None,
        "KV connector": type(connector).__name__ if connector is not None else False,
        "swap": scheduler.headway_swap is not None,
        "planned preemption": not scheduler.defer_block_free,
        "attention groups": ", ".join(type(g.kv_cache_spec).__name__ for g in groups) or False,
        "draft tokens": int(scheduler.num_spec_tokens),
        "adapter slots": int(lora.max_loras) if lora is not None else 0,
        "tensor parallel": int(parallel.tensor_parallel_size),
        "pipeline parallel": int(parallel.pipeline_parallel_size),
        "data parallel": int(parallel.data_parallel_size),
    }


def _unknown(scheduler: Any) -> str | None:
    if scheduler._kv_groups is None:
        return "This KV cache is beyond Headway: vLLM alone rations it."
    return None


def _sizes(scheduler: Any) -> dict[str, int | None]:
    try:
        bytes_of_block = block_bytes(scheduler.kv_cache_config)
    except UserError:
        bytes_of_block = None  # Several kinds of state: not to be swapped.
    return {
        "kv_blocks": total_blocks(scheduler),
        "block_tokens": int(scheduler.block_size),
        "block_bytes": bytes_of_block,
        "kv_groups": len(scheduler.kv_cache_config.kv_cache_groups),
        "max_step_tokens": int(scheduler.max_num_scheduled_tokens),
        "max_running": int(scheduler.max_num_running_reqs),
        "max_model_tokens": int(scheduler.max_model_len),
    }


def _device() -> str:
    """Return the kind of device, and its name where it has one: ``"cuda NVIDIA H100"``."""
    kind = str(current_platform.device_type)
    try:
        name = str(current_platform.get_device_name())
    except (AttributeError, NotImplementedError, RuntimeError):
        return kind
    return kind if name.lower() == kind else f"{kind} {name}"
