"""``headway train-predictor``: a length model from the server's own log."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from headway.cli import values
from headway.cli.values import save, say, writable, write
from headway.errors import UserError
from headway.policy.lengths import fit
from headway.policy.lengths.served import Served, served
from headway.policy.log import events_in
from headway.workloads.text_files import json_lines


@click.command("train-predictor")
@click.argument("logs", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="LOG...")
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="The model, a .json file."
)
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0, 2**31 - 1))
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Scores as JSON.")
def train_predictor(logs: tuple[Path, ...], out: Path, seed: int, json_path: Path | None) -> None:
    """Learn output lengths from LOG, a recording of a live server ("record" in its settings).

    Predicts from what is known on arrival: class, prompt length, max_tokens. Says how a model
    fitted to the first four fifths predicts the rest, next to the histogram that needs no
    training; the model in --out is fitted to all of it. Give several logs in order of time.
    """
    writable(out, json_path)
    if out.suffix != ".json":
        raise UserError(f"--out must end in .json: {out}.")
    rows = [row for log in _in_a_row(logs) for row in log]
    learned, histogram = fit.compare(rows, seed)
    whole = [row for row in rows if row.is_whole]
    model = fit.fit(whole, seed)
    scores = {
        "levels": fit.LEVELS,
        "num_requests": len(whole),
        "num_cut": len(rows) - len(whole),
        "learned": asdict(learned),
        "histogram": asdict(histogram),
    }
    model = replace(model, about={**model.about, "held_out": scores})
    write(out, model.to_json())
    save(json_path, {"schema": 1, **scores})
    console = Console()
    console.print(_table(learned, histogram))
    say(console, _sentences(learned, histogram, len(whole), len(rows), out))


def _in_a_row(logs: tuple[Path, ...]) -> Iterator[list[Served]]:
    """Yield the requests of each log; clocks of different runs are laid one behind the other."""
    now_s = 0.0
    for path in logs:
        rows = served(events_in(json_lines(path)))
        if not rows:
            raise UserError(f"{path} holds no request that came to an end.")
        shift_s = now_s - rows[0].arrived_at_s
        yield [
            replace(
                row, arrived_at_s=row.arrived_at_s + shift_s, ended_at_s=row.ended_at_s + shift_s
            )
            for row in rows
        ]
        now_s = max(row.ended_at_s for row in rows) + shift_s


def _table(learned: fit.Score, histogram: fit.Score) -> Table:
    right = ("quantile", "learned", "histogram", "learned covers", "histogram covers")
    title = "Held-out: pinball loss in tokens (lower is better), and coverage"
    table = values.table(title, (), right)
    for i, p in enumerate(fit.LEVELS):
        losses = (f"{score.pinball_tokens[i]:.1f}" for score in (learned, histogram))
        covers = (f"{score.coverage[i]:.0%}" for score in (learned, histogram))
        table.add_row(f"{p:.0%}", *losses, *covers)
    return table


def _sentences(
    learned: fit.Score, histogram: fit.Score, num_whole: int, num_rows: int, out: Path
) -> Iterator[str]:
    yield f"{out}: trained on {num_whole} outputs of {num_rows} requests."
    if num_rows > num_whole:
        yield (
            f"{num_rows - num_whole} requests were refused, failed or hung up and are left out;"
            " if the long ones hang up most, the model predicts too short."
        )
    gain = 1.0 - learned.mean_tokens / max(histogram.mean_tokens, 1e-9)
    if gain >= 0.01:
        yield f"Its loss is {gain:.0%} below the histogram's."
    else:
        yield "It does not beat the histogram, which needs no training: keep the histogram."
