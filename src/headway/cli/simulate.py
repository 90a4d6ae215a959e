"""``headway simulate``: policies by rates by seeds under a virtual clock."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from headway import registry
from headway.cli import values
from headway.cli.fleet_lines import fleet_lines, machines_text
from headway.cli.run_options import (
    bands_of,
    check_load,
    policies_of,
    rates_of,
    run_options,
    seeds_of,
    spec_of,
)
from headway.cli.target_lines import target_lines
from headway.cli.trace_options import tell
from headway.cli.values import progress, save, say, whole, writable
from headway.engines.attention_kinds import FULL
from headway.errors import UserError
from headway.study import stock
from headway.study.bounds import bound_of, check_bound
from headway.study.on_oracle import ORACLE, check_oracle
from headway.study.requests import TooLong, reading_of
from headway.study.spec import STOCK, STOCK_WAYS, RunSpec
from headway.study.sweep import FinishedRuns, Run, in_parallel, mean_attainment, run_all
from headway.units import format_s


@click.command()
@run_options
@click.option("--rate", help="Requests per second, R,R,… [a file: as recorded].")
@click.option("--bound", is_flag=True, help="Add a bound that no policy can exceed.")
@click.option("--keep", type=click.Path(path_type=Path), help="Folder for whole runs, to report.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Summaries as JSON.")
def simulate(
    rate: str | None, bound: bool, keep: Path | None, json_path: Path | None, **given: Any
) -> None:
    """Serve a load under each policy, at each rate, with each seed, and compare.

    A line below the table says whether the targets of the SLO file's classes and tenants were met.

    The policy "oracle" knows every length in advance and serves in the best way it found:
    no preset keeps more.

    A stopped sweep continues when the command is repeated with the same --json or --keep.
    """
    base, policies = _chosen(given)
    rates, seeds = rates_of(rate), seeds_of(given["seeds"])
    if bound:
        check_bound(base)
    check_load(base.at(rates[0]))
    writable(json_path, keep)
    if keep is not None:
        keep.mkdir(exist_ok=True)
    console = Console()
    finished = FinishedRuns(json_path.with_suffix(".part") if json_path else None, keep)
    workers = whole("--workers", given["workers"])
    bands = bands_of(base, given["step_time_band"])
    bounds = _bounds(console, bands, policies, rates, seeds, workers) if bound else {}
    runs: list[Run] = []
    for band in bands:
        runs += _plain(console, band, policies, rates, seeds, finished, workers)
        runs += _stock_ways(console, band, policies, rates, seeds, finished, workers)
    if bound:
        runs = [
            {**run, "bound": bounds[run["rate_rps"], run["seed"], run["step_time_band"]]}
            for run in runs
        ]
    trace = reading_of(base.load)
    tell(console, trace)
    console.print(table_of(runs, title_of(base)))
    lines = (*too_long_of(runs), *targets_of(runs), *settings_of(runs), *fleets_of(runs))
    say(console, lines)
    read = {} if trace is None else {"trace": trace.facts()}
    save(json_path, {"schema": 1, **read, "runs": runs})
    finished.close()


def _chosen(given: dict[str, Any]) -> tuple[RunSpec, list[str]]:
    """Return what all runs share, and the policies; the oracle is in no registry.

    Raises:
        UserError: An option or a policy is wrong, or the oracle cannot serve such runs.
    """
    names = list(dict.fromkeys(part.strip() for part in given["policy"].split(",")))
    if ORACLE not in names:
        base = spec_of(given)
        return base, policies_of(given["policy"], base.engine, base.overload, dict(base.options))
    others = [name for name in names if name and name != ORACLE]
    if not others and given["policy_options"] != "{}":
        raise UserError(f"Policy {ORACLE!r} takes no options; leave out --options.")
    base = spec_of({**given, "policy": ",".join(others) or registry.DEFAULT})
    check_oracle(replace(base, policy=ORACLE, options={}))
    policies_of(",".join(others) or registry.DEFAULT, base.engine, base.overload, {**base.options})
    return base, [name for name in names if name]


def _bounds(
    console: Console,
    bands: Sequence[RunSpec],
    policies: Sequence[str],
    rates: Sequence[float | None],
    seeds: Sequence[int],
    workers: int | None,
) -> dict[tuple[float | None, int, float], float]:
    """Return the bound of each load by rate, seed and band; it is the same for all policies."""
    stocks = [policy for policy in policies if policy in STOCK_WAYS]
    specs = [
        replace(band, policy=stocks[0] if stocks else band.policy).at(rate_rps, seed)
        for band in bands
        for rate_rps in rates
        for seed in seeds
    ]
    with progress(console, "bound", len(specs)) as advance:
        calls = [(bound_of, (spec,)) for spec in specs]
        found = in_parallel(calls, workers, lambda i, value: advance(), "sim")
    places = [(s.load.rate_rps, s.load.seed, s.machine.step_time_band) for s in specs]
    return dict(zip(places, found, strict=True))


def _plain(
    console: Console,
    base: RunSpec,
    policies: Sequence[str],
    rates: Sequence[float | None],
    seeds: Sequence[int],
    finished: FinishedRuns,
    workers: int | None,
) -> list[Run]:
    specs = [
        replace(base, policy=policy).at(rate_rps, seed)
        for policy in policies
        if policy not in STOCK_WAYS[1:]
        for rate_rps in rates
        for seed in seeds
    ]
    # Stock vLLM and the oracle know no policy options; runs that differ in them only are one run.
    specs = [replace(s, options={}) if s.policy in (STOCK, ORACLE) else s for s in specs]
    with progress(console, "simulate", len(specs)) as advance:
        return list(run_all(specs, finished, workers, lambda spec, run: advance()).values())


def _stock_ways(
    console: Console,
    base: RunSpec,
    policies: Sequence[str],
    rates: Sequence[float | None],
    seeds: Sequence[int],
    finished: FinishedRuns,
    workers: int | None,
) -> list[Run]:
    ways = [policy for policy in policies if policy in STOCK_WAYS[1:]]
    if not ways:
        return []

    def run_many(specs: Sequence[RunSpec]) -> Mapping[str, Run]:
        with progress(console, "stock settings", len(specs)) as advance:
            return run_all(specs, finished, workers, lambda spec, run: advance())

    tried = stock.sweep(replace(base, options={}), rates, seeds, run_many)
    return [run for way in ways for run in tried.as_policy(way)]


def table_of(runs: Sequence[Run], title: str) -> Table:
    """Return the comparison a person reads first: one line a policy and rate, over seeds."""
    bound = ("bound",) if any("bound" in run for run in runs) else ()
    long = ("too long",) if any(_num_long(run) for run in runs) else ()
    names = ("rate", "kept", *bound, "goodput", "TTFT p95", "gap p99", "preempted", "refused")
    table = values.table(title, ["policy"], (*names, *long))
    for group in _over_seeds(runs):
        run = group[0]
        refused = sum(r["outcomes"]["refused"] for r in group)
        table.add_row(
            _label(run),
            _rate(run),
            _kept(group),
            *(f"{sum(r[name] for r in group) / len(group):.1%}" for name in bound),
            f"{sum(r['goodput_rps'] for r in group) / len(group):.2f}/s",
            format_s(_mean(r["ttft_s"]["p95"] for r in group)),
            format_s(_mean(r["tbt_s"]["p99"] for r in group)),
            str(sum(sum(r["preemptions"].values()) for r in group)),
            str(refused),
            *(str(sum(_num_long(r) for r in group)) for _ in long),
        )
    return table


def _num_long(run: Run) -> int:
    return sum(len(names) for names in run.get("too_long", {}).values())


def too_long_of(runs: Sequence[Run]) -> list[str]:
    """Return a line on the requests that were cut, and one on those that could never fit."""
    lines: list[str] = []
    for kv_tokens in dict.fromkeys(run["kv_tokens"] for run in runs if "too_long" in run):
        told = [run["too_long"] for run in runs if run.get("kv_tokens") == kv_tokens]
        names = {
            kind: tuple(dict.fromkeys(name for one in told for name in one[kind]))
            for kind in ("cut", "never_fit")
        }
        lines += TooLong(**names).lines(kv_tokens)
    return lines


def targets_of(runs: Sequence[Run]) -> Iterator[str]:
    """Yield a line for each policy and rate: what came of the targets of classes and tenants."""
    return target_lines(_labelled(runs))


def fleets_of(runs: Sequence[Run]) -> Iterator[str]:
    """Yield a line for each policy and rate of a fleet: what each server got and refused."""
    return fleet_lines(_labelled(runs))


def _labelled(runs: Sequence[Run]) -> list[tuple[str, list[Run]]]:
    return [(f"{_label(group[0])} {_rate(group[0])}", group) for group in _over_seeds(runs)]


def settings_of(runs: Sequence[Run]) -> list[str]:
    """Return a line for each setting of vLLM's that a tuned baseline chose."""
    lines = [
        f"{group[0]['policy']} at {group[0]['rate_rps']:g}/s: {group[0]['settings']}"
        for group in _over_seeds(runs)
        if group[0]["policy"] in STOCK_WAYS[1:] and group[0]["rate_rps"] is not None
    ]
    return list(dict.fromkeys(lines))


