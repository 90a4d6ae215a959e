"""``headway capacity``: the highest rate at which enough promises are kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from headway.cli import values
from headway.cli.capacity_fleet import AUTO, size_fleets
from headway.cli.run_options import (
    check_load,
    policies_of,
    run_options,
    seeds_of,
    spec_of,
)
from headway.cli.simulate import title_of
from headway.cli.target_lines import outcomes_of, target_lines
from headway.cli.trace_options import tell
from headway.cli.values import is_given, progress, save, say, whole, writable
from headway.errors import UserError
from headway.study.highest_rate import Capacity, highest_rate, over_seeds
from headway.study.on_sim import smallest_cache_tokens
from headway.study.requests import TooLong, reading_of, requests_of, too_long
from headway.study.spec import STOCK, STOCK_WAYS, RunSpec
from headway.study.sweep import FinishedRuns, Run, in_parallel, run_all
from headway.workloads.schema import number

START_RPS = 4.0

FoundRate = tuple[float, Run | None]
"""A capacity in requests per second, and the summary of the run at it; ``None`` at rate 0."""


@click.command()
@run_options
@click.option("--target", "targets", default="0.9,0.99", show_default=True, help="Shares to keep.")
@click.option("--start", default=str(START_RPS), show_default=True, help="First rate to try.")
@click.option("--rate", help="With --replicas auto: requests per second [the trace's own].")
@click.option(
    "--growth", default="1", show_default=True, help="With --replicas auto: factor on the rate."
)
@click.option("--gpu-hour-cost", help="With --replicas auto: price of a GPU hour.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Results as JSON.")
def capacity(
    targets: str,
    start: str,
    rate: str | None,
    growth: str,
    gpu_hour_cost: str | None,
    json_path: Path | None,
    **given: Any,
) -> None:
    """Find the highest request rate at which a share of all promises is kept.

    Bisects per seed to 2 %; the interval is Student's t over the seeds, 95 %. A line below the
    table says whether the targets of the SLO file's classes and tenants are met at the rate found.

    With --replicas auto it finds the fewest servers that keep the share at the load's own rate: of
    a trace longer than an hour, at that of its busiest hour.
    """
    wanted = _targets(targets)
    if given["replicas"] == AUTO:
        if is_given("start"):
            raise UserError("--start is a rate to begin with; --replicas auto looks for servers.")
        size_fleets(wanted, rate, growth, gpu_hour_cost, json_path, given)
        return
    for other in ("rate", "growth", "gpu_hour_cost"):
        if is_given(other):
            raise UserError(f"--{other.replace('_', '-')} goes with --replicas auto.")
    find_rates(wanted, start, json_path, given)


def find_rates(
    wanted: Sequence[float], start: str, json_path: Path | None, given: dict[str, Any]
) -> None:
    """Print and write the highest rate at which each policy keeps each share *wanted*.

    Raises:
        UserError: A value is not allowed.
    """
    base = spec_of(given)
    policies = policies_of(given["policy"], base.engine, base.overload, dict(base.options))
    tuned = [policy for policy in policies if policy in STOCK_WAYS[1:]]
    if tuned:
        raise UserError(
            f"{tuned[0]} is a choice among settings for given rates; use simulate for it."
        )
    seeds = seeds_of(given["seeds"])
    start_rps = number("--start", "the rate", start, minimum=0.0, above=True)
    check_load(base.at(start_rps))
    writable(json_path)
    jobs = [
        (replace(base, policy=p), target, s) for p in policies for target in wanted for s in seeds
    ]
    jobs = [(replace(s, options={}) if s.policy == STOCK else s, t, k) for s, t, k in jobs]
    console = Console()
    with progress(console, "capacity", len(jobs)) as advance:
        tasks = [(search, (spec.at(start_rps, seed), target)) for spec, target, seed in jobs]
        workers = whole("--workers", given["workers"])
        rates = in_parallel(tasks, workers, lambda i, found: advance(), base.engine)
    found: dict[tuple[str, float], list[FoundRate]] = {}
    for (spec, target, _), one in zip(jobs, rates, strict=True):
        found.setdefault((spec.policy, target), []).append(one)
    results = [
        (policy, over_seeds([rate_rps for rate_rps, _ in rates], target))
        for (policy, target), rates in found.items()
    ]
    at_found = [[run for _, run in rates if run is not None] for rates in found.values()]
    trace = reading_of(base.load)
    tell(console, trace)
    console.print(_table(results, title_of(base)))
    kv_tokens, long = _too_long(base, seeds, start_rps)
    labels = [f"{policy} at {one.mean_rps:.2f}/s" for policy, one in results]
    targets_kept = target_lines(list(zip(labels, at_found, strict=True)))
    say(console, (*long.lines(kv_tokens), *targets_kept))
    rows = [
        {"policy": policy, **asdict(result), "targets": [o.document() for o in outcomes_of(runs)]}
        for (policy, result), runs in zip(results, at_found, strict=True)
    ]
    read = {} if trace is None else {"trace": trace.facts()}
    save(json_path, {"schema": 1, **read, "too_long": asdict(long), "capacities": rows})


def _too_long(base: RunSpec, seeds: Sequence[int], rate_rps: float) -> tuple[int, TooLong]:
    """Return the size of the cache and the requests of any seed that are longer."""
    kv_tokens = smallest_cache_tokens(base.machine)
    requests = (r for seed in seeds for r in requests_of(base.at(rate_rps, seed).load))
    return kv_tokens, too_long({r.id: r for r in requests}.values(), kv_tokens)


def search(spec: RunSpec, target: float) -> FoundRate:
    """Return the capacity of one policy and seed in requests per second, and the run at it.

    The search begins at the spec's rate.
    """
    known: dict[float, Run] = {}

    def attainment_at(rate_rps: float) -> float:
        if rate_rps not in known:
            one = spec.at(rate_rps)
            known[rate_rps] = run_all([one], FinishedRuns(), workers=1)[one.key()]
        return known[rate_rps]["attainment"] or 0.0

    rate_rps = highest_rate(attainment_at, target, spec.load.rate_rps or START_RPS)
    return rate_rps, known.get(rate_rps)


def _table(results: list[tuple[str, Capacity]], title: str) -> Table:
    table = values.table(title, ["policy"], ["kept", "capacity", "95 % interval"])
    for policy, one in results:
        if one.low_rps is None or one.high_rps is None:
            interval = "one seed"
        else:
            interval = f"{one.low_rps:.2f} to {one.high_rps:.2f}/s"
        table.add_row(policy, f"{one.target:.0%}", f"{one.mean_rps:.2f}/s", interval)
    return table


def _targets(text: str) -> list[float]:
    values = [
        number("--target", "a share", part, minimum=0.0, above=True) for part in text.split(",")
    ]
    if any(value > 1.0 for value in values):
        raise UserError(f"--target must be shares from 0 to 1, such as 0.9,0.99; not {text!r:.60}.")
    return values
