"""The names of vLLM that Headway reads and the options it decides itself, checked at start.

A missing name would otherwise be met in the middle of a step or, where we override what nobody
calls any more, never. vLLM's own modules are imported when they are looked into, not before.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from importlib import import_module
from typing import Any

from headway.errors import UserError

TRIED = ("0.31.0", "0.32.0", "0.33.0")
"""The releases this driver was tested with (docs/reference/tried-with.md)."""

SCHEDULER = "vllm.v1.core.sched.scheduler.Scheduler"

ATTRIBUTES = (
    "running",
    "waiting",
    "kv_holding_waiting",
    "finished_recving_kv_req_ids",
    "requests",
    "connector",
    "lora_config",
    "pause_state",
    "defer_block_free",
    "_spec_decode_step_blocks",
    "max_model_len",
    "is_encoder_decoder",
    "need_mamba_block_aligned_split",
    "cache_config.block_size",
    "requires_kv_delivery",
    "scheduler_reserve_full_isl",
    "block_size",
    "num_spec_tokens",
    "max_num_scheduled_tokens",
    "max_num_running_reqs",
    "max_num_active_reqs",
    "num_waiting_for_streaming_input",
    "prefill_capacity_bound",
    "adaptive_long_prefill_threshold",
    "scheduler_config.async_scheduling",
    "scheduler_config.long_prefill_token_threshold",
    "scheduler_config.policy",
    "scheduler_config.enable_chunked_prefill",
    "kv_cache_config.kv_cache_groups",
    "kv_cache_manager.enable_caching",
    "kv_cache_manager.get_block_ids",
    "kv_cache_manager.get_computed_blocks",
    "kv_cache_manager.coordinator.single_type_managers",
    "kv_cache_manager.block_pool.num_gpu_blocks",
    "kv_cache_manager.block_pool.hash_block_size",
    "kv_cache_manager.block_pool.get_num_free_blocks",
    "kv_cache_manager.block_pool.get_cached_block",
    "vllm_config.additional_config",
    "vllm_config.cache_config.block_size",
    "vllm_config.device_config.device_type",
    "vllm_config.model_config.dtype",
    "vllm_config.model_config.hf_text_config",
    "vllm_config.parallel_config.data_parallel_index",
    "vllm_config.parallel_config.decode_context_parallel_size",
    "vllm_config.parallel_config.pipeline_parallel_size",
    "vllm_config.parallel_config.prefill_context_parallel_size",
    "vllm_config.parallel_config.tensor_parallel_size",
)
"""Read from a scheduler that is built, path by path."""

CLASSES = {
    SCHEDULER: (
        "schedule",
        "update_from_output",
        "add_request",
        "finish_requests",
        "shutdown",
        "_free_request",
        "_preempt_request",
        "_request_blocks_can_be_freed",
        "_inflight_prefill_reserved_blocks",
    ),
    "vllm.v1.request.Request": (
        "request_id",
        "client_index",
        "arrival_time",
        "sampling_params",
        "max_tokens",
        "num_tokens",
        "num_prompt_tokens",
        "num_computed_tokens",
        "num_in_flight_tokens",
        "num_output_tokens",
        "num_output_placeholders",
        "num_stale_output_tokens",
        "drop_stale_output",
        "num_tokens_with_spec",
        "lora_request",
        "structured_output_request",
        "status",
        "is_finished",
        "take_events",
        "block_hashes",
        "skip_reading_prefix_cache",
        "resumable",
    ),
    "vllm.v1.request.RequestStatus": (
        "RUNNING",
        "WAITING_FOR_REMOTE_KVS",
        "WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR",
        "FINISHED_ABORTED",
        "FINISHED_LENGTH_CAPPED",
        "FINISHED_STOPPED",
        "FINISHED_REPETITION",
        "get_finished_reason",
    ),
    "vllm.sampling_params.SamplingParams": ("extra_args", "stop"),
    "vllm.v1.core.kv_cache_utils.KVCacheBlock": ("block_hash", "ref_cnt"),
    "vllm.v1.core.kv_cache_manager.KVCacheBlocks": ("get_block_ids", "blocks"),
    "vllm.v1.core.single_type_kv_cache_manager.SingleTypeKVCacheManager": (
        "block_size",
        "block_size",
        "req_to_blocks",
        "get_num_blocks_to_allocate",
        "get_num_skipped_tokens",
        "req_to_blocks",
    ),
    "vllm.v1.structured_output.request.StructuredOutputRequest": ("grammar",),
    "vllm.v1.core.sched.interface.PauseState": ("UNPAUSED",),
    "vllm.lora.request.LoRARequest": ("lora_int_id",),
    "vllm.config.LoRAConfig": ("max_loras",),
    "vllm.v1.core.sched.output.SchedulerOutput": (
        "num_scheduled_tokens",
        "scheduled_new_reqs",
        "scheduled_cached_reqs",
        "preempted_req_ids",
    ),
    "vllm.v1.core.sched.output.NewRequestData": ("req_id",),
    "vllm.v1.core.sched.output.CachedRequestData": ("resumed_req_ids",),
    "vllm.v1.engine.EngineCoreOutput": (
        "request_id",
        "new_token_ids",
        "finish_reason",
        "stop_reason",
        "events",
    ),
    "vllm.v1.engine.EngineCoreOutputs": ("outputs",),
    "vllm.v1.kv_cache_interface.KVCacheConfig": ("kv_cache_groups", "num_blocks"),
    "vllm.v1.kv_cache_interface.KVCacheGroupSpec": ("kv_cache_spec", "layer_names"),
    "vllm.v1.kv_cache_interface.FullAttentionSpec": ("page_size_bytes",),
}
"""Read from, called on, or overridden in objects of these classes; most exist only later."""

CONNECTOR = {
    "vllm.distributed.kv_transfer.kv_connector.v1.base.KVConnectorBase_V1": (
        "bind_kv_cache_manager",
        "requires_kv_delivery",
        "get_num_new_matched_tokens",
        "update_state_after_alloc",
        "build_connector_meta",
        "update_connector_output",
        "request_finished",
        "reset_cache",
        "register_kv_caches",
        "handle_preemptions",
        "start_load_kv",
        "build_connector_worker_meta",
        "wait_for_layer_load",
        "save_kv_layer",
        "wait_for_save",
        "_get_connector_metadata",
    ),
    "vllm.distributed.kv_transfer.kv_connector.v1.multi_connector.MultiConnector": (
        "sub_connectors",
    ),
    "vllm.v1.outputs.KVConnectorOutput": ("kv_connector_worker_meta",),
    "vllm.config.KVTransferConfig": ("get_from_extra_config",),
}
"""What swap needs beside that; looked into when there is a swap connector."""

PARAMETERS = {"_preempt_request": "drop_stale_output"}
"""Methods of the scheduler and an argument that we pass by name."""

PLACES = {
    "make_arg_parser": (
        "vllm.entrypoints.common.cli_args",  # from 0.33
        "vllm.entrypoints.launchers.cli_args",
    ),
    "cli_env_setup": (
        "vllm.entrypoints.common.startup",  # from 0.33
        "vllm.entrypoints.serve.utils.api_utils",
    ),
}
"""What releases keep in different modules, the newest first."""


def missing_names(scheduler: Any) -> Iterator[str]:
    """Yield what of the tables *scheduler*, and the vLLM around it, does not have."""
    for path in ATTRIBUTES:
        target = scheduler
        for name in path.split("."):
            if not hasattr(target, name):
                yield f"scheduler.{path}"
                break
            target = getattr(target, name)
    yield from missing_of(CLASSES)
    stock = found(SCHEDULER)
    for method, parameter in PARAMETERS.items():
        if parameter not in parameters_of(stock, method):
            yield f"{method}({parameter}=…)"


def missing_of(table: dict[str, tuple[str, ...]]) -> Iterator[str]:
    """Yield the classes of *table* that are not there, and the names that they do not have."""
    for path, names in table.items():
        kind = found(path)
        if kind is None:
            yield path
            continue
        have = names_of(kind)
        yield from (f"{kind.__name__}.{name}" for name in names if name not in have)


def refuse_missing(names: Iterator[str]) -> None:
    """Raise one sentence when there is a missing name.

    Raises:
        UserError: It says which, and the releases tried.
    """
    name = next(names, None)
    if name is not None:
        import vllm

        raise UserError(
            f"vLLM {vllm.__version__} has no {name!r}, which Headway steers by; it was tested"
            f" with vLLM {', '.join(TRIED)}."
        )


def refuse_options(scheduling_policy: str, long_prefill_token_threshold: int) -> None:
    """Raise one sentence for an option by which vLLM would decide what the plan decides.

    Raises:
        UserError: It names the option, and what to do.
    """
    if scheduling_policy != "fcfs":
        raise UserError(
            f"--scheduling-policy {scheduling_policy} orders requests by a number, and Headway by"
            " their promises: leave it out, and say what matters in an SLO file (--slo)."
        )
    if long_prefill_token_threshold:
        raise UserError(
            "--long-prefill-token-threshold caps the chunks of long prompts, which Headway sizes"
            " in every step: leave it out, with or without -adaptive, and promise a time"
            " (--slo) to the requests that it protects."
        )


def found(path: str) -> Any:
    """Return the class at *path*, ``None`` when there is none."""
    module, _, name = path.rpartition(".")
    try:
        return getattr(import_module(module), name, None)
    except ModuleNotFoundError as error:
        if error.name and module.startswith(error.name):
            return None
        raise


def names_of(kind: Any) -> set[str]:
    """Return the names that a class's objects have: defined, declared, or touched when made."""
    names = set(dir(kind))
    for base in kind.__mro__:
        names.update(vars(base), vars(base).get("__annotations__", ()))
        code = getattr(vars(base).get("__init__"), "__code__", None)
        names.update(code.co_names if code is not None else ())
    return names


def parameters_of(kind: Any, method: str) -> Any:
    """Return the parameters of a method, none when it is not there."""
    function = getattr(kind, method, None)
    return () if function is None else inspect.signature(function).parameters


def moved(name: str) -> Any:
    """Return what this release keeps in one of several :data:`PLACES`.

    Raises:
        UserError: It is in none of them.
    """
    for module in PLACES[name]:
        thing = found(f"{module}.{name}")
        if thing is not None:
            return thing
    refuse_missing(iter((name,)))
    raise AssertionError("unreachable")
