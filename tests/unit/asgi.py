"""One exchange with an ASGI application, without a network."""

from __future__ import annotations

from typing import Any


async def exchange(
    app: Any, scope: dict[str, Any], body: bytes = b""
) -> tuple[int, dict[bytes, bytes], bytes]:
    """Return status, headers and body of the answer; an exception of *app* is the caller's."""
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    await app({"type": "http", **scope}, receive, send)
    assert sent, "no answer"
    start, *rest = sent
    assert start["type"] == "http.response.start"
    assert {message["type"] for message in rest} <= {"http.response.body"}
    return start["status"], dict(start["headers"]), b"".join(m.get("body", b"") for m in rest)
