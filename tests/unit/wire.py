"""A server of bare bytes for the load generator's tests, and streams no server should send."""

from __future__ import annotations

import asyncio
import json
import random
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from headway.bench.client import Call
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
        await self.send(STREAM_HEAD.replace(b"close", b"keep-alive\r\nContent-Length: %d" % len(data)))
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

    async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
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
        finally:
            writer.close()

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


CHUNKS: Sequence[dict[str, Any]] = (
    chunk(prompt_token_ids=[1, 2, 3]),
    chunk("grüße"),
    {"choices": [{"delta": {"reasoning": "hm"}, "token_ids": [4, 5]}], "error": None},
    {"choices": [{"delta": {"tool_calls": [{"function": {"arguments": "{"}}]}}]},
    chunk("", "stop"),
    {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 9,
                              "completion_tokens_details": {"reasoning_tokens": 2}}},
)  # fmt: skip

WEIRD = (
    b"null", b"[]", b"{}", b"3", b"-1", b"1e999", b"NaN", b'""', b'"x"', b"true", b"[null]", b"[[]]",
    b'{"message": null}', b"9" * 30, b"9" * 5000, b'"\\ud800"', b'"\xff"', b"[" * 5000, b'{"a":' * 2000,
)  # fmt: skip

NOISE = (
    b"\n", b"\r", b"\r\n", b"\n\n", b"data:", b"data: ", b"data: [DONE]\n", b": hi\n", b"event: error\n",
    b"\xef\xbb\xbf", b"\xff\xfe", b"\x00", b"{", b"}", b"[", b'"', b"\xc3", b"\x1b[31m",
)  # fmt: skip

HEADS = (
    STREAM_HEAD, STREAM_HEAD, STREAM_HEAD, STREAM_HEAD,
    STREAM_HEAD.replace(b"200 OK", b"429 No\r\nRetry-After: 9e9"),
    STREAM_HEAD.replace(b"200 OK", b"500 \xff"),
    STREAM_HEAD.replace(b"200 OK", b"302 Found\r\nLocation: //\xff"),
    STREAM_HEAD.replace(b"200 OK", b"204 None"),
    STREAM_HEAD.replace(b"close", b"close\r\nContent-Length: 40"),
    STREAM_HEAD.replace(b"close", b"close\r\nTransfer-Encoding: chunked"),
    STREAM_HEAD.replace(b"close", b"close\r\nContent-Encoding: gzip"),
    STREAM_HEAD.replace(b"close", b"close\r\nContent-Encoding: deflate"),
    STREAM_HEAD.replace(b"event-stream", b"event-stream; charset=\xff"),
    STREAM_HEAD.replace(b"close", b"close\r\nSet-Cookie: \x01=;;"),
    STREAM_HEAD.replace(b"close", b"close\r\nX: " + b"y" * 20_000),
)  # fmt: skip


def damaged(seed: int) -> bytes:
    """Return the bytes of one answer, damaged in a few places."""
    rng = random.Random(seed)
    chunks = [json.dumps(one).encode() for one in CHUNKS]
    for _ in range(rng.choice((0, 1, 1, 2))):
        index = rng.randrange(len(chunks))
        chunks[index] = _with_weird_value(rng, chunks[index])
    events = [b"data: " + one + rng.choice((b"\n\n", b"\n\n", b"\r\n\r\n", b"\n")) for one in chunks]
    body = bytearray(b"".join(events) + DONE)
    for _ in range(rng.choice((0, 0, 1, 3))):
        at = rng.randrange(len(body) + 1)
        match rng.randrange(4):
            case 0:
                body[at:at] = rng.choice(NOISE)
            case 1:
                del body[at : at + rng.randrange(40)]
            case 2:
                body[at:at] = rng.randbytes(rng.randrange(20))
            case 3:
                del body[at:]
    data = bytearray(rng.choice(HEADS)) + body
    if rng.random() < 0.1:
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


def _with_weird_value(rng: random.Random, data: bytes) -> bytes:
    """Return JSON with one of its values, or all of it, replaced."""
    places = [0, *(i + 1 for i, letter in enumerate(data) if letter in b":[,")]
    at = rng.choice(places)
    end = min((i for i in (data.find(b, at) for b in (b",", b"}", b"]")) if i >= 0), default=at)
    return rng.choice(WEIRD) if at == 0 else data[:at] + rng.choice(WEIRD) + data[end:]


async def send_damaged(exchange: Exchange) -> None:
    """Answer with :func:`damaged` of the seed that the prompt is, in pieces, and hang up."""
    seed = int(exchange.asks)
    data, rng = damaged(seed), random.Random(seed)
    for _ in range(rng.randrange(3)):
        cut = rng.randrange(len(data) + 1)
        await exchange.send(data[:cut])
        data = data[cut:]
        await asyncio.sleep(0)
    await exchange.send(data)
    exchange.close()
