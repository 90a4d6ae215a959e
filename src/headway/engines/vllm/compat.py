"""Everything that depends on vLLM's version: what we read of it, and how.

vLLM calls its scheduler interface non-public. When a name is missing (``vllm_names.py``), one
sentence says which at start, instead of a failure in the middle of a step.
"""

from __future__ import annotations

import logging
from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.kv_cache_interface import FullAttentionSpec
from vllm.v1.request import RequestStatus

from headway.engines.prefix import ABSENT, CACHED, HELD, LookUp
from headway.engines.vllm.vllm_names import missing_names, refuse_missing, refuse_options

logger = logging.getLogger("vllm.headway")

GROUP = [0]
"""The only KV cache group, as the block pool wants it named."""

ENDS = {
    "FINISHED_STOPPED": "stopped",
    "FINISHED_REPETITION": "stopped",
    "FINISHED_LENGTH_CAPPED": "length",
}
"""Ends that are no error, by vLLM's name of the status."""


def probe(scheduler: Any) -> None:
    """Check that *scheduler* has all we read and nothing that two would decide.

    Warns when it is not the class for its engine.

    Raises:
        UserError: A name is missing, or an option of vLLM's decides what the plan decides.
    """
    refuse_missing(missing_names(scheduler))
    config = scheduler.scheduler_config
    refuse_options(config.policy, config.long_prefill_token_threshold)
    # Without a threshold it has no effect; with the plan's own it would raise that.
    scheduler.adaptive_long_prefill_threshold = False
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
    cache = scheduler.kv_cache_manager
    pool = cache.block_pool
    groups = scheduler.kv_cache_config.kv_cache_groups
    is_plain = len(groups) == 1 and type(groups[0].kv_cache_spec) is FullAttentionSpec
    if not cache.enable_caching or not is_plain:
        return None
    if pool.hash_block_size != scheduler.block_size:
        return None

    def look_up(request: Any, index: int) -> int:
        hashes = request.block_hashes
        if index >= len(hashes) or request.skip_reading_prefix_cache:
            return ABSENT
        blocks = pool.get_cached_block(hashes[index], GROUP)
        if not blocks:
            return ABSENT
        return HELD if blocks[0].ref_cnt else CACHED

    return look_up


def block_name(request: Any, index: int) -> bytes | None:
    """Return the hash of a block of a request, with all before it; ``None`` if it is not full."""
    hashes = request.block_hashes
    is_read = not request.skip_reading_prefix_cache
    return hashes[index] if is_read and index < len(hashes) else None


def block_ids(kv_cache_manager: Any, request: Any) -> list[int]:
    """Return the KV blocks of a request, in order; of a model with one kind of KV cache."""
    return list(kv_cache_manager.get_block_ids(request.request_id)[0])


def num_settled_tokens(request: Any) -> int:
    """Return the tokens whose KV is computed; those of a step in flight are not, yet."""
    return int(request.num_computed_tokens - request.num_in_flight_tokens)


def admitted_ids(output: Any) -> list[str]:
    """Return requests that began or resumed in a ``SchedulerOutput``.

    A model runner of the second version is shown the resumed among the new.
    """
    begun = [new.req_id for new in output.scheduled_new_reqs]
    return begun + sorted(output.scheduled_cached_reqs.resumed_req_ids)


def blocks_kept_from_loads(scheduler: Any) -> int:
    """Return the free blocks that a transfer of KV may not take.

    The engine keeps them for prompts in progress, those whose KV is on its way included, and for
    the drafts of the one that asks; 0.31 counts those by a method.
    """
    drafts = scheduler._spec_decode_step_blocks
    own = drafts() if callable(drafts) else drafts
    return int(scheduler._inflight_prefill_reserved_blocks() + own)


def preempted_ids(output: Any) -> list[str]:
    """Return requests preempted since the step before, the planned ones too."""
    return sorted(output.preempted_req_ids or ())


def most_running(scheduler: Any) -> int:
    """Return how many requests may run: those that wait for more input keep their places."""
    return int(
        min(scheduler.max_num_running_reqs, scheduler.max_num_active_reqs)
        - scheduler.num_waiting_for_streaming_input
    )


def tell_capacity(scheduler: Any, is_full: bool) -> None:
    """Correct what stock concludes from the requests that a step left waiting.

    With ``--prefill-schedule-interval`` it computes prompts in every Nth step only, until one
    leaves requests waiting: then it cannot afford to. Those that the plan did not show it wait
    for a promise or for KV, not for prompts to be computed more often, unless the step had all
    tokens that fit, or no place was left.
    """
    has_places = len(scheduler.running) < scheduler.max_num_active_reqs
    if has_places and not is_full and not scheduler.waiting:  # None of those shown is left.
        scheduler.prefill_capacity_bound = False


def is_session(request: Any) -> bool:
    """Return whether a request's prompt may grow later (streaming input sessions)."""
    return bool(request.resumable)
