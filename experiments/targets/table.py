"""Write results.md from results.json and before.json: what each class keeps, with and without."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from headway.study.named_rows import Rows, by_case

HERE = Path(__file__).parent
WITHIN = 0.02
"""How far below its target a class may be where all targets can be kept."""


def targets_in(label: str) -> dict[str, tuple[float, float]]:
    """Return target and weight by class, from a name as in ``chat 0.95, code 0.95 x 2``."""
    found: dict[str, tuple[float, float]] = {}
    for part in label.split(", ") if label != "none" else ():
        name, target, *weight = part.split(" ")
        found[name] = (float(target), float(weight[1]) if weight else 1.0)
    return found


def mean(rows: Sequence[Rows], *names: str) -> float:
    """Return the mean over seeds of a figure, which may lie deeper."""
    values = []
    for row in rows:
        value: Any = row
        for name in names:
            value = value[name]
        values.append(value)
    return float(np.mean(values))


def classes_cell(rows: Sequence[Rows], targets: Mapping[str, tuple[float, float]]) -> str:
    """Return what each class keeps; bold where a target is missed by more than allowed."""
    cells = []
    for name in rows[0]["kept"]:
        share = mean(rows, "kept", name)
        is_missed = name in targets and share < targets[name][0] - WITHIN
        cells.append(f"{name} **{share:.3f}**" if is_missed else f"{name} {share:.3f}")
    return ", ".join(cells)


def swing(rows: Sequence[Rows]) -> str:
    """Return the least and the largest multiplier over the last half, means of the seeds."""
    cells = []
    for name in rows[0]["times"]:
        low, high = (float(np.mean([row["times"][name][k] for row in rows])) for k in (0, 1))
        cells.append(f"{name} {low:.1f} to {high:.1f}")
    return ", ".join(cells)


def with_targets(rows: Rows) -> Iterator[str]:
    """Yield a line a load and targets, and how often targets that can be kept are."""
    yield "| load | targets | can be kept | seeds | without | with | all, points | multipliers |"
    yield "|---|---|---:|---:|---|---|---:|---|"
    found = by_case(rows, "kept")
    judged: list[bool] = []
    for (mix, rate, label), by_seed in found.items():
        targets = targets_in(label)
        seeds = [seed for seed in by_seed if seed in found[mix, rate, "none"]]
        if not targets or not seeds:
            continue
        on = [by_seed[seed] for seed in seeds]
        off = [found[mix, rate, "none"][seed] for seed in seeds]
        can = sum(row["can_keep"] for row in on)
        if can == len(on):
            judged += [mean(on, "kept", c) >= t - WITHIN for c, (t, _) in targets.items()]
        change = 100 * (mean(on, "all") - mean(off, "all"))
        yield (
            f"| {mix} {rate}/s | {label} | {can} of {len(on)} | {len(on)} | {classes_cell(off, {})}"
            f" | {classes_cell(on, targets)} | {change:+.1f} | {swing(on)} |"
        )
    yield ""
    yield (
        f"{len(judged)} targets that the bound does not exclude, {judged.count(False)} missed by"
        f" more than {100 * WITHIN:.0f} points (bold)."
    )
    yield ""


def by_weight(rows: Rows) -> Iterator[str]:
    """Yield shortfalls with equal weights, and with one class's doubled."""
    yield "## Shortfalls where one class weighs twice as much, points"
    yield ""
    yield "| load | targets | " + "weights 1 | one weighs 2 |"
    yield "|---|---|---|---|"
    found = by_case(rows, "kept")
    for (mix, rate, label), by_seed in found.items():
        targets = targets_in(label)
        if all(weight == 1.0 for _, weight in targets.values()):
            continue
        plain = found[mix, rate, ", ".join(f"{c} {t:g}" for c, (t, _) in targets.items())]
        cells = []
        for one in (plain, by_seed):
            short = {c: 100 * (t - mean(list(one.values()), "kept", c)) for c, (t, _) in targets.items()}  # fmt: skip  # noqa: E501
            cells.append(", ".join(f"{c} {value:.1f}" for c, value in short.items()))
        yield f"| {mix} {rate}/s | {label} | " + " | ".join(cells) + " |"
    yield ""


def against_before(rows: Rows, before: Rows) -> Iterator[str]:
    """Yield what is kept without targets, beside the tree that knew none."""
    keys = [key for key in before if key in rows]
    apart = [100 * abs(rows[key]["whole"] - before[key]["whole"]) for key in keys]
    if keys:
        yield (
            f"Without targets, against the tree before: {len(keys)} runs, all promises of a run at"
            f" most {max(apart):.2f} points apart."
        )
        yield ""


def constants(rows: Rows) -> Iterator[str]:
    """Yield what each constant changes."""
    yield "## Constants"
    yield ""
    yield "| constant | load | seeds | kept | all | multipliers |"
    yield "|---|---|---:|---|---:|---|"
    tried = by_case(rows, "constant")
    for mix, rate in dict.fromkeys((mix, rate) for _, mix, rate in tried):
        label = max((la for m, r, la in by_case(rows, "kept") if (m, r) == (mix, rate)
                     and " x " not in la), key=len)  # fmt: skip
        targets = targets_in(label)
        now = by_case(rows, "kept")[mix, rate, label]
        for name, *where in [("as they are", mix, rate), *tried]:
            if where != [mix, rate]:
                continue
            found = list((tried[name, mix, rate] if name != "as they are" else now).items())
            some = [row for seed, row in found if int(seed) < 2]
            yield (
                f"| {name} | {mix} {rate}/s | {len(some)} | {classes_cell(some, targets)}"
                f" | {mean(some, 'all'):.3f} | {swing(some)} |"
            )
    yield ""


def main() -> None:
    """Write the tables."""
    rows = json.loads((HERE / "results.json").read_text("utf-8"))
    path = HERE / "before.json"
    before = json.loads(path.read_text("utf-8")) if path.exists() else {}
    lines = [
        *with_targets(rows),
        *by_weight(rows),
        *against_before(rows, before),
        *constants(rows),
    ]
    (HERE / "results.md").write_text("\n".join(lines), "utf-8")


if __name__ == "__main__":
    main()
