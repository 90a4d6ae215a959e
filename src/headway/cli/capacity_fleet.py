"""``headway capacity --replicas auto``: how many servers a load needs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from headway.cli import values
from headway.cli.run_options import policies_of, seeds_of, spec_of
from headway.cli.simulate import title_of
from headway.cli.target_lines import outcomes_of, target_lines
from headway.cli.trace_options import tell
from headway.cli.values import save, say, whole, writable
from headway.errors import UserError
from headway.study.fleet_size import FleetSize, size_of, span_s
from headway.study.on_sim import smallest_cache_tokens
from headway.study.requests import (
    is_file,
    reading_of,
    requests_of,
    shares_prefixes,
    too_long,
)
from headway.study.spec import Load, RunSpec
from headway.study.sweep import FinishedRuns, Run, mean_attainment, run_all
from headway.workloads.schema import number

AUTO = "auto"

PEAK_S = 3600.0
"""Of a longer trace the busiest so many seconds are what the servers must carry."""

BY_PREFIX = "prefix"
"""The router that others are compared with where prompts begin alike."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What the servers must carry together, and the sentence that says where it is from."""

    load: Load
    rate_rps: float
    said: str


def size_fleets(
    targets: Sequence[float],
    rate: str | None,
    growth: str,
    gpu_hour_cost: str | None,
    json_path: Path | None,
    given: dict[str, Any],
) -> None:
    """Print and write how many servers each policy needs for each target.

    Raises:
        UserError: A value is not allowed.
    """
    # Two stand for any number, so that what needs several servers may be asked for.
    base = spec_of({**given, "replicas": "2"})
    policies = policies_of(given["policy"], base.engine, base.overload, dict(base.options))
    seeds, workers = seeds_of(given["seeds"]), whole("--workers", given["workers"])
    cost = None
    if gpu_hour_cost is not None:
        cost = number("--gpu-hour-cost", "the cost", gpu_hour_cost, minimum=0.0)
    writable(json_path)
    demand = demand_of(base.load, values.rate(rate), growth)
    base = replace(base, load=demand.load)
    console = Console()
    trace = reading_of(base.load)
    tell(console, trace)
    say(console, [demand.said])

    def run_seeds(spec: RunSpec) -> list[Run]:
        specs = [spec.at(spec.load.rate_rps, seed) for seed in seeds]
        runs = list(run_all(specs, FinishedRuns(), workers).values())
        kept, servers = mean_attainment(runs), spec.machine.num_replicas
        where = f"{spec.policy}, {spec.machine.router}"
        click.echo(f"{where}: {_servers(servers)}, kept {kept:.1%}", err=True)
        return runs

    found = [
        (spec, size_of(spec, target, seeds, run_seeds))
        for policy in policies
        for target in targets
        for spec in _routings(replace(base, policy=policy))
    ]
    title = title_of(replace(base, machine=replace(base.machine, num_replicas=1)))
    console.print(_table(found, cost, title))
    long = too_long(requests_of(base.load), smallest_cache_tokens(base.machine))
    labels = [f"{spec.policy} on {_servers(size.num_shown)}" for spec, size in found]
    runs = [size.runs for _, size in found]
    say(console, long.lines(smallest_cache_tokens(base.machine)))
    say(console, target_lines(list(zip(labels, runs, strict=True))))
    say(console, (*_misses(found), *_savings(found)))
    read = {} if trace is None else {"trace": trace.facts()}
    facts = {"rate_rps": demand.rate_rps, "said": demand.said}
    rows = [_document(spec, size, cost) for spec, size in found]
    save(json_path, {"schema": 1, **read, "demand": facts, "fleets": rows})


def demand_of(load: Load, rate_rps: float | None, growth: str) -> Demand:
    """Return the load at the rate that is to be carried: the trace's own, or the one given.

    Raises:
        UserError: A workload without a rate, or a growth that is none.
    """
    times = number("--growth", "the growth", growth, minimum=0.0, above=True)
    if is_file(load.source):
        load, said, own_rps = _peak_of(load)
        if rate_rps is not None:
            said += f" Asked for: {rate_rps:g}/s."
        as_recorded = rate_rps is None and times == 1.0 and load.arrivals in (None, "trace")
        rate_rps = rate_rps or own_rps
    elif rate_rps is None:
        raise UserError(f"The workload {load.source!r} has no recorded times; give --rate.")
    else:
        said, as_recorded = f"{load.source} at {rate_rps:g}/s.", False
    if times != 1.0:
        said += f" With --growth {times:g}: {rate_rps * times:.3g}/s."
    load = replace(load, rate_rps=None if as_recorded else rate_rps * times)
    return Demand(load, rate_rps * times, said)


