"""``headway replay``: what another policy, cache or GPU would have made of a recorded run."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from headway.cli.run_options import (
    bands_of,
    policies_of,
    progress,
    run_options,
    save,
    seeds_of,
    spec_of,
    whole,
    writable,
)
from headway.cli.simulate import table_of, title_of
from headway.errors import UserError
from headway.study import recorded
from headway.study.spec import STOCK, STOCK_WAYS
from headway.study.sweep import Ledger, run_all


@click.command()
@click.argument("recording", type=click.Path(path_type=Path))
@run_options
@click.option("--keep", type=click.Path(path_type=Path), help="Folder for whole runs, to report.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Summaries as JSON.")
def replay(recording: Path, keep: Path | None, json_path: Path | None, **given: Any) -> None:
    """Serve the requests of RECORDING again, at their own times, under other decisions.

    RECORDING is what a server writes with "record" among its Headway settings, or a run that
    simulate --keep wrote. Give --gpu a profile that headway calibrate made from the same
    recording to stay on the same machine.
    """
    for flag in ("trace", "workload", "slo", "requests", "arrivals"):
        if given[flag] is not None:
            raise UserError(f"--{flag} makes no sense here: the recording says all of it.")
    found = recorded.read(recording)
    writable(json_path, keep)
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        given["trace"] = str(found.save(Path(folder)))
        slo_file = Path(folder) / "classes.toml"
        slo_file.write_text(recorded.classes_toml(found.requests), encoding="utf-8")
        given["slo"] = str(slo_file)
        base = spec_of(given)
        policies = policies_of(given["policy"], base.engine, base.overload, dict(base.options))
        tuned = [policy for policy in policies if policy in STOCK_WAYS[1:]]
        if tuned:
            raise UserError(f"{tuned[0]} is a sweep; convert the recording and use simulate.")
        specs = [
            replace(band, policy=policy, options={} if policy == STOCK else band.options).at(
                None, seed
            )
            for band in bands_of(base, given["step_time_band"])
            for policy in policies
            for seed in seeds_of(given["seeds"])
        ]
        if keep is not None:
            keep.mkdir(exist_ok=True)
        workers = whole("--workers", given["workers"])
        with progress(console, "replay", len(specs)) as advance:
            done = run_all(specs, Ledger(keep=keep), workers, lambda spec, run: advance())
    runs = list(done.values())
    shown = replace(base, load=replace(base.load, source=str(recording)))
    console.print(table_of(runs, title_of(shown)))
    if found.num_guessed:
        console.print(
            f"{found.num_guessed} of {len(found.requests)} requests did not run to their end in the"
            " recording; they were given the median length of their class."
        )
    if json_path is not None:
        save(json_path, {"schema": 1, "runs": runs})
