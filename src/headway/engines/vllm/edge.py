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

import logging
import os
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from headway.engines.vllm import account
from headway.engines.vllm.answers import http_error
from headway.engines.vllm.api_keys import accepts, is_allowed
from headway.engines.vllm.asgi import App, Message, Receive, Scope, Send, path_of, starts
from headway.engines.vllm.call import Bystander, attach_to, current, engine_client, settings_of
from headway.engines.vllm.headers import api_key_of
from headway.engines.vllm.promise import RequestedPromise, asked_of
from headway.engines.vllm.proxy_headers import ProxyHeaders
from headway.engines.vllm.request_body import can_matter, parsed
from headway.engines.wire import Invalid, Refused, parse, parse_account
from headway.errors import UserError
from headway.slo import EXPLAIN_IN_STAMP, NO_PROMISE, STAMP, SloBook
from headway.slo_file import WatchedBook
from headway.slo_rules import is_ours

logger = logging.getLogger("vllm.headway")

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
        "/invocations",
        "/inference/v1/generate",
    }
)
"""Endpoints that generate; promises count and are answered for on these. Requests of others
hold no promise, so that none of them is ever refused."""

NO_CLIENT = (
    "vLLM's server does not keep its engine's client where Headway looks for it"
    " (app.state.engine_client): promises in headers, and the SLO file's, have no effect."
)

OPEN_PATHS = frozenset({"/invocations"})
"""Of :data:`PATHS` those on which vLLM asks for no API key, even where the server has one."""


