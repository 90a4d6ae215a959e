"""The HTTP edge: bad promises get 400, refused requests 429, everything else passes.

An ASGI middleware in front of vLLM's server. It reads a request body as vLLM reads it
(so authentication comes first and a hang-up is seen as ever), and it listens to what the
engine says about the request, because vLLM's answers do not always carry it: a streamed
chat that ends without a token sends no ``stop_reason``, and the Responses API never does.

The start of an answer waits until the engine has said its first word about the request;
from then on every message passes at once, so a stream is not delayed.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, MutableMapping
from contextlib import aclosing
from contextvars import ContextVar
from http import HTTPStatus
from typing import Any

from headway.engines.vllm.wire import Invalid, Refused, parse
from headway.errors import UserError
from headway.slo import SloBook

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
"""Endpoints whose JSON body may carry ``vllm_xargs``."""

MAX_BODY_BYTES = 64 * 1024 * 1024
"""A larger body is not looked into: it goes to vLLM, and the scheduler judges its promise."""

_current: ContextVar[_Exchange | None] = ContextVar("headway_exchange", default=None)
"""The exchange the running task belongs to; tasks started by vLLM for it inherit it."""


class SloEdge:
    """Use as ``--middleware headway.engines.vllm.edge.SloEdge``."""

    def __init__(self, app: App) -> None:
        self._app = app
        slo_file = os.environ.get(SLO_FILE_VARIABLE)
        self._book = SloBook.load(slo_file) if slo_file else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if not _is_generation(scope):
            await self._app(scope, receive, send)
            return
        client = _engine_client(scope)
        _listen_to(client)
        if self._book is None:
            self._book = _book_of(client)
        exchange = _Exchange(self._book, receive, send, anthropic=_path(scope) == "/v1/messages")
        token = _current.set(exchange)
        try:
            await self._app(scope, exchange.receive, exchange.send)
            await exchange.finish()
        finally:
            _current.reset(token)


class _Exchange:
    """One request and its answer, on their way through the edge."""

    def __init__(self, book: SloBook, receive: Receive, send: Send, *, anthropic: bool) -> None:
        self._book = book
        self._receive = receive
        self._send = send
        self._anthropic = anthropic
        self._body = bytearray()
        self._held: list[Message] = []
        self._passing = False
        self._answered = False
        self._engine_spoke = False
        self._problem: Refused | Invalid | None = None

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
            self._problem = self._mistake_in_body()
            self._body.clear()
            if self._problem is not None:
                return {"type": "http.disconnect"}
        return message

    def _mistake_in_body(self) -> Invalid | None:
        if len(self._body) > MAX_BODY_BYTES or b"slo_" not in self._body:
            return None  # nothing promised: do not parse the body twice
        try:
            body = json.loads(self._body)
        except (ValueError, RecursionError):
            return None  # vLLM has its own words for a malformed body
        try:
            check_promise(body, self._book)
        except UserError as error:
            return Invalid(str(error))
        return None

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
        status, payload, headers = _error(self._problem, anthropic=self._anthropic)
        body = json.dumps(payload).encode()
        dropped = (b"content-type", b"content-length")
        # What other middleware added (CORS, request ids) stays.
        kept = [(key, value) for key, value in start["headers"] if key.lower() not in dropped]
        headers += [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
        ]
        await self._send(
            {"type": "http.response.start", "status": int(status), "headers": kept + headers}
        )
        await self._send({"type": "http.response.body", "body": body})


def check_promise(body: Any, book: SloBook) -> None:
    """Raise a sentence when the parsed JSON *body* asks for a promise that is a mistake.

    Raises:
        UserError: A bad ``slo_*`` field in ``vllm_xargs``, or one outside of it, which
            vLLM would drop in silence.
    """
    if not isinstance(body, Mapping):
        return
    for name in body:
        if name.startswith("slo_"):
            raise UserError(f"Put {name!r:.60} into 'vllm_xargs'; outside of it, it has no effect.")
    fields = body.get("vllm_xargs")
    if isinstance(fields, Mapping):
        book.resolve(fields)


def _error(
    problem: Refused | Invalid, *, anthropic: bool
) -> tuple[HTTPStatus, dict[str, Any], list[tuple[bytes, bytes]]]:
    """Return status, JSON body and extra headers of the answer to *problem*."""
    headers: list[tuple[bytes, bytes]] = []
    if isinstance(problem, Refused):
        status, kind = HTTPStatus.TOO_MANY_REQUESTS, "rate_limit_exceeded"
        anthropic_kind = "rate_limit_error"
        retry_after_s = max(1, math.ceil(problem.retry_after_s))
        headers.append((b"retry-after", str(retry_after_s).encode()))
    else:
        status, kind = HTTPStatus.BAD_REQUEST, "BadRequestError"
        anthropic_kind = "invalid_request_error"
    if anthropic:
        detail: dict[str, Any] = {"type": anthropic_kind, "message": problem.sentence}
        return status, {"type": "error", "error": detail}, headers
    detail = {"message": problem.sentence, "type": kind, "param": None, "code": int(status)}
    return status, {"error": detail}, headers


def _engine_client(scope: Scope) -> Any:
    """Return the server's engine client from where vLLM's own routes find it, or ``None``."""
    return getattr(scope["app"].state, "engine_client", None) if "app" in scope else None


def _book_of(client: Any) -> SloBook:
    """Return the classes of the file that the scheduler's settings name, if they name one."""
    config = getattr(getattr(client, "vllm_config", None), "additional_config", None)
    settings = config.get("headway") if isinstance(config, Mapping) else None
    slo_file = settings.get("slo_file") if isinstance(settings, Mapping) else None
    return SloBook.load(slo_file) if slo_file else SloBook.empty()


def _listen_to(client: Any) -> None:
    """Wrap the client's ``generate``, once, so that exchanges hear what the engine says.

    Every endpoint that generates calls it.
    """
    if client is None or getattr(client.generate, "heard_by_headway", False):
        return
    generate = client.generate

    def heard(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, None]:
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
