"""Question: does a class below its target get more, as long as there is more to get?

Mixes of two and three classes on an 8B (virtual H100, 5 % noise) with and without targets; judged
are the requests after the 300th. Whether all targets can be kept at all is asked of the bound, on
the same load without noise. Writes results.json beside itself, one row at a time; what is there is
not run again. table.py makes results.md from it.

    python experiments/targets/run.py                       # half an hour of one core
    python experiments/targets/run.py --only "kept|mixed" --seeds 1
    python experiments/targets/run.py --dry --quick         # a tenth of the requests
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from aimed_loads import GPU, MIXES, NUM_LEARNING, NUM_REQUESTS, RATES, kept, made, served, slo_text

from headway.latency import profile
from headway.oracle.bound import can_keep
from headway.policy import targets as core
from headway.slo import Slo, SloBook
from headway.study.named_rows import Task, measure_missing
from headway.workloads import named
from headway.workloads.schema import WorkloadRequest, slo_of

HERE = Path(__file__).parent

AIMS: dict[str, tuple[dict[str, float], ...]] = {
    "mixed": ({"chat": 0.95, "code": 0.95}, {"chat": 0.9, "code": 0.9, "summary": 0.9}),
    "chat and retrieval": (
        {"chat": 0.9, "retrieval": 0.9},
        {"chat": 0.95, "retrieval": 0.95},
    ),
    "code and summary": ({"code": 0.9, "summary": 0.9}, {"code": 0.95, "summary": 0.95}),
}
"""Targets by class."""

WEIGHED: dict[str, tuple[float, str]] = {
    "mixed": (48.0, "code"),
    "chat and retrieval": (28.0, "retrieval"),
}
"""Where a class weighs twice as much, and which: the highest rate, where targets are missed."""

CONSTANTS = {
    "ASCENT": (0.03, 0.1, 1.0),
    "FORGET": (0.003, 0.03),
    "MOST_TIMES": (4.0, 64.0),
}
"""What each constant of policy/targets.py is tried at, beside what it is."""

VARIED: dict[tuple[str, float], dict[str, float]] = {
    ("mixed", 28.0): AIMS["mixed"][1],
    ("mixed", 48.0): AIMS["mixed"][1],
}
"""Loads and targets of the constants."""


def shown(targets: Mapping[str, float], weights: Mapping[str, float]) -> str:
    """Return a name of targets and weights, as in ``chat 0.95, code 0.95 x 2``."""
    parts = (
        f"{c} {t:g}" + (f" x {weights[c]:g}" if c in weights else "") for c, t in targets.items()
    )
    return ", ".join(parts) or "none"


@contextmanager
def multipliers() -> Iterator[list[dict[str, float]]]:
    """Collect the multipliers of each group whenever a promise has ended."""
    found: list[dict[str, float]] = []
    ended = core.Targets.ended

    def noting(self: core.Targets, slo: Slo, *, is_kept: bool) -> None:
        ended(self, slo, is_kept=is_kept)
        found.append(dict(self.times))

    core.Targets.ended = noting  # type: ignore[method-assign]
    try:
        yield found
    finally:
        core.Targets.ended = ended  # type: ignore[method-assign]


def measure(
    mix: str,
    rate_rps: float,
    targets: Mapping[str, float],
    weights: Mapping[str, float],
    seed: int,
    num: int,
) -> dict[str, Any]:
    """Return what is kept of each class, and how far multipliers swing in the last half."""
    requests = made(mix, rate_rps, seed, num)
    with multipliers() as found:
        records = served(requests, slo_text(targets, weights), seed)
    late = records[num * NUM_LEARNING // NUM_REQUESTS :]
    half = found[len(found) // 2 :]
    return {
        "kept": {part.slo_class: kept(late, part.slo_class) for part in MIXES[mix]},
        "all": kept(late),
        "whole": kept(records),
        "times": {name: _spread(half, f"class {name}") for name in targets},
        "can_keep": _can_keep(requests, targets) if targets else None,
    }


def _spread(found: list[dict[str, float]], group: str) -> tuple[float, float]:
    times = [one.get(group, 1.0) for one in found]
    return round(min(times), 2), round(max(times), 2)


def _can_keep(requests: list[WorkloadRequest], targets: Mapping[str, float]) -> bool:
    gpu = profile.load(GPU)
    book = SloBook.load(named.SLO_FILE)
    slos = {r.id: slo_of(r, book) for r in requests}
    machine = (gpu.cost, gpu.kv_capacity_tokens, gpu.max_num_batched_tokens)
    return can_keep(requests, slos, targets, *machine)


def varied(name: str, value: float, *args: Any) -> dict[str, Any]:
    """Return :func:`measure` with a constant changed."""
    before = getattr(core, name)
    setattr(core, name, value)
    try:
        return measure(*args)
    finally:
        setattr(core, name, before)


def tasks(seeds: int, num: int) -> Iterator[Task]:
    """Yield the name of each row and what makes it."""
    for seed in range(seeds):
        for mix, rates in RATES.items():
            for rate in rates:
                ways: list[tuple[dict[str, float], dict[str, float]]] = [({}, {})]
                ways += [(targets, {}) for targets in AIMS[mix]]
                if mix in WEIGHED and WEIGHED[mix][0] == rate:
                    ways.append((AIMS[mix][1], {WEIGHED[mix][1]: 2.0}))
                for targets, weights in ways:
                    key = f"kept|{mix}|{rate:g}|{shown(targets, weights)}|{seed}"
                    yield key, measure, (mix, rate, targets, weights, seed, num)
    for seed in range(min(seeds, 2)):
        for (mix, rate), targets in VARIED.items():
            for name, values in CONSTANTS.items():
                for value in values:
                    args: tuple[Any, ...] = (name, value, mix, rate, targets, {}, seed, num)
                    yield f"constant|{name} = {value:g}|{mix}|{rate:g}|{seed}", varied, args


@click.command()
@click.option("--only", default="", help="Rows whose name holds this.")
@click.option("--seeds", default=5, show_default=True)
@click.option("--quick", is_flag=True, help="A tenth of the requests; goes with --dry.")
@click.option("--dry", is_flag=True, help="Write nothing.")
def main(only: str, seeds: int, quick: bool, dry: bool) -> None:
    """Run what is not in the file yet."""
    if quick and not dry:
        raise click.UsageError("--quick measures too little to be kept; add --dry.")
    rows = tasks(seeds, NUM_REQUESTS // 10 if quick else NUM_REQUESTS)
    measure_missing(HERE / "results.json", rows, click.echo, only, is_kept=not dry)


if __name__ == "__main__":
    main()
