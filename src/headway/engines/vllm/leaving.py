"""Leaving: after SIGTERM new work gets 503, what runs may end, and what does not is told so.

vLLM answers SIGTERM and SIGINT by ending its engine (``engine_client.shutdown``), while its HTTP
server still serves. An ASGI middleware in front of everything lets that call wait:

1. At once readiness is false (``/health`` is 503), and whatever asks for new work gets 503,
   ``Retry-After`` and ``Connection: close`` without reaching the engine. A router's retry saves it.
2. Answers that run go on, until none is left or the grace ends; a second signal ends it.
3. What still runs then gets 503, or an error event where its stream has begun.
4. vLLM ends its engine, which has nothing left to do: in order, the recording written.

Stock vLLM 0.31 to 0.33 kills its engine at once, and may wait for ever for streams that nobody
feeds any more (docs/how-to/when-it-fails.md).
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from headway.engines.vllm.answers import Unavailable, http_error, last_events
from headway.engines.vllm.asgi import App, Message, Receive, Scope, Send, path_of
from headway.engines.vllm.call import engine_client
from headway.errors import UserError

logger = logging.getLogger("vllm.headway")

GRACE_S = 20
"""How long answers may go on unless ``--grace`` says otherwise. Kubernetes kills 30 s after
SIGTERM: this, what the engine gets and what connections get fit into them."""

MOST_GRACE_S = 3600

ENGINE_ENDS_WITHIN_S = 7
"""What ``--shutdown-timeout`` of vLLM has beyond the grace: time for the engine to end in order and
to write its recording, which takes it a second. vLLM kills it after that."""

TOLD_WITHIN_S = 1.0
"""How long a client that does not read may keep its last event, and its connection, from ending."""

READINESS = ("/health", "/ping")
"""What a load balancer asks: it is told first."""

READS = ("GET", "HEAD", "OPTIONS")
"""Methods that ask for no work: metrics and models can be read until the end."""

CLOSE = (b"connection", b"close")

NO_NEW_WORK = Unavailable("This server is shutting down and takes no new work; ask another.")
CUT = Unavailable("This server shut down before the answer was complete; ask another.")


def shutdown_timeout_s(grace_s: int | None, vllms_own_s: int | None) -> int:
    """Return the ``--shutdown-timeout`` that vLLM gets.

    Args:
        grace_s: ``--grace``, or ``None``.
        vllms_own_s: What was given as vLLM's ``--shutdown-timeout``, or ``None``: by its
            documentation that is the grace.

    Raises:
        UserError: Both are given, or one is no such number.
    """
    if grace_s is not None and vllms_own_s is not None:
        raise UserError("--grace and vLLM's --shutdown-timeout say the same: give one of them.")
    if vllms_own_s is not None and vllms_own_s < 0:
        raise UserError(f"--shutdown-timeout must be 0 or more seconds, not {vllms_own_s}.")
    if grace_s is not None and not 0 <= grace_s <= MOST_GRACE_S:
        raise UserError(
            f"--grace must be a whole number of seconds from 0 to {MOST_GRACE_S}, not {grace_s}."
        )
    given = (grace_s, vllms_own_s, GRACE_S)
    return next(s for s in given if s is not None) + ENGINE_ENDS_WITHIN_S


class Leaving:
    """Use as ``--middleware headway.engines.vllm.leaving.Leaving``, the last of them.

    The grace is vLLM's ``--shutdown-timeout`` less :data:`ENGINE_ENDS_WITHIN_S`.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._is_leaving = False
        self._running: set[_OpenAnswer] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        self._attach_to(engine_client(scope), scope)
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif self._is_leaving and _asks_for_work(scope):
            await _turn_away(scope, receive, send)
        else:
            answer = _OpenAnswer(scope, send, is_last=lambda: self._is_leaving)
            self._running.add(answer)
            try:
                await self._app(scope, receive, answer.send)
            finally:
                self._running.discard(answer)

    def _attach_to(self, client: Any, scope: Scope) -> None:
        """Wrap the client's ``shutdown``, once: vLLM calls it in a thread when a signal comes."""
        if client is None or getattr(client.shutdown, "waits_for_answers", False):
            return
        end_engine, loop = client.shutdown, asyncio.get_running_loop()
        state = scope["app"].state

        def shutdown(timeout: float | None = None) -> None:
            began_s = time.monotonic()
            if not self._is_leaving and _is_elsewhere(loop):
                grace_s = max(0, client.vllm_config.shutdown_timeout - ENGINE_ENDS_WITHIN_S)
                try:
                    asyncio.run_coroutine_threadsafe(self._leave(grace_s, state), loop).result()
                except Exception:  # vLLM would never end.
                    logger.exception("Leaving failed; the engine ends now.")
            left_s = None if timeout is None else timeout - (time.monotonic() - began_s)
            end_engine(timeout=None if left_s is None else max(left_s, 0.0))

        shutdown.waits_for_answers = True  # type: ignore[attr-defined]
        client.shutdown = shutdown

    async def _leave(self, grace_s: float, state: Any) -> None:
        """Return when no answer is left."""
        self._is_leaving = True
        logger.info(
            "Leaving: no new work from now on; answers that run: %d, for at most %g s.",
            len(self._running),
            grace_s,
        )
        loop = asyncio.get_running_loop()
        grace = loop.create_task(self._ended(grace_s))
        # vLLM's own handlers do nothing any more: it knows of the first signal.
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, grace.cancel)
        await asyncio.wait([grace])
        await self._cut_all()
        # vLLM's server would wait for ever for a client that does not read.
        if (server := getattr(state, "server", None)) is not None:
            server.config.timeout_graceful_shutdown = TOLD_WITHIN_S

    async def _ended(self, within_s: float) -> None:
        """Return when no answer runs any more, or when the time is over."""
        if self._running:
            await asyncio.wait({answer.task for answer in self._running}, timeout=within_s)

    async def _cut_all(self) -> None:
        """Tell the clients of what still runs that there is no more to come."""
        if not self._running:
            return
        logger.warning("Leaving: answers that are cut with an error: %d.", len(self._running))
        with suppress(TimeoutError):
            async with asyncio.timeout(TOLD_WITHIN_S):
                await asyncio.gather(*(answer.cut() for answer in self._running))
        # vLLM sees a client that is gone, and ends the request in its engine.
        await self._ended(TOLD_WITHIN_S)
        for answer in self._running:
            answer.task.cancel()


