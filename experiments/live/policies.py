"""Question: which policy serves the demo's traffic best on the machine of a recording?

On Headway's simulator, calibrated as in narrow.py; prints a table and writes nothing.

    gunzip -k experiments/validation/recording.jsonl.gz
    python experiments/live/policies.py experiments/validation/recording.jsonl
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

import click
from narrow import base_run

from headway.study.sweep import FinishedRuns, mean_attainment, run_all

RATES_RPS = (0.4, 0.5, 0.6)


@click.command()
@click.argument("recording", type=click.Path(path_type=Path, exists=True))
@click.option("--policy", "policies", default="headway,slack", show_default=True)
@click.option("--requests", default=40, show_default=True)
@click.option("--seeds", default=8, show_default=True)
def main(recording: Path, policies: str, requests: int, seeds: int) -> None:
    """Serve the same requests by each policy."""
    with tempfile.TemporaryDirectory() as name:
        base = replace(base_run(recording, requests, seeds, Path(name)), engine="sim")
        specs = {
            (policy, rate, seed): replace(base, policy=policy).at(rate, seed)
            for policy in policies.split(",")
            for rate in RATES_RPS
            for seed in range(seeds)
        }
        runs = run_all(specs.values(), FinishedRuns())
    click.echo("policy      " + "".join(f"{rate:>8g}/s" for rate in RATES_RPS))
    for policy in policies.split(","):
        kept = [
            mean_attainment(runs[specs[policy, rate, seed].key()] for seed in range(seeds))
            for rate in RATES_RPS
        ]
        click.echo(f"{policy:12s}" + "".join(f"{value:10.3f}" for value in kept))


if __name__ == "__main__":
    main()
