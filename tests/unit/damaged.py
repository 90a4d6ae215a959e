"""Streams that no server should send: the damage is drawn from a seed."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from typing import Any

from wire import DONE, STREAM_HEAD, Exchange, chunk

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
    b"null", b"[]", b"{}", b"3", b"-1", b"1e999", b"NaN", b'""', b'"x"', b"true", b"[null]",
    b"[[]]", b'{"message": null}', b"9" * 30, b"9" * 5000, b'"\\ud800"', b'"\xff"', b"[" * 5000,
    b'{"a":' * 2000,
)  # fmt: skip

NOISE = (
    b"\n", b"\r", b"\r\n", b"\n\n", b"data:", b"data: ", b"data: [DONE]\n", b": hi\n",
    b"event: error\n", b"\xef\xbb\xbf", b"\xff\xfe", b"\x00", b"{", b"}", b"[", b'"', b"\xc3",
    b"\x1b[31m",
)  # fmt: skip

HEADS = (
    *[STREAM_HEAD] * 20,
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
    events = [
        b"data: " + one + rng.choice((b"\n\n", b"\n\n", b"\r\n\r\n", b"\n")) for one in chunks
    ]
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
    if exchange.body is None:  # A damaged redirect led back here.
        return exchange.close()
    seed = int(exchange.asks)
    data, rng = damaged(seed), random.Random(seed)
    for _ in range(rng.randrange(3)):
        cut = rng.randrange(len(data) + 1)
        await exchange.send(data[:cut])
        data = data[cut:]
        await asyncio.sleep(0)
    await exchange.send(data)
    return exchange.close()
