"""Lateness in the answer, for clients that ask: ``usage.headway`` of what they get anyway.

The scheduler's process keeps the lateness of such requests (:func:`watch`) and sends each with
the output that ends its request (:func:`put_into`); the HTTP edge takes it out again and adds it
to the answer (:class:`AccountedAnswer`). Spans are milliseconds, as everywhere in HTTP.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from http import HTTPStatus
from typing import Any, Protocol

from headway.engines import wire
from headway.engines.vllm.asgi import Message, Send, grown
from headway.engines.vllm.channel import CHANNEL_VARIABLE
from headway.errors import UserError
from headway.metrics.request_lateness import Lateness
from headway.slo import EXPLAIN_IN_STAMP, STAMP, Slo

PATHS = ("/v1/chat/completions", "/v1/completions")
"""Endpoints whose answers have a ``usage`` that clients expect to grow."""

NO_ACCOUNT = (
    "This server keeps no account of lateness, so 'explain' cannot be answered; headway serve"
    f" --page keeps one, as does the environment variable {CHANNEL_VARIABLE}."
)

DONE = b"data: [DONE]"
NO_CHOICES = b'"choices":[]'
"""Stands in vLLM's last chunk of a stream, the one about usage; in a text it would be escaped."""

Told = Mapping[str, Any]


# -- in the scheduler's process ---------------------------------------------------------------


class Accountant(Protocol):
    """Who keeps the lateness of those who ask."""

    def explain(self, request_id: str) -> None:
        """Keep the account of a live request, for its client, when it ends."""


def watch(
    accountant: Accountant | None, request_id: str, extra_args: Mapping[str, Any] | None
) -> None:
    """Have the lateness kept of a request whose client asked for it through the edge.

    Raises:
        UserError: It does, and nobody counts here.
    """
    stamp = (extra_args or {}).get(STAMP)
    if not isinstance(stamp, Mapping) or not stamp.get(EXPLAIN_IN_STAMP):
        return
    if accountant is None:
        raise UserError(NO_ACCOUNT)
    accountant.explain(request_id)


def account_of(lateness: Lateness, slo: Slo) -> dict[str, Any]:
    """Return what a client is told: the causes add up to the lateness, to the microsecond.

    ``kept`` is ``None`` when nothing was promised; a span is ``None`` when there was no token.
    ``pause_ms`` is the longest gap; ``broke`` says what of the promise time broke.
    """
    by_cause_ms = {cause: _ms(s) for cause, s in lateness.late_s.items() if _ms(s)}
    return {
        "kept": lateness.attained if slo.is_promise else None,
        "late_ms": round(sum(by_cause_ms.values()), 3),
        "by_cause_ms": by_cause_ms,
        "ttft_ms": None if lateness.ttft_s is None else _ms(lateness.ttft_s),
        "jct_ms": None if lateness.jct_s is None else _ms(lateness.jct_s),
        "pause_ms": None if lateness.longest_gap_s is None else _ms(lateness.longest_gap_s),
        "tpot_ms": None if lateness.tpot_s is None else _ms(lateness.tpot_s),
        "broke": list(lateness.broke),
    }


def _ms(seconds: float) -> float:
    return round(1000.0 * seconds, 3)


def put_into(outputs: Mapping[int, Any], ready: dict[str, dict[str, Any]]) -> None:
    """Put the accounts that are ready into the outputs that end their requests, and clear them.

    Args:
        outputs: vLLM's ``EngineCoreOutputs`` by client. A refusal in one stays as it is.
    """
    if not ready:
        return
    for per_client in outputs.values():
        for output in per_client.outputs:
            if output.finish_reason is None or output.request_id not in ready:
                continue
            if wire.parse(output.stop_reason) is None:
                output.stop_reason = wire.account(ready[output.request_id], output.stop_reason)
    ready.clear()  # Of the others nobody waits for an output: their clients hung up.


# -- in the server's process --------------------------------------------------------------------


