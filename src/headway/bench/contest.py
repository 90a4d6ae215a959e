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
from headway.bench.speed import measure_speed
from headway.errors import HeadwayError
from headway.metrics.record import RequestRecord
from headway.slo import SloBook
from headway.workloads.arrivals import Arrivals
from headway.workloads.realtext import SLO_FILE


@dataclass(frozen=True, slots=True)
class Leg:
    """One load on a running server: the demo's workload at a rate, from a seed.

    Without ``rate_rps`` the server's speed is measured first and the rate is the one at which
    the workload takes ``load`` of the engine's time. ``timeout_s`` is longer than any promise
    of the demo, so giving up never breaks one.
    """

    rate_rps: float | None
    seed: int
    num_requests: int
    timeout_s: float = 90.0
    load: float = 1.0


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
    rate_rps = leg.rate_rps
    if rate_rps is None:
        shown.stage("measuring the machine's speed")
        speed = asyncio.run(measure_speed(server.url, MODEL))
        sample = workload_of("demo", leg.num_requests, Arrivals("poisson"), 1.0, leg.seed)
        rate_rps = speed.rate_rps(sample, leg.load)
        shown.stage(f"the load is {rate_rps:g} requests a second")
    workload = workload_of("demo", leg.num_requests, Arrivals("poisson"), rate_rps, leg.seed)
    plan = Plan(
        workload=workload,
        book=SloBook.load(SLO_FILE),
        policy=contender.policy,
        rate_rps=rate_rps,
        seed=leg.seed,
        timeout_s=leg.timeout_s,
        send_slo="class",  # Stock vLLM ignores it.
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
    return Entry(contender, replace(leg, rate_rps=rate_rps), run, measured.records)
