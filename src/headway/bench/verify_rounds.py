"""The loads of ``headway verify``: rounds without promises, and one mixed load with them.

A round is a number of requests at once, as many as keep the machine busy for its span: the
machine's capacity is what stock vLLM serves of them a second. The mixed load arrives at 0.9 of
that, with promises that are multiples of what this machine does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import numpy as np

from headway.bench.access import Access
from headway.bench.session import MeasuredRun, Plan, measure
from headway.bench.show import Display
from headway.bench.speed import PROMPT_TOKENS, Speed
from headway.errors import HeadwayError
from headway.slo import Slo, SloBook
from headway.workloads.arrivals import Arrivals, with_arrivals
from headway.workloads.realtext import demo_workload
from headway.workloads.schema import WorkloadRequest

LOAD = 0.9
LEAST_REQUESTS, MOST_REQUESTS = 8, 600
FIRST_REQUESTS = 8
FIRST_SEED, MIXED_SEED = 900_001, 900_002
"""Far from the rounds' own, so that no text is in a prefix cache already."""

MIXED_ROUNDS = 3
"""Spans of a round that the mixed load lasts."""

LEAST_MIXED = 24
TIMEOUT_S = 1200.0
"""Of a request; nobody gives up on a machine that other work slows down."""

NO_PROMISE = SloBook({name: Slo(class_name=name) for name in ("chat", "summary", "batch")})


@dataclass(frozen=True, slots=True)
class Sizes:
    """How large the loads are.

    Attributes:
        round_requests: Requests of a round.
        round_s: Seconds a round is to last.
    """

    round_requests: int
    round_s: float


def round_plan(num_requests: int, seed: int, *, warm_up: bool) -> Plan:
    """Return a round: *num_requests* of the demo's requests at once, nothing promised."""
    requests = [replace(r, arrived_at_s=0.0) for r in demo_workload(num_requests, seed)]
    return Plan(
        requests, NO_PROMISE, seed=seed, timeout_s=TIMEOUT_S, send_slo="no", warm_up=warm_up
    )


async def sized(url: str, round_s: float, access: Access) -> Sizes:
    """Return as many requests as keep the server busy for *round_s*; also warms it up.

    Raises:
        HeadwayError: See :func:`served`.
    """
    num_requests = FIRST_REQUESTS
    while True:
        plan = round_plan(num_requests, FIRST_SEED + num_requests, warm_up=False)
        took_s = (await served(url, plan, access)).run["duration_s"]
        wanted = math.ceil(num_requests * round_s / max(took_s, 1e-3))
        if took_s >= round_s / 3 or num_requests >= MOST_REQUESTS / 4:
            return Sizes(min(max(wanted, LEAST_REQUESTS), MOST_REQUESTS), round_s)
        num_requests *= 4


def mixed_plan(
    runs: Sequence[Mapping[str, Any]], speed: Speed, sizes: Sizes
) -> tuple[Plan, dict[str, Slo]]:
    """Return the load with promises, and the promises by class.

    Args:
        runs: Rounds of stock's: their median is the capacity.
    """
    rate_rps = LOAD * median(r["num_requests"] / r["duration_s"] for r in runs)
    rate_rps = float(f"{rate_rps:.3g}")
    gap_s = median(r["tbt_s"]["p50"] or 0.0 for r in runs)
    slos = promises(speed, gap_s)
    count = min(max(round(rate_rps * MIXED_ROUNDS * sizes.round_s), LEAST_MIXED), 3 * MOST_REQUESTS)
    workload = arriving(demo_workload(count, MIXED_SEED), rate_rps)
    plan = Plan(
        workload, SloBook(slos), rate_rps=rate_rps, seed=MIXED_SEED, timeout_s=TIMEOUT_S,
        warm_up=False,
    )  # fmt: skip
    return plan, slos


def arriving(requests: list[WorkloadRequest], rate_rps: float) -> list[WorkloadRequest]:
    """Return *requests* at random times, the same for both servers."""
    rng = np.random.default_rng([MIXED_SEED, 0xA221])
    return with_arrivals(requests, Arrivals("poisson"), rate_rps, rng)


def promises(speed: Speed, gap_s: float) -> dict[str, Slo]:
    """Return what the classes are promised, as multiples of this machine's own figures.

    Args:
        gap_s: Median gap of a round.

    The floors are what a reader notices: nobody promises less on a fast machine.
    """
    prompt_s = PROMPT_TOKENS * speed.prompt_token_s

    def rounded(span_s: float) -> float:
        return float(f"{span_s:.2g}")

    return {
        "chat": Slo(
            ttft_s=rounded(max(2 * prompt_s, 0.2)),
            tbt_s=rounded(max(3 * gap_s, 0.05)),
            class_name="chat",
        ),
        "summary": Slo(
            ttft_s=rounded(max(8 * prompt_s, 1.0)),
            tbt_s=rounded(max(6 * gap_s, 0.1)),
            class_name="summary",
        ),
        "batch": Slo(jct_s=rounded(max(1000 * gap_s, 10.0)), class_name="batch"),
    }


async def served(url: str, plan: Plan, access: Access, shown: Display | None = None) -> MeasuredRun:
    """Return what came of a load that the server served.

    Raises:
        HeadwayError: A request failed, or one without a promise was refused.
        KeyboardInterrupt: The user stopped it.
    """
    tell = shown.tally if shown is not None else lambda tally: None
    measured = await measure(url, plan, access=access, on_progress=tell)
    if measured.load.was_stopped:
        raise KeyboardInterrupt
    outcomes = measured.run["outcomes"]
    lost = sum(n for how, n in outcomes.items() if how not in ("finished", "refused"))
    lost += outcomes["refused"] if plan.send_slo == "no" else 0
    if lost:
        details = [r.detail for r in measured.records if r.detail and not r.finished]
        why = max(set(details), key=details.count) if details else "no reason given"
        raise HeadwayError(f"{lost} of {len(measured.records)} requests failed at {url}: {why}.")
    return measured
