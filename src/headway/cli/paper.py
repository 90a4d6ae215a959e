"""``headway paper``: the published systems' experiments, run again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from headway.cli import values
from headway.cli.run_options import seeds_of
from headway.cli.stacked import Command, stacked
from headway.cli.values import progress, save, whole
from headway.errors import UserError
from headway.metrics.define import DEFINITION
from headway.study import claims_table
from headway.study.claims import Tables, Verdict
from headway.study.experiments import ACCELGEN, CACHEOPT, Experiment
from headway.study.experiments import Table as Setup
from headway.study.gains import capacities
from headway.study.paper_grid import FIGURE, Grid, Row, mean_of, rows_of, run_grid
from headway.study.spec import RunSpec
from headway.study.sweep import FinishedRuns, Run, run_all

_SHARED = [
    click.option("--out", default="paper-out", show_default=True,
                 type=click.Path(path_type=Path), help="Folder for results and notes."),
    click.option("--requests", default="400", show_default=True, help="Requests per run."),
    click.option("--seed", "seeds", default="0,1,2,3,4", show_default=True, help="Seeds, S,S,…"),
    click.option("--tuning-seeds", help="Seeds on which stock vLLM is tuned [those of --seed]."),
    click.option("--workers", help="Parallel processes [one per core]."),
    click.option("--part", default="all", show_default=True,
                 help="Tables, separated by commas: main, ablation, sensitivity, …, or all."),
]  # fmt: skip


def _shared(command: Command) -> Command:
    return stacked(_SHARED, command)


@click.group()
def paper() -> None:
    """Run a paper's experiment: baselines, ablation, sensitivity, and a verdict on each claim."""


@paper.command()
@_shared
def cacheopt(**given: Any) -> None:
    """CacheOPT (arXiv 2503.13773): competition for KV cache, OPT-13B on an A100."""
    run_experiment(CACHEOPT, **given)


@paper.command()
@_shared
def accelgen(**given: Any) -> None:
    """AccelGen (arXiv 2503.13737): short and long prompts together, OPT-13B on an A100."""
    run_experiment(ACCELGEN, **given)


def run_experiment(
    experiment: Experiment,
    out: Path,
    requests: str,
    seeds: str,
    tuning_seeds: str | None,
    workers: str | None,
    part: str,
) -> None:
    """Run the tables of *experiment* and write ``NAME.json`` and ``NAME-runs.json`` into *out*."""
    out.mkdir(parents=True, exist_ok=True)
    console = Console()
    finished = FinishedRuns(out / f"{experiment.name}.part")
    count = whole("--requests", requests) or 400
    numbers, processes = seeds_of(seeds), whole("--workers", workers)
    tuned = seeds_of(tuning_seeds) if tuning_seeds else numbers
    every: dict[str, Run] = {}

    def run_many(specs: Sequence[RunSpec]) -> Mapping[str, Run]:
        with progress(console, experiment.name, len(specs)) as advance:
            runs = run_all(specs, finished, processes, lambda spec, run: advance())
        every.update(runs)
        return runs

    tables: dict[str, list[Row]] = {}
    for name, setup in tables_of(experiment, part).items():
        total = count * (max(numbers) + 1)
        traffic = [one.written(out, setup.machine, total) for one in setup.traffic]
        grid = run_grid(
            setup.contenders,
            traffic,
            setup.machine,
            numbers,
            count,
            run_many,
            tuned,
            setup.overload,
        )
        console.print(_table(grid, f"{experiment.name}: {name}"))
        tables[name] = rows_of(grid, experiment.claimed_figures(name))
    document: dict[str, Any] = {
        "schema": 1,
        "experiment": experiment.name,
        "definition": DEFINITION,
        "seeds": numbers,
        "num_requests": count,
        **tables,
        **_judged(experiment, tables, console),
    }
    save(out / f"{experiment.name}.json", document)
    save(out / f"{experiment.name}-runs.json", {"schema": 1, "runs": list(every.values())})
    console.print(
        f"Wrote {out}/{experiment.name}.json; headway report {out}/{experiment.name}-runs.json"
        " draws it.",
        highlight=False,
    )


def tables_of(experiment: Experiment, part: str) -> dict[str, Setup]:
    """Return the tables asked for.

    Raises:
        UserError: One of them is not known.
    """
    every = experiment.tables()
    names = list(every) if part == "all" else part.split(",")
    for name in names:
        if name not in every:
            raise UserError(f"--part {name!r:.40} is not known; it can be all, {', '.join(every)}.")
    return {name: every[name] for name in names}


def _judged(experiment: Experiment, tables: Tables, console: Console) -> dict[str, Any]:
    """Print the verdicts on the claims, or why there are none; return them for the document."""
    if "main" not in tables:
        console.print("No verdict on the claims: they need the table main, which was not run.")
        return {}
    found = experiment.verdicts(tables)
    console.print(_claims_table(found, experiment))
    return {
        "claims": [verdict.document() for verdict in found],
        "capacity_at_90": _capacities(tables["main"]),
    }


def _capacities(rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    return {
        workload: {policy: score.mean for policy, score in here.items()}
        for (workload, _), here in capacities(rows).items()
    }


def _table(grid: Grid, title: str) -> Table:
    right = ("rate", "kept", "spread", "TTFT p95", "gap p95", "preempted")
    table = values.table(title, ("workload", "policy"), right)
    for (label, workload, rate), runs in sorted(grid.items(), key=lambda i: (i[0][1], i[0][2])):
        kept = [run["attainment"] or 0.0 for run in runs]
        table.add_row(
            workload,
            label,
            f"{rate:g}/s",
            f"{sum(kept) / len(kept):.1%}",
            f"{min(kept):.0%}–{max(kept):.0%}",
            f"{mean_of(runs, FIGURE['TTFT p95']) or 0:.2f} s",
            f"{1000 * (mean_of(runs, FIGURE['gap p95']) or 0):.0f} ms",
            f"{sum(sum(r['preemptions'].values()) for r in runs) / len(runs):.0f}",
        )
    return table


def _claims_table(found: Sequence[Verdict], experiment: Experiment) -> Table:
    title = f"What the paper of {experiment.name} claims, each at the load of the largest gain"
    table = values.table(title, claims_table.HEAD, ())
    for row in claims_table.cells(found):
        table.add_row(*row)
    return table
