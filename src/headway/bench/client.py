"""One streaming chat request, and what its client saw of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

import aiohttp

from headway.bench.access import post, start_of
from headway.bench.chunks import Answer, BadStream, ChatChunk, CountedBy, Lines, chunk_of
from headway.bench.words import in_one_line, message_of
from headway.metrics.record import Outcome, RequestRecord
from headway.slo import Slo

REFUSED_STATUSES = (429, 503)
DROPPING_REDIRECTS = (301, 302, 303)
"""After these HTTP clients ask anew without the body, so the request is gone."""

MAX_DETAIL_CHARS = 300
MAX_ERROR_BYTES = 2**16
"""64 KiB of an error's body are enough to find its message."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request ready to be sent.

    Attributes:
        id: Name in the workload.
        arrived_at_s: When it is due, seconds after the start of the run.
        body: JSON body of the chat completion.
        num_prompt_tokens: The workload's figure, used when the server does not tell.
        headers: Of this request alone.
    """

    id: str
    arrived_at_s: float
    slo: Slo
    body: Mapping[str, Any]
    num_prompt_tokens: int
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of one call.

    Attributes:
        counted_by: What its tokens were counted by; ``None`` when there were none.
        num_retries: How often it was sent again after a ``Retry-After``.
    """

    record: RequestRecord
    counted_by: CountedBy | None
    num_retries: int


class RunClock:
    """Seconds since the start of a run, on the event loop's monotonic clock."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._started_s = self._loop.time()

    def now_s(self) -> float:
        """Return seconds since the run began."""
        return self._loop.time() - self._started_s

    async def sleep_until(self, at_s: float) -> None:
        """Wait for *at_s* on this clock; yields at once when it has passed."""
        await asyncio.sleep(max(0.0, at_s - self.now_s()))


@dataclass(frozen=True, slots=True)
class _End:
    """How one try ended; *retry_after_s* is what a refusal told the client to wait."""

    outcome: Outcome
    detail: str = ""
    retry_after_s: float | None = None


_STOPPED = _End("aborted", "the run was stopped")


async def send(
    session: aiohttp.ClientSession,
    url: str,
    call: Call,
    clock: RunClock,
    timeout_s: float,
    max_retries: int = 0,
) -> Reply:
    """Send *call* and follow its stream to the end.

    Never raises for what the server or the network does: that is the outcome. A cancelled call
    (the user stopped the run) is recorded as ``aborted``.

    Args:
        timeout_s: Bound of each try, and of a wait between two.
        max_retries: How often a refusal's ``Retry-After`` is followed.
    """
    sent_at_s = clock.now_s()
    num_retries = 0
    while True:
        answer = Answer(int(call.body.get("max_tokens") or 0))
        end = await _try(session, url, call, clock, timeout_s, answer)
        wait_s = end.retry_after_s
        if wait_s is None or num_retries == max_retries:
            break
        if wait_s > timeout_s:
            why = f"told to wait {wait_s:g} s, longer than the timeout; {end.detail}"
            end = _End(end.outcome, why)
            break
        try:
            await clock.sleep_until(clock.now_s() + wait_s)
        except asyncio.CancelledError:
            end = _STOPPED
            break
        num_retries += 1
    record = RequestRecord(
        id=call.id,
        slo=call.slo,
        arrived_at_s=call.arrived_at_s,
        emitted_at_s=tuple(answer.emitted_at_s),
        outcome=end.outcome,
        num_prompt_tokens=answer.num_prompt_tokens or call.num_prompt_tokens,
        sent_at_s=sent_at_s,
        ended_at_s=clock.now_s(),
        detail=in_one_line(end.detail)[:MAX_DETAIL_CHARS],
    )
    return Reply(record, answer.counted_by if answer.emitted_at_s else None, num_retries)


async def _try(
    session: aiohttp.ClientSession,
    url: str,
    call: Call,
    clock: RunClock,
    timeout_s: float,
    answer: Answer,
) -> _End:
    try:
        async with asyncio.timeout(timeout_s):
            return await _stream(session, url, call, clock, answer)
    except TimeoutError:
        what = "end" if answer.num_chunks else "answer"
        return _End("timed_out", f"no {what} after {timeout_s:g} s")
    except BadStream as error:
        return _End("failed", str(error))
    except aiohttp.TooManyRedirects as error:
        return _End("failed", f"redirected {len(error.history)} times")
    except aiohttp.ClientResponseError as error:
        return _End("failed", f"the answer is no HTTP: {error.message}")
    except (aiohttp.ClientError, OSError) as error:
        return _End("failed", f"connection: {str(error) or type(error).__name__}")
    except asyncio.CancelledError:
        return _STOPPED
    except Exception as error:  # A fault of ours must not cost the other requests' figures.
        return _End("failed", f"load generator: {type(error).__name__}: {error}")


async def _stream(
    session: aiohttp.ClientSession, url: str, call: Call, clock: RunClock, answer: Answer
) -> _End:
    to = f"{url}/v1/chat/completions"
    async with await post(session, to, call.body, call.headers) as response:
        for step in response.history:
            if step.status in DROPPING_REDIRECTS:
                return _End("failed", f"HTTP {step.status}: redirected to {response.url}")
        if response.status != 200:
            message = message_of(await start_of(response, MAX_ERROR_BYTES))
            detail = f"HTTP {response.status}: {message}"
            if response.status not in REFUSED_STATUSES:
                return _End("failed", detail)
            return _End("refused", detail, told_wait_s(response.headers.get("Retry-After", "")))
        async for chunk in chunks(response.content):
            answer.take(chunk, clock.now_s())
        if answer.num_chunks == 0:
            return _End("failed", f"an answer of {response.content_type} without any chat chunk")
    if answer.finish_reason is None:
        return _End("failed", "the stream ended without a finish reason")
    if answer.finish_reason in ("abort", "error"):
        return _End(
            "aborted" if answer.finish_reason == "abort" else "failed", "ended by the server"
        )
    return _End("finished")


async def chunks(stream: aiohttp.StreamReader) -> AsyncIterator[ChatChunk]:
    """Yield the chunks of a server-sent event stream.

    Raises:
        BadStream: There is something else in it.
    """
    lines = Lines()
    async for part in stream.iter_any():
        for data in lines.feed(part):
            if data == b"[DONE]":
                return
            yield chunk_of(data)
    for data in lines.end():
        if data != b"[DONE]":
            yield chunk_of(data)


def told_wait_s(retry_after: str) -> float | None:
    """Return the seconds of a ``Retry-After``, a number or a date; ``None`` when it is neither."""
    try:
        wait_s = float(retry_after)
    except ValueError:
        try:
            wait_s = max(0.0, parsedate_to_datetime(retry_after).timestamp() - time.time())
        except (ValueError, OverflowError):
            return None
    return wait_s if wait_s >= 0.0 else None
