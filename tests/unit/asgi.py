"""One exchange with an ASGI application, without a network."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from headway.engines.vllm.edge import SloEdge


class Answer:
    """What an application sent, message by message."""

    def __init__(self) -> None:
        self.sent: list[Any] = []

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def text(self) -> str:
        return b"".join(m.get("body", b"") for m in self.sent[1:]).decode()


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


async def told_engine(
    settings: Mapping[str, Any],
    headers: Sequence[tuple[bytes, bytes]],
    xargs: Any = None,
    *,
    now_s: float,
    path: str = "/v1/completions",
) -> Any:
    """Return the extra arguments with which the edge lets a request reach the engine.

    Args:
        settings: The server's.
        xargs: What vLLM takes from the request's body.
        now_s: Unix seconds.
    """
    told: list[Any] = []

    async def generate(prompt: str, sampling_params: Any) -> AsyncGenerator[Any, None]:
        told.append(sampling_params.extra_args)
        yield SimpleNamespace(outputs=[])

    config = SimpleNamespace(additional_config={"headway": settings})
    client = SimpleNamespace(generate=generate, vllm_config=config)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = json.loads((await receive())["body"])
        params = SimpleNamespace(extra_args=body["vllm_xargs"])
        async for _ in client.generate("p", params):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    scope = {
        "method": "POST",
        "path": path,
        "headers": list(headers),
        "app": SimpleNamespace(state=SimpleNamespace(engine_client=client)),
    }
    edge = SloEdge(app, unix_now_s=lambda: now_s)
    status, _, text = await exchange(edge, scope, json.dumps({"vllm_xargs": xargs}).encode())
    assert status == 200, text
    return told[0]
