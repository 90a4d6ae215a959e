"""Leaving with vLLM's own server, real sockets and a real signal; only the engine is made up.

Run for another release by ``scripts/try_release.py``.
"""

from __future__ import annotations

import asyncio
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from fastapi import FastAPI
from fastapi.responses import JSONResponse, StreamingResponse
from vllm.entrypoints.launchers.launcher import create_server_socket, serve_http

from headway.engines.vllm import leaving
from headway.engines.vllm.leaving import ENGINE_ENDS_WITHIN_S, Leaving

GRACE_S = 600
"""Nobody waits for its end: a second signal comes."""

ENDS_WITHIN_S = 20.0
MORE_THAN_SOCKETS_HOLD = 32 * 1024 * 1024


class Engine:
    """vLLM's engine client as its server sees it."""

    def __init__(self) -> None:
        self.vllm_config = SimpleNamespace(shutdown_timeout=GRACE_S + ENGINE_ENDS_WITHIN_S)
        self.is_running, self.errored = True, False
        self.num_ends = 0

    def shutdown(self, timeout: float | None = None) -> None:
        self.num_ends += 1
        self.is_running = False


def app_of(engine: Engine, may_end: asyncio.Event) -> FastAPI:
    """A server with a stream that ends when it may, and what shows whether it serves."""
    app = FastAPI()
    app.state.engine_client = engine

    async def events() -> Any:
        yield "data: 1\n\n"
        await may_end.wait()
        yield "data: [DONE]\n\n"

    async def flood() -> Any:
        while True:
            yield "data: " + "x" * MORE_THAN_SOCKETS_HOLD + "\n\n"
            await asyncio.sleep(0)

    @app.post("/v1/flood")
    async def overflow() -> Any:
        return StreamingResponse(flood(), media_type="text/event-stream")

    @app.post("/v1/completions")
    async def complete() -> Any:
        return StreamingResponse(events(), media_type="text/event-stream")

    @app.get("/health")
    async def health() -> Any:
        return JSONResponse({"runs": engine.is_running})

    app.add_middleware(Leaving)
    return app


async def is_ready(session: aiohttp.ClientSession, url: str) -> None:
    """Wait until it listens."""
    while True:
        with suppress(aiohttp.ClientConnectorError):
            async with session.get(f"{url}/health") as health:
                assert health.status == 200
                return


async def has_heard(session: aiohttp.ClientSession, url: str) -> None:
    """Wait until it says that it is not ready."""
    status = 200
    while status == 200:
        async with session.get(f"{url}/health") as health:
            status = health.status
    assert status == 503


@asynccontextmanager
async def serving(engine: Engine, may_end: asyncio.Event) -> AsyncIterator[str]:
    """vLLM's server, on a port of its own; it has ended at the end."""
    listening = create_server_socket(("127.0.0.1", 0), reuse_port=False)
    port = listening.getsockname()[1]
    app = app_of(engine, may_end)
    served = asyncio.create_task(
        serve_http(app, listening, host="127.0.0.1", port=port, log_level="critical")
    )
    yield f"http://127.0.0.1:{port}"
    async with asyncio.timeout(ENDS_WITHIN_S):
        await (await served)
    listening.close()
    assert engine.num_ends == 1
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        pass


@pytest.mark.parametrize("ends", [True, False], ids=["within", "beyond"])
async def test_a_signal_ends_the_server_when_its_stream_has_ended(ends: bool) -> None:
    """New work and readiness are 503 meanwhile; a second signal ends the grace, and the stream."""
    engine, may_end = Engine(), asyncio.Event()
    async with serving(engine, may_end) as url, aiohttp.ClientSession() as session:
        await is_ready(session, url)
        async with session.post(f"{url}/v1/completions") as running:
            assert await running.content.readuntil(b"\n\n") == b"data: 1\n\n"
            signal.raise_signal(signal.SIGTERM)
            await has_heard(session, url)
            async with session.post(f"{url}/v1/completions") as new:
                told = (new.status, new.headers["Connection"], new.headers["Retry-After"])
                assert told == (503, "close", "1")
            assert engine.is_running
            if ends:
                may_end.set()
            else:
                signal.raise_signal(signal.SIGTERM)
            rest = await running.content.read()
        assert (b"ServiceUnavailableError" in rest) is not ends
        assert rest.endswith(b"data: [DONE]\n\n")


async def test_a_client_that_does_not_read_cannot_keep_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever waits to be sent to it: vLLM's server alone would wait for ever."""
    monkeypatch.setattr(leaving, "TOLD_WITHIN_S", 0.05)
    async with serving(Engine(), asyncio.Event()) as url, aiohttp.ClientSession() as session:
        await is_ready(session, url)
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rpartition(":")[2]))
        writer.write(b"POST /v1/flood HTTP/1.1\r\nHost: here\r\nContent-Length: 0\r\n\r\n")
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        signal.raise_signal(signal.SIGTERM)
        await has_heard(session, url)
        signal.raise_signal(signal.SIGTERM)
    writer.close()
