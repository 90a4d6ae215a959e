"""The same workload for several contenders, one server after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from headway.bench.calls import workload_of
from headway.bench.contenders import MODEL, Contender
from headway.bench.server import LiveServer, ServerDied
from headway.bench.session import Plan, measure
from headway.bench.show import Display, display
from headway.bench.speed import demo_book, measure_speed
from headway.errors import HeadwayError
from headway.metrics.record import RequestRecord
from headway.workloads.arrivals import Arrivals


@dataclass(frozen=True, slots=True)
class Leg:
    """One load on a running server: the demo's workload at a rate, from a seed.

    Without ``slowness`` the server's speed is measured first, and says how many times as long the
    promises are; without ``rate_rps`` too, the rate is the one at which the workload takes ``load``
    of the engine's time. ``timeout_s``, times the slowness, is longer than any promise of the demo,
    so giving up never breaks one.
    """

    rate_rps: float | None
    seed: int
    num_requests: int
    timeout_s: float = 90.0
    load: float = 1.0
    slowness: float | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """What one contender did in one leg; ``run`` has ``title`` and ``command`` added."""

    contender: Contender
    leg: Leg
    run: dict[str, Any]
    records: list[RequestRecord]


def run_contender(
    contender: Contender,
    legs: Sequence[Leg],
    log_path: Path,
    console: Console,
) -> list[Entry]:
    """Start the contender's server, run every leg on it, and stop it.

    Raises:
        HeadwayError: The server died, or answers nothing; the sentence says where its log is.
        KeyboardInterrupt: The user stopped a leg; the server is gone by then.
    """
    with display(console, contender.title) as shown:
        shown.stage("starting the server")
        with LiveServer(contender.serve_args, log_path, on_wait=shown.waited) as server:
            return [_run_leg(server, contender, leg, shown) for leg in legs]


def _run_leg(server: LiveServer, contender: Contender, leg: Leg, shown: Display) -> Entry:
    rate_rps, slowness = leg.rate_rps, leg.slowness
    if slowness is None:
        shown.stage("measuring the machine's speed")
        speed = asyncio.run(measure_speed(server.url, MODEL))
        slowness = speed.slowness()
        if rate_rps is None:
            sample = workload_of("demo", leg.num_requests, Arrivals("poisson"), 1.0, leg.seed)
            rate_rps = speed.rate_rps(sample, leg.load)
        shown.stage(f"the load is {rate_rps:g} requests a second")
    assert rate_rps is not None
    workload = workload_of("demo", leg.num_requests, Arrivals("poisson"), rate_rps, leg.seed)
    plan = Plan(
        workload=workload,
        book=demo_book(slowness),
        policy=contender.policy,
        rate_rps=rate_rps,
        seed=leg.seed,
        timeout_s=leg.timeout_s * slowness,
        priority_by_class=contender.priority_by_class,
    )
    try:
        measured = asyncio.run(
            measure(server.url, plan, on_stage=shown.stage, on_progress=shown.tally)
        )
    except HeadwayError as error:
        server.check_alive(after_failure=True)
        raise ServerDied(f"{error} The server's log is {server.log_path}.") from None
    server.check_alive()
    if measured.load.was_stopped:
        raise KeyboardInterrupt
    run = {"title": contender.title, "command": contender.command, **measured.run}
    run["server_ready_after_s"] = server.ready_after_s
    run["slowness"] = slowness
    leg = replace(leg, rate_rps=rate_rps, slowness=slowness)
    return Entry(contender, leg, run, measured.records)
