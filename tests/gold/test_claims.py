"""The verdicts on claims, against loops over the runs of made-up grids."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from headway.study.claims import ClaimReading, PaperClaim, verdicts
from headway.study.paper_grid import FIGURE, Grid, rows_of

DAY, TODAY = ("sarathi", "s3"), ("stock", "stock-static")
RATES = (1.0, 2.0, 4.0)
NUM_SEEDS = 3

FACTOR = PaperClaim("latency", 1.2, "factor", (ClaimReading("p95", FIGURE["TTFT p95"]),))
POINTS = PaperClaim("kept", 20, "points", (ClaimReading("all", FIGURE["attainment"]),))
RANGE = PaperClaim(
    "goodput", 1.4, "factor", (ClaimReading("kept/s", FIGURE["goodput"]),), least=1.1
)
NEAR = PaperClaim(
    "near", -6, "percent", (ClaimReading("kept/s", FIGURE["goodput"]),), near="oracle"
)
CAPACITY = PaperClaim("rate", 1.2, "factor", (ClaimReading("90 %", None),))


def made_up(seed: int) -> Grid:
    """Return a grid of runs with random figures; some first tokens are unknown."""
    rng = np.random.default_rng(seed)
    spread = {"p50": 1.0, "p95": 1.0, "p99": 1.0, "max": 1.0}

    def run(rate_rps: float) -> dict[str, Any]:
        kept = float(np.clip(1.1 - 0.12 * rate_rps * rng.uniform(0.5, 1.5), 0.05, 1.0))
        ttft_s = None if rng.random() < 0.1 else float(rng.uniform(0.1, 1.0))
        return {
            "attainment": kept,
            "goodput_rps": float(rng.uniform(1.0, 2.0)),
            "ttft_s": {**spread, "p95": ttft_s},
            "preemptions": {"recompute": 0, "swap": 0},
        }

    return {
        (policy, workload, rate): [run(rate) for _ in range(NUM_SEEDS)]
        for policy in ("headway", "oracle", *DAY, *TODAY)
        for workload in ("chat", "code")
        for rate in RATES
    }


def values(grid: Grid, policy: str, load: tuple[str, float], figure: str) -> list[float]:
    """Return the figure of each seed that has it."""
    found = []
    for run in grid[policy, *load]:
        value = run["ttft_s"]["p95"] if figure == "TTFT p95" else run[figure]
        if value is not None:
            found.append(value)
    return found


def slow_factors(
    grid: Grid, figure: str, rivals: tuple[str, ...], weakest: bool = False
) -> list[float]:
    """Return how many times as good as the strongest or weakest rival ours is, at each load."""
    factors = []
    for load in {(workload, rate) for _, workload, rate in grid}:
        mine = values(grid, "headway", load, figure)
        against = []
        for rival in rivals:
            theirs = values(grid, rival, load, figure)
            if mine and theirs:
                ratio = (sum(theirs) / len(theirs)) / (sum(mine) / len(mine))
                against.append(ratio if figure == "TTFT p95" else 1 / ratio)
        if against:
            factors.append(max(against) if weakest else min(against))
    return factors


def slow_capacity(grid: Grid, policy: str, workload: str) -> float:
    """Return the rate up to which 90 % is kept, by walking up from the lowest."""
    kept = [float(np.mean([r["attainment"] for r in grid[policy, workload, x]])) for x in RATES]
    last = 0.0
    for rate in np.arange(RATES[0], RATES[-1], 1e-3):
        if np.interp(rate, RATES, kept) < 0.9:
            break
        last = rate
    return float(last)


@pytest.mark.parametrize("seed", range(10))
def test_verdicts(seed: int) -> None:
    """Factors, points, ranges, nearness; the best of each group at each load."""
    grid = made_up(seed)
    tables = {"main": rows_of(grid, ("TTFT p95", "goodput"))}
    claims = (FACTOR, POINTS, RANGE, NEAR)
    factor, points, both, near = (
        verdict.findings[0] for verdict in verdicts(claims, tables, ["headway"], DAY, TODAY)
    )
    for side, rivals in ((factor.day, DAY), (factor.today, TODAY)):
        expected = max(slow_factors(grid, "TTFT p95", rivals))
        assert side is not None
        assert side.best.gain == pytest.approx(expected)
        assert side.is_reached == (round(expected, 2) >= 1.2)
    gaps = [
        100 * (np.mean(values(grid, "headway", load, "attainment")) - strongest)
        for load in {(workload, rate) for _, workload, rate in grid}
        for strongest in [max(np.mean(values(grid, r, load, "attainment")) for r in DAY)]
    ]
    assert points.day is not None
    assert points.day.best.gain == pytest.approx(max(gaps))
    low = max(slow_factors(grid, "goodput_rps", DAY))
    high = max(slow_factors(grid, "goodput_rps", DAY, weakest=True))
    assert both.day is not None
    assert both.day.weakest is not None
    assert (both.day.best.gain, both.day.weakest.gain) == pytest.approx((low, high))
    assert both.day.is_reached == (round(low, 2) >= 1.1 and round(high, 2) >= 1.4)
    assert both.today is not None
    assert both.today.is_reached == (round(max(slow_factors(grid, "goodput_rps", TODAY)), 2) >= 1.1)
    behind = min(100 * (x - 1) for x in slow_factors(grid, "goodput_rps", ("oracle",)))
    assert near.near is not None
    assert near.near.best.gain == pytest.approx(behind)
    assert near.outcome == ("reached" if round(behind, 1) >= -6 else "not reached")


@pytest.mark.parametrize("seed", range(5))
def test_spread(seed: int) -> None:
    """Each seed against the rival that is best by the mean, at the load of the largest gain."""
    grid = made_up(seed)
    tables = {"main": rows_of(grid, ("goodput",))}
    (verdict,) = verdicts([RANGE], tables, ["headway"], DAY, TODAY)
    against = verdict.findings[0].day
    assert against is not None
    best = against.best
    load = (best.workload, best.rate_rps or 0.0)
    each = [
        mine / theirs
        for mine, theirs in zip(
            values(grid, "headway", load, "goodput_rps"),
            values(grid, best.rival, load, "goodput_rps"),
            strict=True,
        )
    ]
    assert (best.low, best.high) == pytest.approx((min(each), max(each)))
    assert min(each) <= best.gain <= max(each)


@pytest.mark.parametrize("seed", range(10))
def test_capacities(seed: int) -> None:
    """The ratio of the rates with 90 % kept, to the best of the group, of a workload."""
    grid = made_up(seed)
    (verdict,) = verdicts([CAPACITY], {"main": rows_of(grid)}, ["headway"], DAY, TODAY)
    found = verdict.findings[0].day
    ratios = []
    for workload in ("chat", "code"):
        mine = slow_capacity(grid, "headway", workload)
        best = max(slow_capacity(grid, rival, workload) for rival in DAY)
        if best:
            ratios.append(mine / best)
    if not ratios:
        assert found is None
    else:
        assert found is not None
        assert found.best.gain == pytest.approx(max(ratios), abs=0.01)