def check(path: str) -> None:
    """Raise a sentence when a request on *path* cannot be told how late it was.

    Raises:
        UserError: It cannot.
    """
    if path not in PATHS:
        raise UserError(f"'explain' works on {' and '.join(PATHS)}, not on {path}; leave it out.")
    if not os.environ.get(CHANNEL_VARIABLE):
        raise UserError(NO_ACCOUNT)


def worst(accounts: Iterable[Told]) -> Told | None:
    """Return the account of the latest of a request's choices, ``None`` when there is none."""
    return max(accounts, key=lambda a: (a.get("kept") is False, a["late_ms"]), default=None)


class AccountedAnswer:
    """Passes an answer on with ``usage.headway`` in it: the worst of ``accounts``, or null.

    Args:
        send: Where the answer goes.

    Attributes:
        accounts: What has been heard of the request's choices.
        num_offered: Its choices that have ended. vLLM makes a request of each, which is promised,
            and counted, by itself.
    """

    def __init__(self, send: Send) -> None:
        self.accounts: list[Told] = []
        self.num_offered = 0
        self._send = send
        self._held: Message | None = None
        self._body = bytearray()
        self._is_stream = False
        self._is_told = False
        self._last_chunk = b""

    async def __call__(self, message: Message) -> None:
        """Pass one message on; a JSON answer is held back until its length is known."""
        if message["type"] == "http.response.start" and message["status"] == HTTPStatus.OK:
            kind = dict(message["headers"]).get(b"content-type", b"")
            self._is_stream = kind.startswith(b"text/event-stream")
            if kind.startswith(b"application/json"):
                self._held = message
                return
        elif message["type"] == "http.response.body":
            is_last = not message.get("more_body", False)
            self._body += message.get("body", b"")
            if self._held is not None:
                if not is_last:
                    return
                message = {**message, "body": self._in_whole()}
                await self._send(grown(self._held, len(message["body"]) - len(self._body)))
            else:
                message = {**message, "body": self._in_stream(is_last)}
        await self._send(message)

    def _told(self) -> Told | None:
        told = worst(self.accounts)
        return None if told is None else {**told, "offered": self.num_offered}

    def _in_whole(self) -> bytes:
        body = bytes(self._body)
        return _with_usage(body, self._told()) or body

    def _in_stream(self, is_last: bool) -> bytes:
        """Return the events that are complete by now, ours among them."""
        if not self._is_stream or is_last:
            end = len(self._body)
        else:
            end = self._body.rfind(b"\n\n") + 2 if b"\n\n" in self._body else 0
        events = bytes(self._body[:end])
        del self._body[:end]
        if not self._is_stream:
            return events
        return b"\n\n".join(self._event(event) for event in events.split(b"\n\n"))

    def _event(self, event: bytes) -> bytes:
        if event.startswith(DONE) and not self._is_told:
            ours = _usage_chunk(self._last_chunk, self._told())
            return event if ours is None else b"data: " + ours + b"\n\n" + event
        if not event.startswith(b"data: {"):
            return event
        self._last_chunk = event.removeprefix(b"data: ")
        if NO_CHOICES in event and not self._is_told:
            amended = _with_usage(self._last_chunk, self._told())
            if amended is not None:
                self._is_told = True
                return b"data: " + amended
        return event


def _with_usage(answer: bytes, told: Told | None) -> bytes | None:
    """Return a JSON answer with *told* in its usage; ``None`` when it has no usage."""
    document = _object(answer)
    if document is None or not isinstance(document.get("usage"), dict):
        return None
    document["usage"]["headway"] = told
    return _encoded(document)


def _usage_chunk(last: bytes, told: Told | None) -> bytes | None:
    """Return a chunk of usage as vLLM would end a stream with, after *last*; not after an error."""
    document = _object(last)
    if document is None or "id" not in document:
        return None
    chunk = {name: document.get(name) for name in ("id", "object", "created", "model")}
    return _encoded({**chunk, "choices": [], "usage": {"headway": told}})


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _encoded(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
