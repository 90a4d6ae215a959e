"""Question: does it hold live? A refused client that comes back when it was told, on a real server.

The demo's traffic on the CPU engine with ``--overload refuse``, at a load beyond what it serves.
Each refused request comes back once, as a new request, after its ``Retry-After``; the first tries
keep arriving meanwhile. Writes live.json beside itself.

    python experiments/retry_after/live.py                  # about ten minutes, nothing beside it
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import click

from headway.bench.calls import CallOptions, calls_of, warm_up_calls, workload_of
from headway.bench.client import Call, RunClock, send
from headway.bench.contenders import MODEL, SERVER_ARGS
from headway.bench.load import run_load
from headway.bench.probe import ask_server
from headway.bench.provenance import commit, machine
from headway.bench.server import LiveServer
from headway.bench.speed import demo_book, measure_speed
from headway.metrics.record import RequestRecord
from headway.workloads.arrivals import Arrivals

HERE = Path(__file__).parent
TIMEOUT_S = 300.0


async def told_s(session: aiohttp.ClientSession, url: str, call: Call) -> tuple[Any, float | None]:
    """Return the record of one try made now, and the seconds it was told to wait, if any."""
    heard: list[float] = []
    clock = RunClock()

    async def note(_: Any, __: Any, end: aiohttp.TraceRequestEndParams) -> None:
        if end.response.status == 429:
            heard.append(float(end.response.headers["Retry-After"]))

    trace = aiohttp.TraceConfig()
    trace.on_request_end.append(note)
    trace.freeze()
    connector = session.connector
    async with aiohttp.ClientSession(
        connector=connector, connector_owner=False, trace_configs=[trace], read_bufsize=2**20
    ) as own:
        reply = await send(own, url, replace(call, arrived_at_s=0.0), clock, TIMEOUT_S)
    return reply.record, heard[0] if heard else None


async def follow(
    session: aiohttp.ClientSession, url: str, call: Call
) -> tuple[RequestRecord, RequestRecord | None, float | None]:
    """Try at the call's time, and once more if refused, when told."""
    await asyncio.sleep(call.arrived_at_s)
    first, wait_s = await told_s(session, url, call)
    if wait_s is None:
        return first, None, None
    await asyncio.sleep(wait_s)
    second, _ = await told_s(session, url, replace(call, id=f"{call.id}-again"))
    return first, second, wait_s


async def play(url: str, load: float, requests: int, seed: int) -> dict[str, Any]:
    """Return what became of first and second tries."""
    server = await ask_server(url)
    speed = await measure_speed(url, MODEL)
    book = demo_book(speed.slowness())
    rate_rps = speed.rate_rps(workload_of("demo", 200, Arrivals("poisson"), 1.0, seed), load)
    options = CallOptions(server.model, server.is_vllm, "ms", {})
    await run_load(url, warm_up_calls(book, options), timeout_s=TIMEOUT_S)
    workload = workload_of("demo", requests, Arrivals("poisson"), rate_rps, seed)
    calls: Sequence[Call] = calls_of(workload, book, options)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        rows = await asyncio.gather(*(follow(session, url, call) for call in calls))
    again = [(second, wait_s) for _, second, wait_s in rows if second is not None]
    return {
        "load": load,
        "rate_rps": rate_rps,
        "slowness": speed.slowness(),
        "seed": seed,
        "clients": len(rows),
        "kept_at_once": sum(first.attained for first, _, _ in rows),
        "failed": sum(first.outcome == "failed" for first, _, _ in rows),
        "refused": len(again),
        "kept_at_first_retry": sum(second.attained for second, _ in again),
        "refused_again": sum(second.outcome == "refused" for second, _ in again),
        "waits_s": sorted(wait_s for _, wait_s in again if wait_s is not None),
    }


@click.command()
@click.option("--load", default=2.0, show_default=True, help="Share of the engine's time.")
@click.option("--requests", default=140, show_default=True)
@click.option("--seed", default=1, show_default=True)
def main(load: float, requests: int, seed: int) -> None:
    """Play one load and write what came of it."""
    log = Path(tempfile.mkdtemp()) / "server.log"
    with LiveServer([MODEL, "--overload", "refuse", *SERVER_ARGS], log) as server:
        found = asyncio.run(play(server.url, load, requests, seed))
    found |= {"machine": machine(), "commit": commit(HERE)}
    (HERE / "live.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    click.echo(json.dumps({k: v for k, v in found.items() if k != "machine"}, indent=1))


if __name__ == "__main__":
    main()