def _over_seeds(runs: Sequence[Run]) -> list[list[Run]]:
    """Return the runs that differ in their seed only, together."""
    groups: dict[tuple[Any, ...], list[Run]] = {}
    for run in runs:
        key = (run["policy"], run["rate_rps"], run["step_time_band"])
        groups.setdefault(key, []).append(run)
    return list(groups.values())


def _rate(run: Run) -> str:
    return f"{run['rate_rps']:g}/s" if run["rate_rps"] is not None else "as is"


def _label(run: Run) -> str:
    band = run["step_time_band"]
    return f"{run['policy']} (steps {band:+.0%})" if band else str(run["policy"])


def _kept(group: Sequence[Run]) -> str:
    """Return the mean share of kept promises and, over several seeds, the least and most."""
    kept = [run["attainment"] or 0.0 for run in group]
    spread = f" ({min(kept):.1%} to {max(kept):.1%})" if len(kept) > 1 else ""
    return f"{mean_attainment(group):.1%}{spread}"


def _mean(values: Any) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def title_of(spec: RunSpec) -> str:
    """Return what was run, for the head of a table."""
    kv = f", {spec.machine.kv_tokens} KV tokens" if spec.machine.kv_tokens else ""
    where = "vLLM's scheduler" if spec.engine == "vllm" else "Headway's simulator"
    caching = ", prefix caching" if spec.machine.prefix_caching else ""
    groups = "" if spec.machine.attention == FULL else f", {' + '.join(spec.machine.attention)}"
    return f"{spec.load.source} on {machines_text(spec.machine)}{kv}{groups}{caching}, {where}"
