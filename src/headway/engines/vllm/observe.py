"""The HTTP side of everything visible: the page at ``/headway`` and our part of ``/metrics``.

An ASGI middleware, installed by ``headway serve`` or by ``--middleware
headway.engines.vllm.observe.LiveView``. It hears of the scheduler through
:mod:`headway.engines.vllm.channel`. vLLM checks its API key on ``/v1`` only, so the routes here
check it themselves: as a bearer token, or as the password of the browser's own dialogue.
"""

from __future__ import annotations

import json
import logging
import os
import time
from http import HTTPStatus
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qs

from headway.engines.vllm.api_keys import is_allowed
from headway.engines.vllm.asgi import App, Message, Receive, Scope, Send, grown, path_of
from headway.engines.vllm.channel import CHANNEL_VARIABLE
from headway.engines.vllm.subscription import Subscription
from headway.metrics.board import BROKEN_KEPT, Board
from headway.metrics.prometheus import exposition

logger = logging.getLogger("vllm.headway")

PAGE_FILES = {
    "/headway": ("page.html", "text/html; charset=utf-8"),
    "/headway/": ("page.html", "text/html; charset=utf-8"),
    "/headway/live.css": ("live.css", "text/css; charset=utf-8"),
    "/headway/live.js": ("live.js", "text/javascript; charset=utf-8"),
    "/headway/cards.js": ("cards.js", "text/javascript; charset=utf-8"),
    "/headway/draw.js": ("draw.js", "text/javascript; charset=utf-8"),
    "/headway/words.js": ("words.js", "text/javascript; charset=utf-8"),
}
"""Path to (file of ``web/live``, content type)."""

STATE, BROKEN, METRICS = "/headway/state", "/headway/broken", "/metrics"

SAFE_HEADERS = (
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
    # Nothing from anywhere else, and no script in the page itself.
    (b"content-security-policy", b"default-src 'self'; frame-ancestors 'self'"),
)

MAX_ID_LENGTH = 200


class LiveView:
    """Use as ``--middleware headway.engines.vllm.observe.LiveView``.

    Without the environment variable :data:`CHANNEL_VARIABLE` it says so in the log, and passes
    everything on.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._folder = os.environ.get(CHANNEL_VARIABLE)
        self._board = Board()
        self._subscription = Subscription(self._folder, self._board.take) if self._folder else None
        if not self._folder:
            logger.warning(
                "LiveView has nothing to show: name a folder in %s. /headway is a 404 until then.",
                CHANNEL_VARIABLE,
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if self._subscription is None:
            await self._app(scope, receive, send)
            return
        self._subscription.open()
        if scope["type"] == "lifespan":
            await self._subscription.live_through(self._app, scope, receive, send)
            return
        path = path_of(scope) if scope["type"] == "http" else ""
        if path.rstrip("/") == METRICS and scope["method"] == "GET":
            await self._app(_plain_text(scope), receive, _LongerAnswer(send, self._metrics))
        elif path in PAGE_FILES or path in (STATE, BROKEN):
            await self._answer(path, scope, send)
        else:
            await self._app(scope, receive, send)

    def _metrics(self) -> bytes:
        return exposition(self._board.told(time.time()))

    async def _answer(self, path: str, scope: Scope, send: Send) -> None:
        if scope["method"] not in ("GET", "HEAD"):
            await _respond(send, HTTPStatus.METHOD_NOT_ALLOWED, b"", [(b"allow", b"GET, HEAD")])
        elif not is_allowed(scope):
            challenge = [(b"www-authenticate", b'Basic realm="Headway: any name, the API key"')]
            body = b'{"error": "Unauthorized"}'
            await _respond(send, HTTPStatus.UNAUTHORIZED, body, challenge)
        elif path in PAGE_FILES:
            name, kind = PAGE_FILES[path]
            body = (files("headway.web") / "live" / name).read_bytes()
            if path == "/headway/":  # Links are relative, for proxies that add a prefix.
                body = body.replace(b'="headway/', b'="')
            await _respond(send, HTTPStatus.OK, body, [(b"content-type", kind.encode())])
        else:
            status, answer = self._json(path, _query(scope))
            body = json.dumps(answer, separators=(",", ":")).encode()
            await _respond(send, status, body, [(b"content-type", b"application/json")])

    def _json(self, path: str, query: dict[str, list[str]]) -> tuple[HTTPStatus, Any]:
        """Return status and body of the two routes with data; a bad value gets a sentence."""
        now_s = time.time()
        if path == STATE:
            after = _whole(query, "after", 0, most=2**53)
            if after is None:
                return _mistake("after must be a whole number of at least 0.")
            return HTTPStatus.OK, self._board.state(now_s, after)
        if "id" in query:
            request_id = query["id"][0]
            if not 0 < len(request_id) <= MAX_ID_LENGTH:
                return _mistake(f"id must have 1 to {MAX_ID_LENGTH} characters.")
            return HTTPStatus.OK, {
                "broken": self._board.explain(request_id),
                "late": self._board.late_now(request_id),
                "num_lost": self._board.num_stories_lost,
            }
        count = _whole(query, "worst", 10, most=BROKEN_KEPT)
        if count is None:
            return _mistake(f"worst must be a whole number from 0 to {BROKEN_KEPT}.")
        return HTTPStatus.OK, {"broken": self._board.worst(count)}


class _LongerAnswer:
    """Passes an answer on with something more at its end, when it is a good one."""

    def __init__(self, send: Send, more: Any) -> None:
        self._send = send
        self._more = more
        self._extra = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == HTTPStatus.OK:
            self._extra = self._more()
            message = grown(message, len(self._extra))
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            message = {**message, "body": message.get("body", b"") + self._extra}
        await self._send(message)


def _plain_text(scope: Scope) -> Scope:
    """Return *scope* asking for plain text that is not packed: text can be added to that.

    Otherwise Prometheus gets OpenMetrics, which ends in a mark, or gzip.
    """
    dropped = (b"accept", b"accept-encoding")
    return {**scope, "headers": [h for h in scope["headers"] if h[0].lower() not in dropped]}


def _query(scope: Scope) -> dict[str, list[str]]:
    return parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)


def _whole(query: dict[str, list[str]], name: str, default: int, most: int) -> int | None:
    """Return a whole number of the query from 0 to *most*, or ``None`` when it is none."""
    text = query.get(name, [str(default)])[0]
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(most))):
        return None
    return int(text) if int(text) <= most else None


def _mistake(sentence: str) -> tuple[HTTPStatus, Any]:
    return HTTPStatus.BAD_REQUEST, {"error": sentence}


async def _respond(
    send: Send, status: HTTPStatus, body: bytes, headers: list[tuple[bytes, bytes]]
) -> None:
    length = (b"content-length", b"%d" % len(body))
    await send(
        {
            "type": "http.response.start",
            "status": int(status),
            "headers": [*headers, *SAFE_HEADERS, length],
        }
    )
    await send({"type": "http.response.body", "body": body})
