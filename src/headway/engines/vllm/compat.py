"""Everything that depends on vLLM's version: the hooks we stand on, probed at start.

vLLM calls its scheduler interface non-public. When a hook is missing, one sentence says
which, instead of a failure in the middle of a step.
"""

from __future__ import annotations

import logging
from typing import Any

import vllm
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.request import RequestStatus

from headway.engines.prefix import ABSENT, CACHED, HELD, LookUp
from headway.errors import UserError

logger = logging.getLogger("vllm.headway")

GROUP = [0]
"""The only KV cache group, as the block pool wants it named."""

TRIED = "0.32.0"
"""The release this driver was tested with."""

METHODS = (
    "schedule",
    "update_from_output",
    "add_request",
    "finish_requests",
    "_free_request",
    "_preempt_request",
    "_request_blocks_can_be_freed",
)

ATTRIBUTES = (
    "running",
    "waiting",
    "requests",
    "max_num_scheduled_tokens",
    "max_num_running_reqs",
    "scheduler_config",
    "kv_cache_manager.block_pool.num_gpu_blocks",
    "kv_cache_manager.block_pool.get_num_free_blocks",
    "kv_cache_config.kv_cache_groups",
    "block_size",
)


ENDS = {
    "FINISHED_STOPPED": "stopped",
    "FINISHED_REPETITION": "stopped",
    "FINISHED_LENGTH_CAPPED": "length",
}
"""Ends that are no error, by vLLM's name of the status."""


def probe(scheduler: Any) -> None:
    """Check that *scheduler* has every hook, and warn when it is not the class for its engine.

    Raises:
        UserError: One is missing; the message names it and the version tried.
    """
    for path in (*METHODS, *ATTRIBUTES):
        target = scheduler
        for name in path.split("."):
            if not hasattr(target, name):
                raise UserError(
                    f"vLLM {vllm.__version__} has no {path!r} in its scheduler, which Headway "
                    f"steers by; it was tested with vLLM {TRIED}."
                )
            target = getattr(target, name)
    mistake = wrong_class(scheduler)
    if mistake is not None:
        logger.warning("%s", mistake)


def wrong_class(scheduler: Any) -> str | None:
    """Return a sentence when the scheduler's class is not the one for how the engine runs.

    vLLM says how it runs in its configuration and takes any class by name, unasked.
    """
    is_async = bool(scheduler.scheduler_config.async_scheduling)
    if isinstance(scheduler, AsyncScheduler) == is_async:
        return None
    right, what = ("Scheduler", "is on") if is_async else ("SyncScheduler", "is off")
    return (
        f"Asynchronous scheduling {what} in this engine, and {type(scheduler).__name__} is not"
        f" made for that; start it with --scheduler-cls headway.vllm.{right}."
    )


def end_of(request: Any) -> str:
    """Return how a request ended, in the words of :class:`headway.policy.events.Finished`.

    vLLM finds stop strings where it makes text of tokens, in the server's process, and has the
    scheduler abort a request that has one: no hang-up. A client that does hang up on such a
    request after its first token cannot be told from that.
    """
    if request.status == RequestStatus.FINISHED_ABORTED:
        params = request.sampling_params
        has_stop_strings = params is not None and bool(params.stop)
        return "stopped" if has_stop_strings and request.num_output_tokens else "aborted"
    return ENDS.get(request.status.name, "error")


def total_blocks(scheduler: Any) -> int:
    """Return the blocks requests can get; one is vLLM's null block."""
    return int(scheduler.kv_cache_manager.block_pool.num_gpu_blocks - 1)


def free_blocks(scheduler: Any) -> int:
    """Return the blocks free now, evictable cached ones included."""
    return int(scheduler.kv_cache_manager.block_pool.get_num_free_blocks())


def prefix_look_up(scheduler: Any) -> LookUp | None:
    """Return what tells whether a block of a request is cached, ``None`` where nobody can.

    With one group of full attention hits are a prefix of the request's own hashes, one a block.
    """
    manager = scheduler.kv_cache_manager
    pool = manager.block_pool
    groups = scheduler.kv_cache_config.kv_cache_groups
    is_plain = len(groups) == 1 and type(groups[0].kv_cache_spec) is FullAttentionSpec
    if not getattr(manager, "enable_caching", False) or not is_plain:
        return None
    if getattr(pool, "hash_block_size", None) != scheduler.block_size:
        return None

    def look_up(request: Any, index: int) -> int:
        hashes = request.block_hashes
        if index >= len(hashes) or getattr(request, "skip_reading_prefix_cache", False):
            return ABSENT
        blocks = pool.get_cached_block(hashes[index], GROUP)
        if not blocks:
            return ABSENT
        return HELD if blocks[0].ref_cnt else CACHED

    return look_up


def block_name(request: Any, index: int) -> bytes | None:
    """Return the hash of a block of a request, with all before it; ``None`` if it is not full."""
    hashes = request.block_hashes
    is_read = not getattr(request, "skip_reading_prefix_cache", False)
    return hashes[index] if is_read and index < len(hashes) else None


def num_groups(scheduler: Any) -> int:
    """Return how many block tables a request has (1 but for hybrid models)."""
    return max(len(scheduler.kv_cache_config.kv_cache_groups), 1)


def block_ids(kv_cache_manager: Any, request: Any) -> list[int]:
    """Return the KV blocks of a request, in order; of a model with one kind of KV cache."""
    return list(kv_cache_manager.get_block_ids(request.request_id)[0])


def num_settled_tokens(request: Any) -> int:
    """Return the tokens whose KV is computed; those of a step in flight are not, yet."""
    return int(request.num_computed_tokens - request.num_in_flight_tokens)


def admitted_ids(output: Any) -> list[str]:
    """Return requests that began or resumed in a ``SchedulerOutput``."""
    ids = [new.req_id for new in output.scheduled_new_reqs]
    resumed = getattr(output.scheduled_cached_reqs, "resumed_req_ids", None)
    if resumed:
        ids.extend(sorted(resumed))
    return ids


def is_session(request: Any) -> bool:
    """Return whether a request's prompt may grow later (streaming input sessions)."""
    return bool(getattr(request, "resumable", False))
