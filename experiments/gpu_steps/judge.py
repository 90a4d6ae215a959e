"""Question: does the model of step times that a server learns hold on a real GPU's steps?

Plays the rows that measure.py wrote, in their order, to the model a server starts with: each step
is predicted, then learned. Then a profile is fitted to half of the rows and judged on the other
half. Prints both; --profile writes the profile, --json everything.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np

from headway.engines.vllm.model_roofline import roofline
from headway.errors import UserError
from headway.latency.calibration import fit_steps
from headway.latency.fit import error_of
from headway.latency.model import StepShape
from headway.latency.model_shapes import batch_defaults
from headway.latency.online import OnlineModel
from headway.latency.profile import FitError, Profile

PROMISED_LONGER = 0.01
"""Share of steps that may last longer than promised: the policy's LATE_GAPS_FORGIVEN."""
SETTLE_STEPS = 200
"""Steps after the start, and after a jump, in which the model may still learn."""
BLOCK_STEPS = 50
"""Rows alternate between fit and judge by so many: two steps in a row are nearly the same step."""
SHAPE = tuple(field.name for field in fields(StepShape))


@dataclass(frozen=True)
class Step:
    """A step that ran."""

    shape: StepShape
    seconds: float
    phase: str


@dataclass(frozen=True)
class Judged:
    """A phase of the run. Errors are |predicted / measured - 1|, of steps not yet learned.

    Attributes:
        num_judged: Steps after the first :data:`SETTLE_STEPS` of the phase; what follows is of
            these, ``None`` where there are none.
        longer: Share that lasted longer than promised.
        recovered_after: Steps of the phase until 100 in a row have no more of them than was
            promised; ``None`` if that never happened.
    """

    phase: str
    num_steps: int
    num_judged: int
    median_error: float | None
    p95_error: float | None
    longer: float | None
    longer_before: float
    recovered_after: int | None


def read(path: Path) -> tuple[dict[str, Any], list[Step]]:
    """Return the first line and the steps of a file of measure.py.

    Raises:
        UserError: It is none.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        head, *rows = [json.loads(line) for line in lines]
        if head["schema"] != 1:
            raise ValueError("schema")
        steps = [
            Step(StepShape(*(row[name] for name in SHAPE)), float(row["seconds"]), row["phase"])
            for row in rows
        ]
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}.") from None
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{path} is not a file that measure.py wrote.") from None
    return head, steps


def first_guess(head: Mapping[str, Any]) -> OnlineModel:
    """Return the model as the driver inside vLLM starts it on this machine."""
    config = SimpleNamespace(
        model_config=SimpleNamespace(
            hf_text_config=SimpleNamespace(**head["config"]),
            dtype=SimpleNamespace(itemsize=head["value_bytes"]),
        ),
        parallel_config=SimpleNamespace(tensor_parallel_size=1),
        device_config=SimpleNamespace(device_type="cpu" if head["device"] == "cpu" else "cuda"),
    )
    return OnlineModel(roofline(config))


def play(model: OnlineModel, steps: Sequence[Step]) -> tuple[np.ndarray, np.ndarray]:
    """Return each step's error, and whether it lasted longer than promised."""
    errors, longer = [], []
    for step in steps:
        predicted_s = model.predict_s(step.shape)
        promised_s = predicted_s * model.margin(step.shape.is_mixed, PROMISED_LONGER)
        errors.append(abs(predicted_s / step.seconds - 1.0))
        longer.append(step.seconds > promised_s)
        model.observe(step.shape, step.seconds)
    return np.array(errors), np.array(longer)


def recovered_after(longer: np.ndarray, window: int = 100) -> int | None:
    """Return the steps until *window* in a row have no more longer ones than were promised."""
    if len(longer) < window:
        return None
    sums = np.convolve(longer, np.ones(window), mode="valid")
    good = np.flatnonzero(sums <= PROMISED_LONGER * window)
    return int(good[0]) if len(good) else None


