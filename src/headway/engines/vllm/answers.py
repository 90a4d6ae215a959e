"""What a client is told when its request is refused, is a mistake or comes to no end here."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from headway.engines.wire import Invalid, Refused

RETRY_AFTER = b"retry-after"


@dataclass(frozen=True, slots=True)
class Unavailable:
    """This server serves no more; another may at once, and so may its successor (HTTP 503)."""

    sentence: str
    retry_after_s: float = 1.0


Problem = Refused | Invalid | Unavailable

KINDS: dict[type[Problem], tuple[HTTPStatus, str, str]] = {
    Refused: (HTTPStatus.TOO_MANY_REQUESTS, "rate_limit_exceeded", "rate_limit_error"),
    Invalid: (HTTPStatus.BAD_REQUEST, "BadRequestError", "invalid_request_error"),
    Unavailable: (HTTPStatus.SERVICE_UNAVAILABLE, "ServiceUnavailableError", "overloaded_error"),
}
"""Status, and the type of error as OpenAI's (or vLLM's) answers and as Anthropic's have it."""


def http_error(
    problem: Problem, *, anthropic: bool, kept: Iterable[tuple[bytes, bytes]] = ()
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Return status, headers and body of the answer to *problem*.

    The body has the shape of OpenAI's errors, as vLLM's own have, or of Anthropic's. A
    ``Retry-After`` is in whole seconds, rounded up: never sooner than was computed.

    Args:
        kept: Headers that other middleware put on the answer (CORS, request ids); they stay.
    """
    extra: list[tuple[bytes, bytes]] = []
    if not isinstance(problem, Invalid):
        extra.append((RETRY_AFTER, str(max(1, math.ceil(problem.retry_after_s))).encode()))
    body = json.dumps(_payload(problem, anthropic=anthropic)).encode()
    dropped = (b"content-type", b"content-length")
    headers = [(key, value) for key, value in kept if key.lower() not in dropped]
    headers += [
        *extra,
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    return int(KINDS[type(problem)][0]), headers, body


def last_events(problem: Problem, path: str, num_events: int) -> bytes:
    """Return how a stream of server-sent events ends with *problem*, in the words of its API.

    Args:
        path: The endpoint; the Responses and the Messages API have events of their own, others
            end as vLLM ends them.
        num_events: Events so far; those of the Responses API are numbered.
    """
    if path.startswith("/v1/messages"):
        return b"event: error\ndata: %s\n\n" % _encoded(_payload(problem, anthropic=True))
    if path.startswith("/v1/responses"):
        event = {
            "type": "error",
            "code": "server_error",
            "message": problem.sentence,
            "param": None,
            "sequence_number": num_events,
        }
        return b"event: error\ndata: %s\n\n" % _encoded(event)
    return b"data: %s\n\ndata: [DONE]\n\n" % _encoded(_payload(problem, anthropic=False))


def _payload(problem: Problem, *, anthropic: bool) -> dict[str, Any]:
    status, kind, anthropic_kind = KINDS[type(problem)]
    if anthropic:
        return {
            "type": "error",
            "error": {"type": anthropic_kind, "message": problem.sentence},
        }
    detail = {"message": problem.sentence, "type": kind, "param": None, "code": int(status)}
    return {"error": detail}


def _encoded(event: dict[str, Any]) -> bytes:
    return json.dumps(event).encode()
