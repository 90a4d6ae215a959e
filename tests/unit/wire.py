"""A server of bare bytes for the load generator's tests."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from headway.bench.access import Access
from headway.bench.client import Call
from headway.bench.load import LoadResult, run_load
from headway.bench.probe import ask_server
from headway.cli.bench import bench
from headway.errors import UserError
from headway.slo import Slo

Handler = Callable[["Exchange"], Awaitable[None]]
SLO = Slo(ttft_s=5.0, tbt_s=5.0, class_name="chat")
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"
DONE = b"data: [DONE]\n\n"


class Exchange:
    """One request as it came, and the connection to answer on.

    Attributes:
        number: Of the request on its connection, from 0.
    """

    def __init__(self, writer: asyncio.StreamWriter, head: bytes, body: bytes, number: int) -> None:
        self.writer, self.number = writer, number
        first, *lines = head.decode("latin-1").split("\r\n")
        self.method, self.path, _ = first.split(" ")
        pairs = (line.split(": ", 1) for line in lines if line)
        self.headers = {name.lower(): value for name, value in pairs}
        self.body = json.loads(body) if body else None

    @property
    def asks(self) -> str:
        """What the request's prompt says."""
        return str(self.body["messages"][0]["content"])

    async def send(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def answer(self, status: int, body: Any, *headers: str) -> None:
        """Answer with JSON and keep the connection."""
        data = json.dumps(body).encode()
        head = (f"HTTP/1.1 {status} X", "Content-Type: application/json", *headers)
        await self.send("\r\n".join(head).encode() + b"\r\nContent-Length: %d\r\n\r\n" % len(data))
        await self.send(data)

    async def stream(self, *chunks: Any) -> None:
        """Answer with a whole stream that leaves the connection open for another request."""
        data = b"".join(map(event, chunks)) + DONE
        await self.send(
            STREAM_HEAD.replace(b"close", b"keep-alive\r\nContent-Length: %d" % len(data))
        )
        await self.send(data)

    def close(self) -> None:
        self.writer.close()


def event(chunk: Any) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def chunk(text: str = "", finish: str | None = None, **more: Any) -> dict[str, Any]:
    return {"choices": [{"delta": {"content": text}, "finish_reason": finish}], **more}


def call(name: str, say: str = "", arrived_at_s: float = 0.0, max_tokens: int = 100) -> Call:
    body = {"messages": [{"content": say}], "max_tokens": max_tokens}
    return Call(name, arrived_at_s, SLO, body, 7)


@asynccontextmanager
async def serving(
    handler: Handler, *, tls: ssl.SSLContext | None = None, unix_socket: Path | None = None
) -> AsyncIterator[str]:
    """Serve every request by *handler*, which may close the connection; yield the URL."""

    tasks: set[asyncio.Task[Any]] = set()

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            number = 0
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                length = 0
                for line in head.lower().split(b"\r\n"):
                    if line.startswith(b"content-length:"):
                        length = int(line.split(b":")[1])
                body = await reader.readexactly(length)
                await handler(Exchange(writer, head[:-4], body, number))
                number += 1
        except (ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            pass  # The client has left.
        except asyncio.CancelledError:
            pass  # The test is over; a task of a stream server must not end cancelled.
        finally:
            writer.close()
            tasks.remove(task)

    if unix_socket is not None:
        server = await asyncio.start_unix_server(connection, unix_socket)
        url = "http://localhost"
    else:
        server = await asyncio.start_server(connection, "127.0.0.1", 0, ssl=tls, backlog=1024)
        port = server.sockets[0].getsockname()[1]
        url = f"http{'s' if tls else ''}://127.0.0.1:{port}"
    try:
        yield url
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks)


MODELS = {"data": [{"id": "tiny [/bold] \x1b[31m", "owned_by": "someone"}]}
ANSWER = (chunk("a"), chunk("b", "stop"))


async def serve_well(exchange: Exchange) -> None:
    if exchange.path == "/v1/models":
        await exchange.answer(200, MODELS)
    elif exchange.path == "/metrics":
        await exchange.answer(404, {})
    else:
        await exchange.stream(*ANSWER)


def load_of(
    handler: Handler,
    num_requests: int = 1,
    timeout_s: float = 20,
    **options: Any,
) -> LoadResult:
    async def run() -> LoadResult:
        async with serving(handler) as url:
            planned = [call(f"r{i}", str(i)) for i in range(num_requests)]
            return await run_load(url, planned, timeout_s=timeout_s, **options)

    return asyncio.run(run())


def refusal_of(handler: Handler, access: Access | None = None, **served: Any) -> str:
    """Return the sentence with which a server is turned down."""

    async def run() -> None:
        async with serving(handler, **served) as url:
            await ask_server(url, access)

    with pytest.raises(UserError) as told:
        asyncio.run(run())
    return str(told.value)


def benched(handler: Handler, *args: str, num_requests: int = 4, **served: Any) -> Result:
    """Return what the command prints and its exit code, with a workload of a few requests."""
    rows = [
        {"arrived_at_s": i / 100, "num_prompt_tokens": 5, "num_output_tokens": 3, "prompt": str(i)}
        for i in range(num_requests)
    ]
    runner = CliRunner()

    async def run() -> Result:
        async with serving(handler, **served) as url:
            words = ["--url", url, "--workload", "w.jsonl", "--no-warm-up", "--json", "out.json"]
            words += ["--out", "out.jsonl", *args]
            return await asyncio.to_thread(runner.invoke, bench, words)

    Path("w.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return asyncio.run(run())
