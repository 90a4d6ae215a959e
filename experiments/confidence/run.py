"""Question: does any fixed quantile of the output lengths suit every load, and does weighing?

Three workloads at three loads each, from comfortable to overload under KV pressure: the policy
``headway`` with each fixed quantile and with admission weighed by cost, and stock vLLM with the
setting that turns out best for each load. Writes results.json and results.md beside itself; a
stopped run goes on.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click

from headway.study import stock
from headway.study.spec import Load, Machine, RunSpec
from headway.study.sweep import FinishedRuns, Run, run_all

HERE = Path(__file__).parent
GPU = "llama-3.1-8b@h100"
KV_TOKENS = {"long-outputs": 41_408, "retrieval": 20_000, "mixed": 20_000}
"""Small enough that KV, not compute, is what is short."""

QUANTILES = (0.1, 0.3, 0.5, 0.8, 0.95)
LOADS = {
    "long-outputs": (0.8, 1.4, 2.2),
    "retrieval": (3.0, 5.0, 8.0),
    "mixed": (5.0, 8.0, 12.0),
}
"""Requests per second: comfortable, near capacity, overload."""


def spec(workload: str, rate_rps: float, seed: int, requests: int, options: dict) -> RunSpec:
    """Return one run."""
    load = Load(workload, rate_rps, requests, seed)
    machine = Machine(GPU, kv_tokens=KV_TOKENS[workload], noise=0.05)
    policy = "slack" if "confidence" in options else "headway"
    return RunSpec(policy, "sim", load, machine, options=options)


HINDSIGHT = "stock-hindsight"


@dataclass(frozen=True)
class Cell:
    """One contender at one load."""

    workload: str
    rate_rps: float
    contender: str
    per_seed: list[float]
    preemptions: int

    @property
    def attainment(self) -> float:
        """Mean of the seeds."""
        return sum(self.per_seed) / len(self.per_seed)


def cell(workload: str, rate: float, name: str, runs: Sequence[Run]) -> Cell:
    """Return one cell from its runs."""
    preempted = sum(sum(run["preemptions"].values()) for run in runs)
    return Cell(workload, rate, name, [run["attainment"] for run in runs], preempted)


def table(cells: Sequence[Cell], loads: Mapping[str, Sequence[float]]) -> str:
    """Return the table: workloads and loads by contenders."""
    names = list(dict.fromkeys(c.contender for c in cells))
    lines = ["| workload | rate | " + " | ".join(names) + " |", "|---|---:|" + "---:|" * len(names)]
    for workload, rates in loads.items():
        for rate in rates:
            row = {c.contender: c for c in cells if (c.workload, c.rate_rps) == (workload, rate)}
            texts = [f"{row[n].attainment:.3f} ({row[n].preemptions})" for n in names]
            lines.append(f"| {workload} | {rate:g}/s | " + " | ".join(texts) + " |")
    return "\n".join(lines) + "\n\nShare of promises kept, mean of the seeds (preemptions, all)."


def verdict(cells: Sequence[Cell], loads: Mapping[str, Sequence[float]]) -> str:
    """Return, in points: how far weighing is from the best quantile, each quantile and stock."""
    lines = [
        "| contender | worst against the best quantile at that load | mean |",
        "|---|---:|---:|",
    ]
    points = [(w, r) for w, rates in loads.items() for r in rates]
    by_name: dict[str, dict[tuple[str, float], float]] = {}
    for c in cells:
        by_name.setdefault(c.contender, {})[c.workload, c.rate_rps] = c.attainment
    fixed = [by_name[str(q)] for q in QUANTILES if str(q) in by_name]
    for name, kept in by_name.items():
        gaps = [100 * (kept[load] - max(row[load] for row in fixed)) for load in points]
        lines.append(f"| {name} | {min(gaps):+.1f} | {sum(gaps) / len(gaps):+.1f} |")
    if HINDSIGHT in by_name and "weighed" in by_name:
        weighed, best = by_name["weighed"], by_name[HINDSIGHT]
        lead = min(100 * (weighed[load] - best[load]) for load in points)
        lines += ["", f"Weighed against stock in hindsight: at worst {lead:+.1f} points."]
    return "\n".join(lines)


@click.command()
@click.option("--requests", default=250, show_default=True)
@click.option("--seeds", default=5, show_default=True)
@click.option("--stock-seeds", default=5, show_default=True, help="0 leaves stock vLLM out.")
@click.option("--workers", default=None, type=int)
@click.option("--only", default="", help="Only these contenders, such as weighed,0.5.")
@click.option("--workload", default="", help="Only this one; the table is shown, not written.")
def main(
    requests: int, seeds: int, stock_seeds: int, workers: int | None, only: str, workload: str
) -> None:
    """Run what is missing and write the table."""
    loads = {w: rates for w, rates in LOADS.items() if workload in ("", w)}
    fixed = {str(q): {"confidence": q, "swap": "cheaper"} for q in QUANTILES}
    contenders: dict[str, dict] = {"weighed": {}, **fixed}
    if only:
        contenders = {name: contenders[name] for name in only.split(",")}
    ledger = FinishedRuns(HERE / "results.part")
    specs = {
        (name, source, rate, seed): spec(source, rate, seed, requests, options)
        for name, options in contenders.items()
        for source, rates in loads.items()
        for rate in rates
        for seed in range(seeds)
    }
    runs = run_all(specs.values(), ledger, workers)
    groups: dict[tuple[str, str, float], list[Run]] = {}
    for (name, source, rate, _), one in specs.items():
        groups.setdefault((name, source, rate), []).append(runs[one.key()])
    if stock_seeds:
        for source, rates in loads.items():
            base = replace(spec(source, rates[0], 0, requests, {}), policy="stock", engine="vllm")
            tried = stock.sweep(
                base, rates, range(stock_seeds), lambda some: run_all(some, ledger, workers)
            )
            for run in tried.as_policy(HINDSIGHT):
                groups.setdefault((HINDSIGHT, source, run["rate_rps"]), []).append(run)
    cells = [cell(source, rate, name, some) for (name, source, rate), some in groups.items()]
    text = table(cells, loads) + "\n\n" + verdict(cells, loads) + "\n"
    click.echo(text)
    if workload:
        return
    document = {"schema": 1, "requests": requests, "cells": [asdict(c) for c in cells]}
    (HERE / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    (HERE / "results.md").write_text(text)


if __name__ == "__main__":
    main()
