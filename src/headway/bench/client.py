"""One streaming chat request, and what its client saw of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from headway.metrics.record import Outcome, RequestRecord
from headway.slo import Slo

REFUSED_STATUSES = (429, 503)
MAX_DETAIL_CHARS = 300


@dataclass(frozen=True, slots=True)
class Call:
    """One request ready to be sent.

    Attributes:
        id: Name in the workload.
        arrived_at_s: When it is due, seconds after the start of the run.
        body: JSON body of the chat completion.
        num_prompt_tokens: The workload's figure, used when the server does not tell.
    """

    id: str
    arrived_at_s: float
    slo: Slo
    body: Mapping[str, Any]
    num_prompt_tokens: int


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


@dataclass(slots=True)
class _Seen:
    """What has come back so far."""

    emitted_at_s: list[float] = field(default_factory=list)
    num_prompt_tokens: int | None = None
    finish_reason: str | None = None
    error: str | None = None


async def send(
    session: aiohttp.ClientSession, url: str, call: Call, clock: RunClock, timeout_s: float
) -> RequestRecord:
    """Send *call* and follow its stream to the end.

    Never raises for what the server or the network does: that is the outcome. A cancelled call
    (the user stopped the run) is recorded as ``aborted``.
    """
    seen = _Seen()
    sent_at_s = clock.now_s()
    outcome: Outcome
    try:
        async with asyncio.timeout(timeout_s):
            outcome, detail = await _stream(session, url, call, clock, seen)
    except TimeoutError:
        outcome, detail = "timed_out", f"no end after {timeout_s:g} s"
    except (aiohttp.ClientError, ConnectionError) as error:
        outcome, detail = "failed", f"connection: {error}" if str(error) else type(error).__name__
    except asyncio.CancelledError:
        outcome, detail = "aborted", "the run was stopped"
    return RequestRecord(
        id=call.id,
        slo=call.slo,
        arrived_at_s=call.arrived_at_s,
        emitted_at_s=tuple(seen.emitted_at_s),
        outcome=outcome,
        num_prompt_tokens=seen.num_prompt_tokens or call.num_prompt_tokens,
        sent_at_s=sent_at_s,
        ended_at_s=clock.now_s(),
        detail=detail[:MAX_DETAIL_CHARS],
    )


async def _stream(
    session: aiohttp.ClientSession, url: str, call: Call, clock: RunClock, seen: _Seen
) -> tuple[Outcome, str]:
    async with session.post(f"{url}/v1/chat/completions", json=call.body) as response:
        if response.status != 200:
            text = await response.text()
            outcome: Outcome = "refused" if response.status in REFUSED_STATUSES else "failed"
            return outcome, f"HTTP {response.status}: {message_of(text)}"
        async for event in events(response.content):
            read_event(event, clock.now_s(), seen)
            if seen.error is not None:
                return "failed", seen.error
    if seen.finish_reason is None:
        return "failed", "the stream ended without a finish reason"
    if seen.finish_reason in ("abort", "error"):
        return "aborted" if seen.finish_reason == "abort" else "failed", "ended by the server"
    return "finished", ""


async def events(stream: aiohttp.StreamReader) -> AsyncIterator[dict[str, Any]]:
    """Yield the JSON objects of a server-sent event stream."""
    async for line in stream:
        if not line.startswith(b"data:"):
            continue
        data = line[5:].strip()
        if data == b"[DONE]":
            return
        try:
            event = json.loads(data)
        except json.JSONDecodeError:
            event = {"error": {"message": f"a chunk that is not JSON: {data[:80]!r}"}}
        yield event


def read_event(event: Mapping[str, Any], now_s: float, seen: _Seen) -> None:
    """Count the tokens of one chunk.

    A server that sends ``token_ids`` is counted exactly; tokens sharing a chunk share its time.
    Of any other server each chunk with text counts as one token.
    """
    if "error" in event:
        error = event["error"]
        seen.error = str(error.get("message", error) if isinstance(error, Mapping) else error)
        return
    if event.get("prompt_token_ids"):
        seen.num_prompt_tokens = len(event["prompt_token_ids"])
    for choice in event.get("choices") or ():
        token_ids = choice.get("token_ids")
        if token_ids is not None:
            num_tokens = len(token_ids)
        else:
            delta = choice.get("delta") or {}
            num_tokens = int(bool(delta.get("content") or delta.get("reasoning_content")))
        seen.emitted_at_s.extend([now_s] * num_tokens)
        seen.finish_reason = choice.get("finish_reason") or seen.finish_reason


def message_of(text: str) -> str:
    """Return the message of an error body, or the body itself when it has none."""
    try:
        body = json.loads(text)
    except json.JSONDecodeError:
        return text.strip()
    error = body.get("error", body) if isinstance(body, dict) else body
    if isinstance(error, dict):
        return str(error.get("message") or error.get("detail") or error)
    return str(error)
