"""Question: how often does a step last longer than the policy said 99 in 100 would?

Every profile, 10 % noise in single steps, and the same with steps half as long again from the
middle on: the share of steps longer than promised before the jump, in the 200 steps after it, and
from then on. Writes results.json and results.md beside itself. With --recording FILE the steps of
a live server are judged instead, and nothing is written.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click

from headway import registry
from headway.engines.sim.run import SimRun
from headway.latency import profile as profiles
from headway.latency.model import StepShape
from headway.latency.online import OnlineModel
from headway.latency.truth import Drift, Truth
from headway.policy.events import Event, StepDone
from headway.policy.plan import StepPlan
from headway.policy.view import EngineView
from headway.study.history import History
from headway.study.on_sim import engine_of
from headway.study.requests import book_of, calls_of, requests_of
from headway.study.spec import Load, Machine
from headway.study.sweep import in_parallel
from headway.workloads.record_files import rows, run_of

HERE = Path(__file__).parent
SETTLE_STEPS = 200
"""Steps after the start, and after the jump, in which the model may still learn."""


class Watched:
    """A policy core that notes what each step was promised to take, and what it took."""

    def __init__(self, core: Any) -> None:
        self.core = core
        self.live = core.live
        self.rows: list[bool] = []
        self._promised: tuple[float, float] | None = None

    def plan(self, view: EngineView, now_s: float) -> StepPlan:
        """Plan, and remember the promise."""
        plan: StepPlan = self.core.plan(view, now_s)
        self._promised = (now_s, plan.promised_s)
        return plan

    def observe(self, event: Event) -> None:
        """Pass on; compare a finished step with its promise."""
        if isinstance(event, StepDone) and self._promised is not None:
            began_s, promised_s = self._promised
            self.rows.append(event.at_s - began_s > promised_s)
            self._promised = None
        self.core.observe(event)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.core, name)


@dataclass(frozen=True)
class Row:
    """Shares of steps longer than promised."""

    profile: str
    num_steps: int
    steady: float
    right_after_jump: float
    after_jump: float


def measure(name: str, rate_rps: float, requests: int, seed: int) -> Row:
    """Return the shares of one profile; the rate scales with what the GPU prefills."""
    profile = profiles.load(name)
    machine = Machine(name)
    load = Load("mixed", rate_rps, requests, seed)
    calls, _ = calls_of(requests_of(load), book_of(load))

    def play(drift: Drift | None) -> list[bool]:
        core = Watched(registry.build("headway"))
        truth = Truth(profile, noise=0.1, drift=drift, seed=seed)
        run = SimRun(engine_of(machine, profile), truth, core, book=book_of(load))  # type: ignore[arg-type]
        run.run(calls)
        return core.rows

    steady = play(None)
    middle = len(steady) // 2
    jumped = play(Drift("jump", 0.5, middle))
    return Row(
        name,
        len(steady),
        _share(steady[SETTLE_STEPS:]),
        _share(jumped[middle : middle + SETTLE_STEPS]),
        _share(jumped[middle + SETTLE_STEPS :]),
    )


def of_recording(path: Path) -> float:
    """Return the share of a live server's steps that were longer than a new model promised."""
    seen = History.of(rows(run_of(path))).steps.listener
    model, longer = OnlineModel(), []
    for shape, seconds in zip(seen.shapes, seen.seconds, strict=True):
        promised_s = model.predict_s(shape) * model.margin(shape.is_mixed, 0.01)
        longer.append(seconds > promised_s)
        model.observe(shape, seconds)
    return _share(longer)


def _share(rows: list[bool]) -> float:
    return sum(rows) / max(len(rows), 1)


@click.command()
@click.option("--requests", default=800, show_default=True)
@click.option("--seed", default=0, show_default=True)
@click.option("--workers", default=None, type=int)
@click.option("--recording", type=click.Path(path_type=Path, exists=True))
def main(requests: int, seed: int, workers: int | None, recording: Path | None) -> None:
    """Measure every profile, or the steps of a recording."""
    if recording is not None:
        click.echo(f"{of_recording(recording):.2%} of the steps were longer than promised.")
        return
    names = profiles.names()
    tasks = [(measure, (name, _rate_of(name), requests, seed)) for name in names]
    rows: list[Row] = in_parallel(tasks, workers, lambda i, row: click.echo(str(row)), "sim")
    lines = [
        "| profile | steps | longer than promised | 200 steps after a jump | from then on |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {r.profile} | {r.num_steps} | {r.steady:.2%} | {r.right_after_jump:.1%}"
        f" | {r.after_jump:.2%} |"
        for r in rows
    ]
    lines += ["", "Promised: 1.00 % of the steps. The first 200 steps are not counted.", ""]
    (HERE / "results.md").write_text("\n".join(lines))
    document = {"schema": 1, "requests": requests, "seed": seed, "rows": [asdict(r) for r in rows]}
    (HERE / "results.json").write_text(json.dumps(document, indent=1) + "\n")
    click.echo("\n".join(lines))


def _rate_of(name: str) -> float:
    """Return a rate that keeps this GPU busy with prompts and decodes alike."""
    profile = profiles.load(name)
    chunk = StepShape(0, 0, 32, 32 * 1000).with_chunk(512, 0)
    tokens_per_s = 512 / profile.step_s(chunk)
    return round(0.6 * tokens_per_s / 1200, 3)


if __name__ == "__main__":
    main()
