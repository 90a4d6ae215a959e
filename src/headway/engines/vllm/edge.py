"""The HTTP edge: bad promises get 400, refused requests 429, everything else passes.

An ASGI middleware in front of vLLM's server. It reads a request body as vLLM reads it
(so authentication comes first and a hang-up is seen as ever) and works out what was promised.
The promise travels with the sampling parameters of the engine's call; body and headers reach
vLLM as they are. The edge also listens to what the engine says about the request, because
vLLM's answers do not always carry it: a streamed chat that ends without a token sends no
``stop_reason``, and the Responses API never does.

The start of an answer waits until the engine has said its first word about the request;
from then on every message passes at once, so a stream is not delayed.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import aclosing
from contextvars import ContextVar
from http import HTTPStatus
from typing import Any

from headway.engines.vllm.answers import http_error
from headway.engines.vllm.promise import promise_of
from headway.engines.vllm.wire import Invalid, Refused, parse
from headway.errors import UserError
from headway.slo import NO_PROMISE, STAMP, Slo, SloBook
from headway.slo_file import WatchedBook

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

SLO_FILE_VARIABLE = "HEADWAY_SLO_FILE"
"""Environment variable that names the server's SLO file; set by ``headway serve``. Without
it the edge reads the file that the scheduler's settings name."""

PATHS = frozenset(
    {
        "/v1/chat/completions",
        "/v1/chat/completions/batch",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
    }
)
"""Endpoints that generate; promises count and are answered for on these."""

MAX_BODY_BYTES = 64 * 1024 * 1024
"""A larger body is not looked into: it goes to vLLM, and the scheduler judges its promise."""

_current: ContextVar[_Exchange | None] = ContextVar("headway_exchange", default=None)
"""The exchange the running task belongs to; tasks started by vLLM for it inherit it."""


class SloEdge:
    """Use as ``--middleware headway.engines.vllm.edge.SloEdge``.

    Args:
        now_s: A monotonic clock; says when to look at the SLO file again.
    """

    def __init__(self, app: App, now_s: Callable[[], float] = time.monotonic) -> None:
        self._app = app
        self._now_s = now_s
        self._watched: WatchedBook | None = None
        self._is_ready = False
        slo_file = os.environ.get(SLO_FILE_VARIABLE)
        if slo_file:
            self._watch(slo_file)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        client = _engine_client(scope)
        if not self._is_ready and client is not None:  # At the start: a bad file ends it there.
            self._watch(_slo_file_of(client))
        if not _is_generation(scope):
            await self._app(scope, receive, send)
            return
        _attach_to(client)
        exchange = _Exchange(self._book(), scope, receive, send)
        token = _current.set(exchange)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception:
            # An application that was shown a hang-up may answer it with an exception.
            if not exchange.has_shown_hang_up:
                raise
        finally:
            _current.reset(token)
        await exchange.finish()

    def _watch(self, slo_file: str | None) -> None:
        self._is_ready = True
        if slo_file:
            self._watched = WatchedBook(slo_file, self._now_s())

    def _book(self) -> SloBook | None:
        return self._watched.at(self._now_s()) if self._watched is not None else None


