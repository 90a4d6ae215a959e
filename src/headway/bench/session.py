"""One measured run against a live server: ask, warm up, load, summarise."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from headway.bench.access import Access
from headway.bench.calls import CallOptions, SendSlo, calls_of, warm_up_calls
from headway.bench.client import Call
from headway.bench.load import LoadResult, Tally, run_load
from headway.bench.probe import ServerInfo, ask_server, preemptions_between, scrape
from headway.errors import HeadwayError
from headway.metrics.record import RequestRecord, RunFacts, summarise
from headway.slo import SloBook
from headway.workloads.schema import WorkloadRequest

WARM_UP_TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to send and how; see ``headway bench --help`` for the meaning of each."""

    workload: Sequence[WorkloadRequest]
    book: SloBook
    policy: str = "unknown"
    rate_rps: float | None = None
    seed: int | None = None
    timeout_s: float = 120.0
    send_slo: SendSlo = "ms"
    priority_by_class: Mapping[str, int] = field(default_factory=dict)
    warm_up: bool = True
    max_retries: int = 0
    asks_usage: bool = True
    tenant_header: str | None = None


@dataclass(frozen=True, slots=True)
class MeasuredRun:
    """One run: the summary of any run (with ``client_lag_s`` added), and what it was made from."""

    run: dict[str, Any]
    records: list[RequestRecord]
    load: LoadResult
    server: ServerInfo


async def measure(
    url: str,
    plan: Plan,
    *,
    on_stage: Callable[[str], None] = lambda stage: None,
    on_progress: Callable[[Tally], None] = lambda tally: None,
    access: Access | None = None,
) -> MeasuredRun:
    """Run *plan* against the server at *url*. A SIGINT ends the load early but not the summary.

    Raises:
        UserError: No such server there, or the plan and its SLO classes do not fit.
        HeadwayError: The warm-up got no answer at all, so nothing worth measuring would follow.
    """
    url, access = url.rstrip("/"), access or Access()
    server = await ask_server(url, access)
    options = CallOptions(
        server.model,
        server.is_vllm,
        plan.send_slo,
        plan.priority_by_class,
        plan.asks_usage,
        plan.tenant_header,
    )
    calls = calls_of(plan.workload, plan.book, options)
    if plan.warm_up:
        on_stage("warming up")
        await _warm_up(url, warm_up_calls(plan.book, options), access)
    before = await scrape(url, access)
    on_stage("measuring")
    load = await _stoppable(
        run_load(
            url,
            calls,
            timeout_s=plan.timeout_s,
            on_progress=on_progress,
            access=access,
            max_retries=plan.max_retries,
        )
    )
    after = await scrape(url, access)
    facts = RunFacts(
        policy=plan.policy,
        engine="live",
        seed=plan.seed,
        rate_rps=plan.rate_rps,
        preemptions=preemptions_between(before, after),
    )
    run = summarise(load.records, facts)
    run["client_lag_s"] = {"send": load.lag.send_s, "loop": load.lag.loop_s}
    run["tokens_counted_by"] = dict(load.counted_by)
    run["num_retries"] = load.num_retries
    return MeasuredRun(run, load.records, load, server)


async def _warm_up(url: str, calls: Sequence[Call], access: Access) -> None:
    result = await run_load(url, calls, timeout_s=WARM_UP_TIMEOUT_S, access=access)
    if not any(record.finished for record in result.records):
        why = next((r.detail for r in result.records if r.detail), "no reason given")
        raise HeadwayError(f"No warm-up request was answered by {url}: {why}.")


async def _stoppable(load: Coroutine[Any, Any, LoadResult]) -> LoadResult:
    """Run the load as a task that Ctrl-C stops, so that what was measured is still summarised."""
    task = asyncio.create_task(load)
    if threading.current_thread() is not threading.main_thread():
        return await task  # Signals belong to the main thread.
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, task.cancel)
    try:
        return await task
    finally:
        loop.remove_signal_handler(signal.SIGINT)