class SloEdge:
    """Use as ``--middleware headway.engines.vllm.edge.SloEdge``.

    Args:
        now_s: A monotonic clock; says when to look at the SLO file again.
        unix_now_s: The wall clock, which proxies write into headers.
    """

    def __init__(
        self,
        app: App,
        now_s: Callable[[], float] = time.monotonic,
        unix_now_s: Callable[[], float] = time.time,
    ) -> None:
        self._app = app
        self._now_s = now_s
        self._unix_now_s = unix_now_s
        self._watched: WatchedBook | None = None
        self._proxies = ProxyHeaders()
        self._is_ready = False
        self._has_complained = False
        slo_file = os.environ.get(SLO_FILE_VARIABLE)
        if slo_file:
            self._watch(slo_file)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        client = engine_client(scope)
        if not self._is_ready and client is not None:  # At the start: a bad file ends it there.
            self._take(settings_of(client))
        attach_to(client)
        if not _is_generation(scope):
            await self._pass_by(scope, receive, send)
            return
        if client is None and not self._has_complained:
            self._has_complained = True
            logger.error("%s", NO_CLIENT)
        beside = self._proxies.found_in(scope.get("headers", ()), self._unix_now_s())
        exchange = _Exchange(await self._book(), beside, scope, receive, send)
        token = current.set(exchange)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except Exception:
            # An application may raise where it was shown a hang-up, or a refused request's
            # output, which lacks what it looks for: we answer such requests.
            if not exchange.is_ours_to_answer:
                raise
        finally:
            current.reset(token)
        await exchange.finish()

    async def _pass_by(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve what the edge does not answer for; a call to the engine holds no promise."""
        book = self._watched.latest if self._watched is not None else SloBook.empty()
        token = current.set(Bystander(book.unjudged))
        try:
            await self._app(scope, receive, send)
        finally:
            current.reset(token)

    def _take(self, settings: Mapping[str, Any]) -> None:
        self._is_ready = True
        self._proxies = ProxyHeaders.believed_by(settings)
        if self._watched is None and (slo_file := settings.get("slo_file")):
            self._watch(slo_file)

    def _watch(self, slo_file: str) -> None:
        self._watched = WatchedBook(slo_file, self._now_s())

    async def _book(self) -> SloBook | None:
        return await self._watched.at(self._now_s()) if self._watched is not None else None


class _Exchange:
    """One request and its answer, on their way through the edge.

    Args:
        book: The operator's promises; ``None`` where there is no SLO file.
        beside: What goes into the stamp beside whatever was promised.
    """

    def __init__(
        self,
        book: SloBook | None,
        beside: Mapping[str, Any],
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        self._beside = beside
        self._book = book or SloBook.empty()
        self._has_file = book is not None
        self._headers = [(name, value) for name, value in scope.get("headers", ())]
        self._receive = receive
        self._send = send
        self._path = path_of(scope)
        self._is_stranger = self._path in OPEN_PATHS and not ("app" in scope and is_allowed(scope))
        self._is_key_accepted = accepts(scope, api_key_of(self._headers))
        self._pieces: list[bytes] = []
        self._asked: RequestedPromise | None = None
        self._accounted: account.AccountedAnswer | None = None
        self._held: list[Message] = []
        self._passing = False
        self._answered = False
        self._engine_spoke = False
        self._problem: Refused | Invalid | None = None

    @property
    def is_ours_to_answer(self) -> bool:
        """Whether the request is a mistake or refused, and its client knows nothing yet."""
        return self._problem is not None and not self._passing

    def tell(self, params: Any) -> None:
        """Put the promise into *params*, vLLM's ``SamplingParams`` of an engine's call.

        What was judged counts, whatever else *params* hold; what was not judged is no promise.
        Where nothing was asked for, nobody in particular pays, no file says what others hold, and
        no proxy's header counts, nothing is written.
        """
        asked = self._asked or RequestedPromise(self._book.unjudged)
        given = params.extra_args or {}
        others = {name: value for name, value in given.items() if not is_ours(name)}
        if (
            asked == RequestedPromise(NO_PROMISE)
            and not self._has_file
            and not self._beside
            and len(others) == len(given)
        ):
            return
        stamp = {**asked.slo.stamp(), **self._beside}
        if asked.explain:
            stamp[EXPLAIN_IN_STAMP] = True
        params.extra_args = {**others, STAMP: stamp}

    def hear(self, output: Any) -> None:
        """Note one output of the engine (vLLM's ``RequestOutput``) for this request."""
        self._engine_spoke = True
        for completion in output.outputs:
            if completion.finish_reason is None:
                continue
            if self._accounted is not None:
                self._accounted.num_offered += 1
            if self._accounted is not None and (told := parse_account(completion.stop_reason)):
                completion.stop_reason = told.stop_reason
                self._accounted.accounts.append(told.told)
            elif self._problem is None:
                self._problem = parse(completion.stop_reason)

    async def receive(self) -> Message:
        """Hand vLLM the next message of the client, having read along.

        After a mistake in the body vLLM sees the client as gone and stops; what it then
        sends is replaced by our answer.
        """
        message = await self._receive()
        if message["type"] != "http.request" or self._problem is not None:
            return message
        self._pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            self._problem = self._judge()
            self._pieces.clear()
            if self._problem is not None:
                return {"type": "http.disconnect"}
        return message

    def _judge(self) -> Invalid | None:
        """Work out what is asked for, or return what is wrong with it."""
        try:
            body = self._read_body()
            self._asked = asked_of(
                self._book,
                self._headers,
                body,
                is_stranger=self._is_stranger,
                is_key_accepted=self._is_key_accepted,
            )
            if self._asked.explain:
                account.check(self._path)
                self._send = self._accounted = account.AccountedAnswer(self._send)
        except UserError as error:
            return Invalid(str(error))
        return None

    def _read_body(self) -> Any:
        body = b"".join(self._pieces)
        return parsed(body) if self._book.models or can_matter(body) else None

    async def send(self, message: Message) -> None:
        """Pass vLLM's answer on, or replace it when the request was refused."""
        if self._answered:
            return
        if self._passing:
            await self._send(message)
        elif self._problem is not None and (self._held or starts(message)):
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
        if starts(message):
            return bool(message["status"] == HTTPStatus.OK)
        return (
            message["type"] == "http.response.body"
            and bool(message.get("more_body", False))
            and not self._engine_spoke
            and not message.get("body", b"").startswith(b":")  # a keep-alive must not wait
        )

    async def finish(self) -> None:
        """Answer a mistake or refusal that vLLM left unanswered."""
        if self.is_ours_to_answer and not self._answered:
            await self._answer({"headers": []})

    async def _answer(self, start: Message) -> None:
        assert self._problem is not None
        self._answered = True
        self._held.clear()
        status, headers, body = http_error(
            self._problem, anthropic=self._path == "/v1/messages", kept=start["headers"]
        )
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})


def _is_generation(scope: Scope) -> bool:
    return scope["type"] == "http" and scope["method"] == "POST" and path_of(scope) in PATHS