class _Exchange:
    """One request and its answer, on their way through the edge.

    Args:
        book: The operator's promises; ``None`` where there is no SLO file.

    Attributes:
        has_shown_hang_up: Whether vLLM was told that the client is gone, which is not.
    """

    def __init__(self, book: SloBook | None, scope: Scope, receive: Receive, send: Send) -> None:
        self._book = book or SloBook.empty()
        self._has_file = book is not None
        self._headers = [(name, value) for name, value in scope.get("headers", ())]
        self._receive = receive
        self._send = send
        self._anthropic = _path(scope) == "/v1/messages"
        self._body = bytearray()
        self._has_read = False
        self._promise: Slo | None = None
        self._held: list[Message] = []
        self._passing = False
        self._answered = False
        self._engine_spoke = False
        self._problem: Refused | Invalid | None = None
        self.has_shown_hang_up = False

    def tell(self, params: Any) -> None:
        """Put the promise into *params*, vLLM's ``SamplingParams`` of an engine's call.

        Nothing was promised and no file says what others hold: nothing is written. A body that
        was not looked into keeps what it asks for itself; the scheduler judges that.
        """
        if self._promise is None or (self._promise == NO_PROMISE and not self._has_file):
            return
        asked = params.extra_args or {}
        if self._has_read or not any(name.startswith("slo_") for name in asked):
            params.extra_args = {**asked, STAMP: self._promise.stamp()}

    def hear(self, output: Any) -> None:
        """Note one output of the engine (vLLM's ``RequestOutput``) for this request."""
        self._engine_spoke = True
        for completion in output.outputs:
            if completion.finish_reason is not None and self._problem is None:
                self._problem = parse(completion.stop_reason)

    async def receive(self) -> Message:
        """Hand vLLM the next message of the client, having read along.

        After a mistake in the body vLLM sees the client as gone and stops; what it then
        sends is replaced by our answer.
        """
        message = await self._receive()
        if message["type"] != "http.request" or self._problem is not None:
            return message
        if len(self._body) <= MAX_BODY_BYTES:
            self._body += message.get("body", b"")
        if not message.get("more_body", False):
            self._problem = self._judge()
            self._body.clear()
            if self._problem is not None:
                self.has_shown_hang_up = True
                return {"type": "http.disconnect"}
        return message

    def _judge(self) -> Invalid | None:
        """Work out the promise, or return what is wrong with it."""
        try:
            self._promise = promise_of(self._book, self._headers, self._read_body())
        except UserError as error:
            return Invalid(str(error))
        return None

    def _read_body(self) -> Any:
        """Return the parsed body where it can matter: not to parse it twice for nothing."""
        matters = b'"slo' in self._body or bool(self._book.models)
        if not matters or len(self._body) > MAX_BODY_BYTES:
            return None
        try:
            body = json.loads(self._body)
        except (ValueError, RecursionError):
            return None  # vLLM has its own words for a malformed body
        self._has_read = True
        return body

    async def send(self, message: Message) -> None:
        """Pass vLLM's answer on, or replace it when the request was refused."""
        if self._answered:
            return
        if self._passing:
            await self._send(message)
        elif self._problem is not None and (self._held or _starts(message)):
            await self._answer(self._held[0] if self._held else message)
        elif self._must_hold(message):
            self._held.append(message)
        else:
            self._passing = True
            for held in self._held:
                await self._send(held)
            self._held.clear()
            await self._send(message)

    def _must_hold(self, message: Message) -> bool:
        if _starts(message):
            return bool(message["status"] == HTTPStatus.OK)
        return (
            message["type"] == "http.response.body"
            and bool(message.get("more_body", False))
            and not self._engine_spoke
            and not message.get("body", b"").startswith(b":")  # a keep-alive must not wait
        )

    async def finish(self) -> None:
        """Answer a mistake that vLLM left unanswered because the client seemed gone."""
        if self._problem is not None and not self._passing and not self._answered:
            await self._answer({"headers": []})

    async def _answer(self, start: Message) -> None:
        assert self._problem is not None
        self._answered = True
        self._held.clear()
        status, headers, body = http_error(
            self._problem, anthropic=self._anthropic, kept=start["headers"]
        )
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


def _engine_client(scope: Scope) -> Any:
    """Return the server's engine client from where vLLM's own routes find it, or ``None``."""
    return getattr(scope["app"].state, "engine_client", None) if "app" in scope else None


def _slo_file_of(client: Any) -> str | None:
    """Return the file that the scheduler's settings name, if they name one."""
    config = getattr(getattr(client, "vllm_config", None), "additional_config", None)
    settings = config.get("headway") if isinstance(config, Mapping) else None
    return settings.get("slo_file") if isinstance(settings, Mapping) else None


def _attach_to(client: Any) -> None:
    """Wrap the client's ``generate``, once: promises go in, what the engine says comes out.

    Every endpoint that generates calls it, with the sampling parameters second.
    """
    if client is None or getattr(client.generate, "heard_by_headway", False):
        return
    generate = client.generate

    def heard(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
        exchange = _current.get()
        params = args[1] if len(args) > 1 else kwargs.get("sampling_params")
        if exchange is not None and params is not None:
            exchange.tell(params)
        return _heard(generate(*args, **kwargs))

    heard.heard_by_headway = True  # type: ignore[attr-defined]
    client.generate = heard


async def _heard(outputs: AsyncGenerator[Any, None]) -> AsyncGenerator[Any, None]:
    """Yield *outputs*, telling the current exchange of each; closing closes both."""
    async with aclosing(outputs):
        async for output in outputs:
            exchange = _current.get()
            if exchange is not None:
                exchange.hear(output)
            yield output


def _path(scope: Scope) -> str:
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] if root and path.startswith(root) else path


def _is_generation(scope: Scope) -> bool:
    return scope["type"] == "http" and scope["method"] == "POST" and _path(scope) in PATHS


def _starts(message: Message) -> bool:
    return bool(message["type"] == "http.response.start")