class _OpenAnswer:
    """One answer on its way to its client.

    Args:
        is_last: Whether an answer that begins now is the last one on its connection.
    """

    def __init__(self, scope: Scope, send: Send, is_last: Callable[[], bool]) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.task: asyncio.Task[Any] = task
        self._scope, self._send, self._is_last = scope, send, is_last
        self._has_begun = self._is_stream = self._is_over = False
        self._num_events = 0

    async def send(self, message: Message) -> None:
        """Pass on what vLLM answers, until it is cut."""
        if self._is_over:
            return
        if message["type"] == "http.response.start":
            headers = [*message.get("headers", ())]
            self._has_begun = True
            self._is_stream = _is_event_stream(headers)
            if self._is_last():
                message = {**message, "headers": [*headers, CLOSE]}
        elif message["type"] == "http.response.body":
            self._num_events += bool(message.get("body"))
            self._is_over = not message.get("more_body", False)
        await self._send(message)

    async def cut(self) -> None:
        """Answer with an error what has not begun, end a stream with one, break off the rest."""
        if self._is_over:
            return
        if self._scope["type"] == "http" and not self._has_begun:
            self._is_over = True
            await _say(CUT, self._scope, self._send)
        elif self._is_stream:
            self._is_over = True
            events = last_events(CUT, path_of(self._scope), self._num_events)
            await self._send({"type": "http.response.body", "body": events})
        else:
            self.task.cancel()


def _is_elsewhere(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether *loop* runs, and not in this thread: who waits here does not hold it up."""
    with suppress(RuntimeError):
        return asyncio.get_running_loop() is not loop and loop.is_running()
    return loop.is_running()


def _asks_for_work(scope: Scope) -> bool:
    if scope["type"] != "http":
        return True
    return scope["method"] not in READS or path_of(scope) in READINESS


def _is_event_stream(headers: Sequence[tuple[bytes, bytes]]) -> bool:
    named = {name.lower(): value for name, value in headers}
    is_stream = named.get(b"content-type", b"").startswith(b"text/event-stream")
    return is_stream and b"content-encoding" not in named


async def _turn_away(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer 503, the body having been read: a connection closed before loses the answer."""
    while (await receive()).get("more_body", False):
        pass
    await _say(NO_NEW_WORK, scope, send)


async def _say(problem: Unavailable, scope: Scope, send: Send) -> None:
    anthropic = path_of(scope).startswith("/v1/messages")
    status, headers, body = http_error(problem, anthropic=anthropic, kept=[CLOSE])
    kind = "websocket.http.response" if scope["type"] == "websocket" else "http.response"
    await send({"type": f"{kind}.start", "status": status, "headers": headers})
    await send({"type": f"{kind}.body", "body": body})
