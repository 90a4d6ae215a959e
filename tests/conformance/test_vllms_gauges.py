"""vLLM's own gauges beside Headway: what routers read of a server keeps its meaning.

llm-d, Dynamo and the Gateway API's inference extension read ``vllm:num_requests_waiting``,
``vllm:num_requests_running`` and ``vllm:kv_cache_usage_perc``: what vLLM's scheduler says in
``make_stats``, some of it by the length of queues that Headway gates.
"""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from vllm.v1.metrics.stats import PrefixCacheStats
from vllm.v1.request import RequestStatus

SEATS = 8


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("policy", ["headway", "slack", "accelgen"])
def test_who_is_held_back_counts_as_waiting(lab: Any, policy: str, asynchronous: bool) -> None:
    """After every step of an overload: running are those with a place, waiting all the others that
    vLLM knows, also those that the plan does not show to its loop. KV in use is vLLM's own."""
    engine = lab.Engine(
        num_blocks=80,
        max_num_batched_tokens=128,
        max_num_seqs=SEATS,
        asynchronous=asynchronous,
        headway={"policy": policy},
    )
    run = lab.start(engine)
    scheduler = run.scheduler
    with_stats(scheduler)
    schedule, update = scheduler.schedule, scheduler.update_from_output
    told, num_held_back = [], 0

    def scheduled(*args: Any, **kwargs: Any) -> Any:
        nonlocal num_held_back
        output = schedule(*args, **kwargs)
        has_place = len(scheduler.running) < SEATS and lab.free_blocks(run) > 0
        num_held_back += has_place and len(scheduler.waiting) > 0
        return output

    def updated(*args: Any, **kwargs: Any) -> Any:
        outputs = update(*args, **kwargs)
        told.append(told_of(scheduler))
        return outputs

    scheduler.schedule, scheduler.update_from_output = scheduled, updated
    lab.all_served(run.run(lab.mixed(60, 8.0, 3)))
    assert num_held_back > 0, "nobody was ever held back"
    assert max(num_waiting for num_waiting, _ in told) > SEATS
    assert max(kv_share for _, kv_share in told) > 0.9
    assert told[-1] == (0, 0.0)
    lab.is_clean(run)


def with_stats(scheduler: Any) -> None:
    """Let a bare scheduler make the figures that a server's makes."""
    scheduler.log_stats = True
    scheduler.kv_cache_manager.log_stats = True
    scheduler.kv_cache_manager.prefix_cache_stats = PrefixCacheStats()


def told_of(scheduler: Any) -> tuple[int, float]:
    """Compare vLLM's figures with the states of its requests, and with what our reports say.

    Returns:
        How many wait, and the share of the KV cache in use.
    """
    stats = scheduler.make_stats()
    requests = scheduler.requests.values()
    running = [r for r in requests if r.status == RequestStatus.RUNNING]
    waiting = [r for r in requests if r.status != RequestStatus.RUNNING]
    assert stats.num_running_reqs == len(running)
    assert stats.num_waiting_reqs + stats.num_skipped_waiting_reqs == len(waiting)
    live = scheduler.headway.live
    assert live.num_waiting + len(live.hindered) == len(waiting)
    pool = scheduler.kv_cache_manager.block_pool
    in_use = 1 - pool.get_num_free_blocks() / (pool.num_gpu_blocks - 1)
    assert stats.kv_cache_usage == pytest.approx(in_use)
    return len(waiting), stats.kv_cache_usage
