"""Open-loop load: each request leaves at its time, whatever the server does."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import aiohttp

from headway.bench.access import Access
from headway.bench.client import Call, Reply, RunClock, send
from headway.metrics.define import quantiles
from headway.metrics.record import RequestRecord

TICK_S = 0.01
"""Period of the ticker that measures the event loop's lag."""

LAG_WARNING_S = 0.020
"""A p99 lag above this may be the client's, not the server's, lateness."""


@dataclass(slots=True)
class Tally:
    """How far a run is, for a progress display."""

    num_planned: int
    num_offered: int = 0
    num_ended: int = 0
    num_kept: int = 0
    num_refused: int = 0
    num_failed: int = 0

    def add(self, record: RequestRecord) -> None:
        """Count one ended request."""
        self.num_ended += 1
        self.num_kept += record.attained
        self.num_refused += record.outcome == "refused"
        self.num_failed += record.outcome in ("failed", "timed_out", "aborted")


@dataclass(frozen=True, slots=True)
class ClientLag:
    """How late the load generator itself was, in seconds.

    Attributes:
        send_s: Actual minus scheduled time of sending, each request.
        loop_s: How late a ticker of 10 ms woke up: what a token's time may be off by.
    """

    send_s: dict[str, float | None]
    loop_s: dict[str, float | None]

    @property
    def is_suspect(self) -> bool:
        """Whether the client was late enough to blur the result."""
        worst = max(self.send_s["p99"] or 0.0, self.loop_s["p99"] or 0.0)
        return worst > LAG_WARNING_S


@dataclass(frozen=True, slots=True)
class LoadResult:
    """Records in order of arrival, and what the client knows of itself.

    Attributes:
        counted_by: Requests whose tokens were counted by ``ids``, ``usage`` and ``chunks``.
        num_retries: How often requests were sent again after a ``Retry-After``.
    """

    records: list[RequestRecord]
    lag: ClientLag
    was_stopped: bool = False
    counted_by: Mapping[str, int] = field(default_factory=dict)
    num_retries: int = 0


@dataclass(slots=True)
class _Run:
    url: str
    clock: RunClock
    timeout_s: float
    max_retries: int
    tally: Tally
    replies: list[Reply] = field(default_factory=list)


async def run_load(
    url: str,
    calls: Sequence[Call],
    *,
    timeout_s: float,
    on_progress: Callable[[Tally], None] = lambda tally: None,
    progress_every_s: float = 0.5,
    access: Access | None = None,
    max_retries: int = 0,
) -> LoadResult:
    """Send every call at its time and wait for all of them.

    Cancelling this coroutine stops the run: requests in flight are recorded as ``aborted``,
    those not yet sent are not offered, and the result is returned with ``was_stopped``.
    """
    tally = Tally(len(calls))
    async with (access or Access()).session() as session:
        run = _Run(url.rstrip("/"), RunClock(), timeout_s, max_retries, tally)
        lags_s: list[float] = []
        helpers = [
            asyncio.create_task(_tick(lags_s)),
            asyncio.create_task(_show(tally, on_progress, progress_every_s)),
        ]
        try:
            was_stopped = await _offer(session, run, calls)
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)
    on_progress(tally)
    order = {call.id: index for index, call in enumerate(calls)}
    records = sorted((r.record for r in run.replies), key=lambda record: order[record.id])
    late_s = [r.sent_at_s - r.arrived_at_s for r in records if r.sent_at_s is not None]
    return LoadResult(
        records,
        ClientLag(quantiles(late_s), quantiles(lags_s)),
        was_stopped,
        Counter(reply.counted_by for reply in run.replies if reply.counted_by is not None),
        sum(reply.num_retries for reply in run.replies),
    )


async def _offer(session: aiohttp.ClientSession, run: _Run, calls: Sequence[Call]) -> bool:
    """Start each call at its time, wait for the last; whether the user stopped it."""
    tasks: list[asyncio.Task[None]] = []
    try:
        for call in sorted(calls, key=lambda call: call.arrived_at_s):
            await run.clock.sleep_until(call.arrived_at_s)
            run.tally.num_offered += 1
            tasks.append(asyncio.create_task(_follow(session, run, call)))
        await asyncio.gather(*tasks)
    except asyncio.CancelledError:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return True
    return False


async def _follow(session: aiohttp.ClientSession, run: _Run, call: Call) -> None:
    reply = await send(session, run.url, call, run.clock, run.timeout_s, run.max_retries)
    run.replies.append(reply)
    run.tally.add(reply.record)


async def _tick(lags_s: list[float]) -> None:
    """Measure how late the event loop wakes a sleeper, until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due_s = loop.time() + TICK_S
        await asyncio.sleep(TICK_S)
        lags_s.append(max(0.0, loop.time() - due_s))


async def _show(tally: Tally, on_progress: Callable[[Tally], None], every_s: float) -> None:
    while True:
        on_progress(tally)
        await asyncio.sleep(every_s)
