"""What a client is told when its request is refused or is a mistake."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from headway.engines.wire import Invalid, Refused

RETRY_AFTER = b"retry-after"


def http_error(
    problem: Refused | Invalid, *, anthropic: bool, kept: Iterable[tuple[bytes, bytes]] = ()
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Return status, headers and body of the answer to *problem*.

    The body has the shape of OpenAI's errors, as vLLM's own have, or of Anthropic's. A refusal
    is 429 and its ``Retry-After`` whole seconds, rounded up: never sooner than was computed.

    Args:
        kept: Headers that other middleware put on the answer (CORS, request ids); they stay.
    """
    extra: list[tuple[bytes, bytes]] = []
    if isinstance(problem, Refused):
        status, kind = HTTPStatus.TOO_MANY_REQUESTS, "rate_limit_exceeded"
        anthropic_kind = "rate_limit_error"
        extra.append((RETRY_AFTER, str(max(1, math.ceil(problem.retry_after_s))).encode()))
    else:
        status, kind = HTTPStatus.BAD_REQUEST, "BadRequestError"
        anthropic_kind = "invalid_request_error"
    payload: dict[str, Any]
    if anthropic:
        detail: dict[str, Any] = {"type": anthropic_kind, "message": problem.sentence}
        payload = {"type": "error", "error": detail}
    else:
        detail = {"message": problem.sentence, "type": kind, "param": None, "code": int(status)}
        payload = {"error": detail}
    body = json.dumps(payload).encode()
    dropped = (b"content-type", b"content-length")
    headers = [(key, value) for key, value in kept if key.lower() not in dropped]
    headers += [
        *extra,
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    return int(status), headers, body
