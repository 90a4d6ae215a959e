"""Does the load generator see what a server sent? Known instants against its own records.

    chrt --fifo 1 python bench/client.py [--streams 500] [--gap-ms 50] [--tokens 60] [--json FILE]

A second process serves streams and notes the instant of every chunk it hands to the kernel; both
read the same monotonic clock. The streams run at once; their chunks leave together, as the tokens
of a step do, then in a second run evenly over the gap, as a busy server sends them. Bound: the
figures that a report shows, of first tokens and of gaps, are within 2 ms or 2 % of what was sent.
Real-time priority keeps other work on the machine out of it.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import click

from headway.bench import load
from headway.bench.client import Call, RunClock
from headway.bench.provenance import commit, machine
from headway.metrics.define import quantiles
from headway.metrics.record import RequestRecord
from headway.slo import Slo

FIRST_TOKEN_S = 1.0
WITHIN_S, WITHIN_SHARE = 0.002, 0.02
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def chunk(index: int, finish: str | None = None) -> bytes:
    """Return an event of about the size that vLLM sends."""
    choice = {"index": 0, "delta": {"content": " token"}, "token_ids": [index], "logprobs": None}
    body: dict[str, Any] = {
        "id": "chatcmpl-" + "0" * 32,
        "object": "chat.completion.chunk",
        "model": "tiny",
    }
    body["choices"] = [{**choice, "finish_reason": finish}]
    return f"data: {json.dumps(body)}\n\n".encode()


class Source:
    """Serves streams in step with each other, and notes when each chunk left.

    Attributes:
        sent_at_s: By request, the instants on the monotonic clock.
    """

    def __init__(self, num_streams: int, num_tokens: int, gap_s: float, spread: bool) -> None:
        self.num_streams, self.num_tokens, self.gap_s = num_streams, num_tokens, gap_s
        self.shift_s = gap_s / num_streams if spread else 0.0
        self.sent_at_s: dict[str, list[float]] = {}
        self._writers: dict[str, asyncio.StreamWriter] = {}
        self._all_here = asyncio.Event()

    async def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Take one request and answer with the head only."""
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        who = json.loads(await reader.readexactly(length))["user"]
        writer.write(HEAD)
        self._writers[who] = writer
        if len(self._writers) == self.num_streams:
            self._all_here.set()

    async def run(self, pipe: Connection) -> None:
        """Serve all streams once and tell the instants."""
        server = await asyncio.start_server(self.accept, "127.0.0.1", 0, backlog=4096)
        pipe.send(server.sockets[0].getsockname()[1])
        await self._all_here.wait()
        began_s = time.monotonic() + FIRST_TOKEN_S
        self.sent_at_s = {who: [] for who in self._writers}
        for index in range(self.num_tokens):
            data = chunk(index, "stop" if index + 1 == self.num_tokens else None)
            for place, (who, writer) in enumerate(self._writers.items()):
                wait_s = began_s + index * self.gap_s + place * self.shift_s - time.monotonic()
                if wait_s > 0:
                    await asyncio.sleep(wait_s)
                self.sent_at_s[who].append(time.monotonic())
                writer.write(data)
        for writer in self._writers.values():
            writer.write(b"data: [DONE]\n\n")
            writer.close()
        pipe.send(self.sent_at_s)
        server.close()


def serve(pipe: Connection, *plan: Any) -> None:
    """Be the server's process."""
    asyncio.run(Source(*plan).run(pipe))


class KnownClock(RunClock):
    """A run's clock that tells when it started."""

    started_s = 0.0

    def __init__(self) -> None:
        super().__init__()
        KnownClock.started_s = self._started_s


def measure(num_streams: int, num_tokens: int, gap_s: float, spread: bool) -> dict[str, Any]:
    """Return the quantiles of what was sent and of what was seen, and of their difference."""
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    plan = (num_streams, num_tokens, gap_s, spread)
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs, *plan))
    server.start()
    url = f"http://127.0.0.1:{ours.recv()}"
    calls = [
        Call(f"r{i}", 0.0, Slo(), {"user": f"r{i}", "max_tokens": num_tokens}, 1)
        for i in range(num_streams)
    ]
    load.RunClock = KnownClock  # type: ignore[misc]
    result = asyncio.run(load.run_load(url, calls, timeout_s=300))
    sent_at_s = ours.recv()
    server.join()
    assert all(record.finished for record in result.records), result.records[0]
    found: dict[str, Any] = {"streams": num_streams, "gap_ms": 1000 * gap_s, "spread": spread}
    found |= compared(result.records, sent_at_s)
    return {**found, "client_loop_lag_s": result.lag.loop_s}


def compared(
    records: Sequence[RequestRecord], sent_at_s: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    """Return what was sent and seen of first tokens and gaps, and how far the two are apart."""
    rows: dict[str, dict[str, list[float]]] = {
        name: {"sent": [], "seen": []} for name in ("ttft_s", "gap_s")
    }
    for record in records:
        sent = [at_s - KnownClock.started_s for at_s in sent_at_s[record.id]]
        for name, instants in (("sent", sent), ("seen", record.emitted_at_s)):
            rows["ttft_s"][name].append(instants[0] - record.arrived_at_s)
            rows["gap_s"][name] += [after - before for before, after in pairwise(instants)]
    found = {}
    for name, pair in rows.items():
        off_s = [abs(seen - sent) for sent, seen in zip(pair["sent"], pair["seen"], strict=True)]
        close = [
            off <= max(WITHIN_S, WITHIN_SHARE * sent)
            for off, sent in zip(off_s, pair["sent"], strict=True)
        ]
        sent, seen = quantiles(pair["sent"]), quantiles(pair["seen"])
        found[name] = {
            "sent": sent,
            "seen": seen,
            "off": quantiles(off_s),
            "share_within": sum(close) / len(close),
            "kept": {
                q: abs(seen[q] - sent[q]) <= max(WITHIN_S, WITHIN_SHARE * sent[q])
                for q in ("p50", "p95", "p99")
            },
        }
    return found


@click.command()
@click.option("--streams", "num_streams", default=500, show_default=True)
@click.option("--tokens", "num_tokens", default=60, show_default=True)
@click.option("--gap-ms", default=50.0, show_default=True)
@click.option("--json", "json_path", type=click.Path(path_type=Path))
def main(num_streams: int, num_tokens: int, gap_ms: float, json_path: Path | None) -> None:
    """Measure both ways of sending, print a line each, and end with 1 where a figure is off."""
    rows = [measure(num_streams, num_tokens, gap_ms / 1000, spread) for spread in (False, True)]
    for row in rows:
        click.echo(json.dumps(row))
    if json_path is not None:
        found = {"schema": 1, "machine": machine(), "commit": commit(Path(__file__).parent)}
        json_path.write_text(json.dumps({**found, "rows": rows}, indent=1) + "\n", encoding="utf-8")
    if not all(all(row[name]["kept"].values()) for row in rows for name in ("ttft_s", "gap_s")):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
