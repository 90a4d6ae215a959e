"""Question: do the first hundred requests fare worse than the next, before anything is learned?

    python experiments/scoreboard/cold_start.py --traces FOLDER

Prints what the default policy kept of each hundred, mean of the seeds; writes nothing.
"""

from __future__ import annotations

from pathlib import Path

import click
from grounds import TRACES, grounds, unit_rps

from headway import registry
from headway.study.paper_grid import NamedPolicy
from headway.study.spec import RunSpec
from headway.study.sweep import FinishedRuns, in_parallel, run_all
from headway.study.virtual_run import execute

LOADS = (0.5, 1.0, 1.5)


def kept_by_hundred(spec: RunSpec) -> list[int]:
    """Return how many of each hundred requests, by arrival, had their promise kept."""
    records = sorted(execute(spec).records, key=lambda record: record.arrived_at_s)
    kept = [record.attained for record in records]
    return [sum(kept[at : at + 100]) for at in range(0, len(kept), 100)]


@click.command()
@click.option("--traces", default=TRACES, type=click.Path(path_type=Path))
@click.option("--seeds", default=5, show_default=True)
@click.option("--ground", "wanted", default="KV short", show_default=True)
@click.option("--workers", default=None, type=int)
def main(traces: Path, seeds: int, wanted: str, workers: int | None) -> None:
    """Play 400 requests and compare each hundred with the next."""
    ours, ledger = NamedPolicy("ours", registry.DEFAULT), FinishedRuns()
    for ground in grounds(traces):
        if wanted not in ground.name:
            continue
        unit = unit_rps(ground, 200, range(seeds), lambda specs: run_all(specs, ledger, 1))
        base = ground.run_of(ours, 400, "demote")
        for load in LOADS:
            specs = [base.at(round(load * unit, 3), seed) for seed in range(seeds)]
            tasks = [(kept_by_hundred, (spec,)) for spec in specs]
            rows = in_parallel(tasks, workers, lambda i, row: None, "sim")
            means = [f"{sum(column) / seeds:.1f}" for column in zip(*rows, strict=True)]
            click.echo(f"{ground.name}, {load:g} ×: {', '.join(means)}")


if __name__ == "__main__":
    main()
