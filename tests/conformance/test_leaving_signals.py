"""Leaving with vLLM's own server, real sockets and a real signal; only the engine is made up.

Run for another release by ``scripts/try_release.py``.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from fastapi import FastAPI
from fastapi.responses import JSONResponse, StreamingResponse
from vllm.entrypoints.launchers.launcher import create_server_socket, serve_http

from headway.engines.vllm.leaving import ENGINE_ENDS_WITHIN_S, Leaving

GRACE_S = 600

pytestmark = pytest.mark.filterwarnings("default")


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


@pytest.mark.parametrize("ends", [True, False], ids=["within", "beyond"])
async def test_a_signal_ends_the_server_when_its_stream_has_ended(ends: bool) -> None:
    """New work and readiness are 503 meanwhile; a second signal ends the grace, and the stream."""
    engine, may_end = Engine(), asyncio.Event()
    listening = create_server_socket(("127.0.0.1", 0), reuse_port=False)
    port = listening.getsockname()[1]
    serving = asyncio.create_task(
        serve_http(
            app_of(engine, may_end), listening, host="127.0.0.1", port=port, log_level="error"
        )
    )
    url = f"http://127.0.0.1:{port}"
    async with aiohttp.ClientSession() as session:
        await is_ready(session, url)
        async with session.post(f"{url}/v1/completions") as running:
            assert await running.content.readuntil(b"\n\n") == b"data: 1\n\n"
            signal.raise_signal(signal.SIGTERM)
            async with session.get(f"{url}/health") as health:
                assert health.status == 503
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
    began_s = time.monotonic()
    await (await serving)
    listening.close()
    assert time.monotonic() - began_s < 5.0
    assert engine.num_ends == 1
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
        pass
