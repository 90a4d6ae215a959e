"""Question: how far is the default policy from one that knows the future, and from the bound?

    python experiments/scoreboard/oracle.py --traces FOLDER --seeds 2 --requests 100

Every preset, the oracle and the bound side by side. No noise in step times and no ground with
prefix caching, since the bound holds without. The oracle is passed by no preset, on no instance (a
ground at one load with one seed), and passes no bound: either ends the run with the instance's
name. A stopped run goes on: what is done is in oracle.part, which goes when all is done. Writes
oracle.json and oracle.md beside itself.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import click
from grounds import TRACES, Ground, grounds, unit_rps

from headway import registry
from headway.errors import HeadwayError
from headway.study.bounds import bound_of
from headway.study.on_oracle import ORACLE
from headway.study.requests import requests_of
from headway.study.spec import RunSpec
from headway.study.sweep import FinishedRuns, Run, in_parallel, mean_attainment, run_all

HERE = Path(__file__).parent
LOADS = (1.0, 2.0, 3.0)

TIGHT_OUTPUT_TOKENS = 200.0
"""With the whole cache and a mean output below this the bound is called tight: what it ignores, KV
held between steps and pauses that long streams may make, matters little there."""


@dataclass(frozen=True, slots=True)
class Row:
    """A ground at one load: shares of the promises kept and the goodput, means of the seeds.

    Attributes:
        best: The preset that kept the most.
        is_tight: See :data:`TIGHT_OUTPUT_TOKENS`.
    """

    ground: str
    load: float
    rate_rps: float
    mean_output_tokens: float
    is_tight: bool
    ours: float
    best: str
    best_kept: float
    oracle: float
    bound: float
    our_goodput_rps: float
    oracle_goodput_rps: float

    @property
    def gap(self) -> float:
        """How far the oracle is below the bound, as a share of the bound."""
        return 1.0 - self.oracle / self.bound if self.bound else 0.0


HEAD = (
    "| ground | load | {ours} | best preset | oracle | bound | oracle below bound"
    " | goodput of the oracle's |\n|---|---:|---:|---|---:|---:|---:|---:|"
)


def markdown(rows: Sequence[Row]) -> str:
    """Return one table, and what is to be read from it."""
    lines = [HEAD.format(ours=f"`{registry.DEFAULT}`")]
    lines += [
        f"| {r.ground} | {r.load:g} × | {r.ours:.3f} | {r.best_kept:.3f} `{r.best}`"
        f" | {r.oracle:.3f} | {r.bound:.3f} | {r.gap:.1%}{' tight' if r.is_tight else ''}"
        f" | {r.our_goodput_rps / r.oracle_goodput_rps:.1%} |"
        for r in rows
    ]
    tight = [r for r in rows if r.is_tight]
    far = [f"{r.ground} {r.load:g} × ({r.gap:.1%})" for r in tight if r.gap > 0.03]
    lines += [
        "",
        f"*tight*: the whole cache, and a mean output below {TIGHT_OUTPUT_TOKENS:g} tokens."
        f" Of {len(tight)} such rows the oracle is more than 3 % below the bound in {len(far)}"
        f"{': ' + ', '.join(far) if far else ''}.",
    ]
    return "\n".join(lines) + "\n"


def row_of(
    ground: Ground,
    load: float,
    specs: Mapping[tuple[str, int], RunSpec],
    runs: Mapping[str, Run],
    bounds: Sequence[float],
) -> Row:
    """Return the row of one load.

    Args:
        specs: By policy and seed.
        runs: By key.
        bounds: By seed.

    Raises:
        HeadwayError: A preset keeps more than the oracle, or the oracle more than the bound.
    """
    seeds = range(len(bounds))
    found = {who: runs[spec.key()] for who, spec in specs.items()}
    for (policy, seed), run in found.items():
        oracle, kept = found[ORACLE, seed]["attainment"], run["attainment"]
        where = f"on {ground.name} at {load:g} x, seed {seed}"
        if kept > oracle:
            raise HeadwayError(f"{policy} keeps {kept:.3f} {where}, the oracle {oracle:.3f}.")
        if oracle > bounds[seed] + 1e-9:
            raise HeadwayError(f"The oracle keeps {oracle:.3f} {where}, bound {bounds[seed]:.3f}.")
    kept = {
        name: mean_attainment(found[name, seed] for seed in seeds)
        for name in (*registry.names(), ORACLE)
    }
    goodput_rps = {
        name: sum(found[name, seed]["goodput_rps"] for seed in seeds) / len(bounds)
        for name in (registry.DEFAULT, ORACLE)
    }
    best = max(registry.names(), key=lambda name: (kept[name], name == registry.DEFAULT))
    spec = specs[ORACLE, 0]
    lengths = [r.num_output_tokens for seed in seeds for r in requests_of(specs[ORACLE, seed].load)]
    mean_tokens = sum(lengths) / len(lengths)
    is_tight = ground.machine.kv_tokens is None and mean_tokens < TIGHT_OUTPUT_TOKENS
    return Row(
        ground=ground.name,
        load=load,
        rate_rps=spec.load.rate_rps or 0.0,
        mean_output_tokens=round(mean_tokens, 1),
        is_tight=is_tight,
        ours=kept[registry.DEFAULT],
        best=best,
        best_kept=kept[best],
        oracle=kept[ORACLE],
        bound=sum(bounds) / len(bounds),
        our_goodput_rps=goodput_rps[registry.DEFAULT],
        oracle_goodput_rps=goodput_rps[ORACLE],
    )


@click.command()
@click.option("--traces", default=TRACES, type=click.Path(path_type=Path))
@click.option("--seeds", default=3, show_default=True)
@click.option("--requests", default=150, show_default=True)
@click.option("--ground", "wanted", default="", help="Only those whose name holds one of A;B;….")
@click.option("--out", default=HERE, type=click.Path(path_type=Path, file_okay=False))
@click.option("--workers", default=None, type=int)
def main(
    traces: Path, seeds: int, requests: int, wanted: str, out: Path, workers: int | None
) -> None:
    """Play every preset and the oracle, and solve for the bound."""
    ledger, rows = FinishedRuns(out / "oracle.part"), []
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
                for policy in (*registry.names(), ORACLE)
                for seed in range(seeds)
            }
            runs = run_all(specs.values(), ledger, workers)
            tasks = [(bound_of, (specs[ORACLE, seed],)) for seed in range(seeds)]
            bounds = in_parallel(tasks, workers, lambda i, value: None, "sim")
            rows.append(row_of(ground, times, specs, runs, bounds))
            click.echo(markdown(rows[-1:]).splitlines()[2])
            document = {"schema": 2, "requests": requests, "rows": [asdict(row) for row in rows]}
            (out / "oracle.json").write_text(json.dumps(document, indent=1) + "\n")
            (out / "oracle.md").write_text(markdown(rows))
    ledger.close()


if __name__ == "__main__":
    main()
