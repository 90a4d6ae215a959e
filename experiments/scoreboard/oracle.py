"""Question: how far is the default policy from one that knows the future, and from the bound?

    python experiments/scoreboard/oracle.py --traces FOLDER

The results beside it were made with ``--seeds 2 --requests 100``.

No noise in step times and no ground with prefix caching, since the bound holds without. The oracle
searches; it is no optimum. Writes oracle.json and oracle.md beside itself.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
from grounds import TRACES, grounds, unit_rps

from headway import registry
from headway.study.bounds import bound_of
from headway.study.on_oracle import ORACLE
from headway.study.spec import RunSpec
from headway.study.sweep import FinishedRuns, in_parallel, mean_attainment, run_all

HERE = Path(__file__).parent
LOADS = (1.0, 2.0, 3.0)


@dataclass(frozen=True, slots=True)
class Row:
    """What was kept and the goodput, means of the seeds."""

    ground: str
    load: float
    ours: float
    oracle: float
    bound: float
    our_goodput_rps: float
    oracle_goodput_rps: float


def markdown(rows: Sequence[Row]) -> str:
    """Return one table."""
    lines = [
        "| ground | load | kept | oracle | bound | goodput of the oracle's |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {r.ground} | {r.load:g} × | {r.ours:.3f} | {r.oracle:.3f} | {r.bound:.3f}"
        f" | {r.our_goodput_rps / r.oracle_goodput_rps:.1%} |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--traces", default=TRACES, type=click.Path(path_type=Path))
@click.option("--seeds", default=3, show_default=True)
@click.option("--requests", default=150, show_default=True)
@click.option("--ground", "wanted", default="", help="Only those whose name holds one of A;B;….")
@click.option("--workers", default=None, type=int)
def main(traces: Path, seeds: int, requests: int, wanted: str, workers: int | None) -> None:
    """Play the default policy and the oracle, and solve for the bound."""
    ledger, rows = FinishedRuns(HERE / "oracle.part"), []
    for ground in grounds(traces):
        if not any(part in ground.name for part in wanted.split(";")):
            continue
        if ground.machine.prefix_caching:
            continue
        unit = unit_rps(ground, requests, range(seeds), lambda specs: run_all(specs, ledger, 1))
        load = ground.traffic.load(requests)
        machine = replace(ground.machine, noise=0.0)
        for times in LOADS:
            specs = {
                (policy, seed): RunSpec(policy, "sim", load, machine).at(
                    round(times * unit, 3), seed
                )
                for policy in (registry.DEFAULT, ORACLE)
                for seed in range(seeds)
            }
            runs = run_all(specs.values(), ledger, workers)
            tasks = [(bound_of, (specs[ORACLE, seed],)) for seed in range(seeds)]
            bounds = in_parallel(tasks, workers, lambda i, value: None, "sim")
            ours, best = (
                [runs[specs[policy, seed].key()] for seed in range(seeds)]
                for policy in (registry.DEFAULT, ORACLE)
            )
            goodputs = [sum(run["goodput_rps"] for run in group) / seeds for group in (ours, best)]
            kept = [mean_attainment(group) for group in (ours, best)]
            rows.append(Row(ground.name, times, *kept, sum(bounds) / seeds, *goodputs))
            click.echo(markdown(rows[-1:]).splitlines()[-1])
            document = {"schema": 1, "requests": requests, "rows": [asdict(row) for row in rows]}
            (HERE / "oracle.json").write_text(json.dumps(document, indent=1) + "\n")
            (HERE / "oracle.md").write_text(markdown(rows))


if __name__ == "__main__":
    main()