def _peak_of(load: Load) -> tuple[Load, str, float]:
    """Return the busiest hour of a trace, the whole of a shorter one; in words; its rate."""
    offered = requests_of(replace(load, num_requests=None, arrivals=None, rate_rps=None))
    covered_s = span_s(offered)
    if covered_s <= PEAK_S:
        rate_rps = len(offered) / covered_s
        return load, f"The trace has {len(offered)} requests in {covered_s:.0f} s.", rate_rps
    load = replace(load, busiest_s=PEAK_S)
    peak = requests_of(replace(load, num_requests=None, arrivals=None, rate_rps=None))
    rate_rps = len(peak) / span_s(peak)
    said = (
        f"The trace covers {covered_s / PEAK_S:.1f} hours; its busiest hour begins"
        f" {peak[0].arrived_at_s:.0f} s into it: {len(peak)} requests, {rate_rps:.3g}/s."
    )
    return load, said, rate_rps


def _routings(spec: RunSpec) -> Iterator[RunSpec]:
    """Yield the run by its router and, where prompts begin alike and are cached, by prefix."""
    yield spec
    is_cached = spec.machine.prefix_caching and shares_prefixes(spec.load)
    if is_cached and spec.machine.router != BY_PREFIX:
        yield replace(spec, machine=replace(spec.machine, router=BY_PREFIX))


def _table(found: Sequence[tuple[RunSpec, FleetSize]], cost: float | None, title: str) -> Table:
    price = "GPU-s a kept promise" if cost is None else "cost of 1000 kept"
    table = values.table(
        title, ["policy", "router"], ["target", "servers", "kept", "one fewer keeps", price]
    )
    for spec, size in found:
        table.add_row(
            spec.policy,
            spec.machine.router,
            f"{size.target:.0%}",
            str(size.num_servers or "none"),
            f"{size.kept[size.num_shown]:.1%}",
            *(_or_none(value, form) for value, form in _figures(size, cost)),
        )
    return table


def _figures(size: FleetSize, cost: float | None) -> list[tuple[float | None, str]]:
    fewer = size.kept.get((size.num_servers or 0) - 1)
    if cost is None:
        return [(fewer, ".1%"), (size.gpu_s_per_kept, ".3g")]
    return [(fewer, ".1%"), (_cost_of_1000(size, cost), ".3g")]


def _or_none(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)


def _cost_of_1000(size: FleetSize, cost: float) -> float | None:
    return None if size.gpu_s_per_kept is None else 1000 * size.gpu_s_per_kept * cost / 3600


def _servers(count: int) -> str:
    return f"{count} server{'s' if count != 1 else ''}"


def _misses(found: Sequence[tuple[RunSpec, FleetSize]]) -> Iterator[str]:
    """Yield a sentence where no number of servers was enough."""
    for spec, size in found:
        if size.num_servers is None:
            yield (
                f"{spec.policy} by {spec.machine.router}: no number of servers tried, up to"
                f" {max(size.kept)}, keeps {size.target:.0%};"
                f" {_servers(size.num_shown)} kept the most, {size.kept[size.num_shown]:.1%}."
            )


def _savings(found: Sequence[tuple[RunSpec, FleetSize]]) -> Iterator[str]:
    """Yield for each policy and target what routing by prefix saves."""
    by_prefix = {
        (spec.policy, size.target): size for spec, size in found if spec.machine.router == BY_PREFIX
    }
    for spec, size in found:
        other = by_prefix.get((spec.policy, size.target))
        if other is None or spec.machine.router == BY_PREFIX or not other.num_servers:
            continue
        label = f"{spec.policy} at {size.target:.0%}: routing by prefix"
        if size.num_servers is None:
            yield f"{label} needs {_servers(other.num_servers)}."
        elif size.num_servers > other.num_servers:
            saved = size.num_servers - other.num_servers
            yield f"{label} saves {saved} of {_servers(size.num_servers)}."
        else:
            yield f"{label} saves no server against {spec.machine.router}."


def _document(spec: RunSpec, size: FleetSize, cost: float | None) -> dict[str, Any]:
    document = {
        "policy": spec.policy,
        "router": spec.machine.router,
        "target": size.target,
        "servers": size.num_servers,
        "kept_by_servers": {str(count): kept for count, kept in size.kept.items()},
        "gpu_s_per_kept": size.gpu_s_per_kept,
        "targets": [one.document() for one in outcomes_of(size.runs)],
    }
    if cost is not None:
        document["cost_per_1000_kept"] = _cost_of_1000(size, cost)
    return document
