"""Question: who keeps the most promises, over every trace, with and without KV pressure?

Every preset on every ground, at loads from half to three times what first come, first served
keeps with its best chunk. Stock vLLM runs by its own code; the presets run on Headway's simulator,
which schedules what vLLM's scheduler does, step for step (tests/conformance/test_two_engines.py).
Both are narrowed on the tuning seeds: all of stock's settings and all presets run there; stock's
best settings, the presets that were best at some load, and the default policy run on all seeds.

    python experiments/scoreboard/run.py --traces FOLDER
    python experiments/scoreboard/run.py --ground "mixed" --overload demote --seeds 2

The results beside it were made with ``--tuning-seeds 1 --ground
"azure-2023-code;mixed;retrieval;arxiv;sharegpt-8k;long-outputs"``.

Writes results.json and results.md beside itself, ground by ground. A ground that is in results.json
by today's definition of a kept promise is not played again; within a ground a stopped run goes on
from results.part.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
from grounds import LOADS, TRACES, Ground, everybody, grounds, unit_rps
from read import OURS, Row, load_rows, markdown
from rich.console import Console

from headway.cli.values import progress
from headway.metrics.define import DEFINITION
from headway.study.paper_grid import ATTAINMENT, Grid, NamedPolicy, mean_of, run_grid
from headway.study.spec import STOCK_WAYS, RunSpec
from headway.study.sweep import FinishedRuns, Run, run_all

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
STOCK = tuple(NamedPolicy(name, name) for name in STOCK_WAYS)
NEAR = 0.01
"""A preset this close to the best of them at a load of the tuning seeds is played in full."""


@dataclass(frozen=True, slots=True)
class Board:
    """Plays grounds, and remembers what was run."""

    seeds: Sequence[int]
    tuning_seeds: Sequence[int]
    requests: int
    workers: int | None
    ledger: FinishedRuns
    console: Console

    def run(self, specs: Sequence[RunSpec]) -> Mapping[str, Run]:
        """Run what is missing."""
        with progress(self.console, "scoreboard", len(specs)) as advance:
            return run_all(specs, self.ledger, self.workers, lambda spec, run: advance())

    def unit(self, ground: Ground) -> float:
        """Return the rate that is load 1 on a ground."""
        return unit_rps(
            ground,
            self.requests,
            self.seeds,
            lambda specs: run_all(specs, self.ledger, self.workers),
        )

    def play(self, ground: Ground, overload: str, unit: float) -> list[Row]:
        """Return a row a contender and load."""
        presets = everybody()
        rates = tuple(round(load * unit, 3) for load in LOADS)
        traffic = replace(ground.traffic, rates_rps=rates)

        def grid(contenders: Sequence[NamedPolicy], seeds: Sequence[int]) -> Grid:
            return run_grid(
                contenders,
                [traffic],
                ground.machine,
                seeds,
                self.requests,
                self.run,
                self.tuning_seeds,
                overload,
            )

        looked = grid(presets, self.tuning_seeds)
        chosen = [c for c in presets if c.policy in OURS or is_near(looked, c)]
        whole = grid([*STOCK, *chosen], self.seeds)
        return [
            Row(
                ground=ground.name,
                overload=overload,
                unit_rps=unit,
                load=LOADS[rates.index(rate)],
                policy=label,
                attainment=mean_of(runs, ATTAINMENT) or 0.0,
                per_seed=[run["attainment"] or 0.0 for run in runs],
                goodput_rps=sum(run["goodput_rps"] for run in runs) / len(runs),
                settings=sorted({run["settings"] for run in runs}),
                definition=DEFINITION,
            )
            for (label, _, rate), runs in {**looked, **whole}.items()
        ]


def is_near(grid: Grid, contender: NamedPolicy) -> bool:
    """Return whether *contender* is near the best rival at some load."""
    kept = {key: mean_of(runs, ATTAINMENT) or 0.0 for key, runs in grid.items()}
    others = [key for key in kept if key[0] not in OURS]
    return any(
        kept[key] >= max(kept[other] for other in others if other[1:] == key[1:]) - NEAR
        for key in others
        if key[0] == contender.label
    )


@click.command()
@click.option("--traces", default=TRACES, type=click.Path(path_type=Path))
@click.option("--seeds", default=5, show_default=True)
@click.option(
    "--tuning-seeds", default=2, show_default=True, help="Of them, how many to narrow on."
)
@click.option("--requests", default=200, show_default=True, help="How many a run.")
@click.option("--overload", default="demote,refuse", show_default=True)
@click.option("--ground", "wanted", default="", help="Only those whose name holds one of A;B;….")
@click.option("--workers", default=None, type=int)
def main(
    traces: Path,
    seeds: int,
    tuning_seeds: int,
    requests: int,
    overload: str,
    wanted: str,
    workers: int | None,
) -> None:
    """Play every ground and write the tables."""
    every = list(range(seeds))
    ledger = FinishedRuns(HERE / "results.part")
    board = Board(every, every[:tuning_seeds], requests, workers, ledger, Console())
    rows = load_rows(RESULTS) if RESULTS.exists() else []
    for mode in overload.split(","):
        for ground in grounds(traces):
            is_wanted = any(part in ground.name for part in wanted.split(";"))
            here = [row for row in rows if (row.ground, row.overload) == (ground.name, mode)]
            if is_wanted and not any(row.definition == DEFINITION for row in here):
                now = [r for r in rows if r.ground == ground.name and r.definition == DEFINITION]
                unit = now[0].unit_rps if now else board.unit(ground)
                played = board.play(ground, mode, unit)
                rows = [row for row in rows if row not in here] + played
                write(rows, requests)
    click.echo(markdown(rows))


def write(rows: Sequence[Row], requests: int) -> None:
    """Write what is there so far."""
    document = {
        "schema": 3,
        "requests": requests,
        "rows": [asdict(row) for row in rows],
    }
    RESULTS.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (HERE / "results.md").write_text(markdown(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
