"""What the configurations for nginx and Envoy publish of a server, in every spelling of a path.

Behind the real proxies is the HTTP server that vLLM uses (uvicorn), with an application that knows
vLLM's and Headway's paths and nothing else.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator, MutableMapping
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import uvicorn
from proxies import behind, is_installed, skip_without

from headway.bench.server import free_port

pytestmark = pytest.mark.live

PUBLIC = ("/v1/models", "/v1/models?limit=1", "/v2/rerank", "/health")
PRIVATE = ("/metrics", "/metrics/", "/headway", "/headway/state", "/headway/broken", "/invocations")
SPELLINGS = (
    "{}", "/{}", "/%{code}{rest}", "/v1/..{}", "/v1/%2e%2e{}", "/v1/..%2f{bare}", "/health/..{}",
    "{}?/v1/", "{};/v1/", "/health%00/..{}", "/v1x", "/healthy",
)  # fmt: skip
NAMES = ("nginx", "envoy")


async def vllm(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
    """Answer as vLLM's router does: by the decoded path, exactly."""
    if scope["type"] != "http":
        return
    known = scope["path"] in {p.partition("?")[0] for p in PUBLIC + PRIVATE}
    await send({"type": "http.response.start", "status": 200 if known else 404, "headers": []})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


@contextmanager
def stand_in() -> Iterator[SimpleNamespace]:
    """A server on a port of its own, for as long as it is needed."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(vllm, port=port, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield SimpleNamespace(port=port, url=f"http://127.0.0.1:{port}")
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Each proxy that is installed, in front of two stand-ins."""
    with ExitStack() as stack:
        pair: list[Any] = [stack.enter_context(stand_in()) for _ in range(2)]
        yield {
            name: stack.enter_context(behind(name, pair, tmp_path_factory.mktemp(name)))
            for name in NAMES
            if is_installed(name)
        }


async def status_of(url: str, path: str) -> int:
    """Return what is answered to a path exactly as written: HTTP clients would tidy it up."""
    host, _, port = url.removeprefix("http://").partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    first_line = await asyncio.wait_for(reader.readline(), 30)
    writer.close()
    return int(first_line.split(b" ")[1])


@pytest.mark.parametrize("name", NAMES)
async def test_clients_reach_what_they_need_and_nothing_else(
    name: str, request: pytest.FixtureRequest
) -> None:
    """Operators' paths are not there, however they are written."""
    skip_without(name)
    url: str = request.getfixturevalue("urls")[name]
    assert {await status_of(url, path) for path in PUBLIC} == {200}
    tried = {
        spelling.format(path, code=f"{ord(path[1]):x}", rest=path[2:], bare=path[1:])
        for path in PRIVATE
        for spelling in SPELLINGS
    }
    reached = {path: await status_of(url, path) for path in sorted(tried)}
    assert {path: code for path, code in reached.items() if code not in (400, 404)} == {}