def judge(head: Mapping[str, Any], steps: Sequence[Step]) -> list[Judged]:
    """Return what the learned model was worth, phase by phase."""
    errors, longer = play(first_guess(head), steps)
    judged, at = [], 0
    for phase, group in groupby(steps, key=lambda step: step.phase):
        end = at + len(list(group))
        settled = slice(min(at + SETTLE_STEPS, end), end)
        some = settled.start < end
        judged.append(
            Judged(
                phase,
                end - at,
                end - settled.start,
                float(np.median(errors[settled])) if some else None,
                float(np.quantile(errors[settled], 0.95)) if some else None,
                float(longer[settled].mean()) if some else None,
                float(longer[at : settled.start].mean()),
                recovered_after(longer[at:end]),
            )
        )
        at = end
    return judged


def calibrated(head: Mapping[str, Any], steps: Sequence[Step]) -> tuple[Profile, FitError]:
    """Return a profile of half of the rows, and how far it is off on the other half.

    Rows of a slowed phase take no part: a profile is of one machine.

    Raises:
        UserError: There are too few rows.
    """
    usable = [step for step in steps if step.phase != "slow"]
    halves: tuple[list[Step], list[Step]] = ([], [])
    for number, step in enumerate(usable):
        halves[number // BLOCK_STEPS % 2].append(step)
    cost, _ = fit_steps([s.shape for s in halves[0]], [s.seconds for s in halves[0]])
    if not halves[1]:
        raise UserError(f"{len(usable)} steps are too few to judge a profile by.")
    error = error_of(cost, [s.shape for s in halves[1]], [s.seconds for s in halves[1]])
    batched, _ = batch_defaults(head["memory_bytes"], head["device"])
    layers = head["config"]["num_hidden_layers"]
    profile = Profile(
        name=f"llama-8b-shaped@{head['device'].lower().replace(' ', '-')}",
        gpu=head["device"],
        model=f"random weights, {layers} layers",
        parallelism="tp1",
        cost=cost,
        kv_bytes_per_token=head["kv_bytes_per_token"],
        kv_capacity_tokens=head["kv_tokens"],
        max_num_batched_tokens=batched,
        max_num_seqs=head["num_slots"],
        source=f"{len(halves[0])} steps of experiments/gpu_steps, torch {head['torch']}",
        assumptions=(
            f"A decoder of torch's own operators, {head['attention']} KV, not vLLM's kernels.",
            "Steps with prompts run without graphs.",
        ),
        error=error,
    )
    return profile, error


def report(head: Mapping[str, Any], judged: Sequence[Judged], error: FitError) -> str:
    """Return what is to be read, as Markdown."""

    def share(value: float | None, digits: int = 1) -> str:
        return "–" if value is None else f"{value:.{digits}%}"

    lines = [
        f"{head['device']}, torch {head['torch']}, {head['attention']} KV, {head['num_graphs']}"
        f" graphs, {head['config']['num_hidden_layers']} layers. Promised: at most"
        f" {PROMISED_LONGER:.0%} of the steps last longer.",
        "",
        "| phase | steps | median error | p95 | longer than promised"
        f" | in the first {SETTLE_STEPS} | recovered after |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for row in judged:
        after = "never" if row.recovered_after is None else f"{row.recovered_after} steps"
        lines.append(
            f"| {row.phase} | {row.num_steps} | {share(row.median_error)} | {share(row.p95_error)}"
            f" | {share(row.longer, 2)} | {share(row.longer_before)} | {after} |"
        )
    lines += [
        "",
        f"A profile of half of the rows, on {error.num_steps} others: median error"
        f" {error.median:.1%}, mean {error.mean:.1%}, p95 {error.p95:.1%}.",
    ]
    return "\n".join(lines)


@click.command()
@click.argument("steps", type=click.Path(path_type=Path))
@click.option("--profile", type=click.Path(path_type=Path), help="Write the profile here.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Everything, as JSON.")
def main(steps: Path, profile: Path | None, json_path: Path | None) -> None:
    """Judge the STEPS that measure.py wrote."""
    try:
        head, played = read(steps)
        fitted, error = calibrated(head, played)
    except UserError as mistake:
        click.echo(f"Error: {mistake}", err=True)
        sys.exit(2)
    judged = judge(head, played)
    click.echo(report(head, judged, error))
    if profile is not None:
        profile.write_text(fitted.to_json(), encoding="utf-8")
    if json_path is not None:
        document = {"schema": 1, "machine": head, "phases": [asdict(row) for row in judged],
                    "profile": asdict(fitted)}  # fmt: skip
        json_path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
