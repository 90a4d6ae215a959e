"""What a finished board says: a table a ground, and the verdicts on the default policy.

python experiments/scoreboard/read.py        # results.json again as tables
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import click

OURS, HINDSIGHT = "headway", "stock-hindsight"
OURS_TOO = ("slack",)
"""No rival: the default policy with a fixed quantile of the lengths, its predecessor."""
STOCK = ("stock", "stock-static", HINDSIGHT)


@dataclass(frozen=True, slots=True)
class Row:
    """A contender at a load of a ground; ``attainment`` is the mean over seeds."""

    ground: str
    overload: str
    unit_rps: float
    load: float
    policy: str
    attainment: float
    per_seed: list[float]
    goodput_rps: float
    settings: list[str]


Kept = dict[str, dict[float, float]]
"""Attainment by contender and load."""


def markdown(rows: Sequence[Row]) -> str:
    """Return the verdicts, then a table a ground."""
    played = list(dict.fromkeys((row.ground, row.overload) for row in rows))
    parts = ["## Headway against each", "", *_verdicts(rows, played), ""]
    for ground, overload in played:
        here = [row for row in rows if (row.ground, row.overload) == (ground, overload)]
        parts += [f"### {ground}, {overload}", "", *_table(here), ""]
    return "\n".join(parts)


def _verdicts(rows: Sequence[Row], played: Sequence[tuple[str, str]]) -> list[str]:
    lines = [
        "| ground | | worst against stock in hindsight | mean of it where that keeps 50 to 90 %"
        " | capacity at 90 % against hindsight, static, stock | worst against the best preset"
        " | mean of it above the unit |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for ground, overload in played:
        here = [row for row in rows if (row.ground, row.overload) == (ground, overload)]
        lines.append(f"| {ground} | {overload} | " + " | ".join(_verdict(here)) + " |")
    return lines


def _verdict(rows: Sequence[Row]) -> list[str]:
    kept = kept_by(whole(rows))
    ours, stock = kept[OURS], kept[HINDSIGHT]
    rivals = {name: row for name, row in kept.items() if name not in (*OURS_TOO, OURS, *STOCK)}
    lead = {load: 100 * (ours[load] - stock[load]) for load in ours}
    rival = {x: 100 * (ours[x] - max(row[x] for row in rivals.values())) for x in ours}
    pressed = [lead[load] for load in lead if 0.5 <= stock[load] < 0.9]
    over = [rival[load] for load in rival if load > 1.0]
    mine = capacity(ours)
    times = [_times(mine, capacity(kept[name])) for name in reversed(STOCK)]
    return [
        f"{min(lead.values()):+.1f}",
        f"{sum(pressed) / len(pressed):+.1f}" if pressed else "–",
        ", ".join(times),
        f"{min(rival.values()):+.1f}",
        f"{sum(over) / len(over):+.1f}",
    ]


def _times(mine: float, theirs: float) -> str:
    return f"{mine / theirs:.2f} ×" if theirs else "–"


def whole(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of contenders that were played on all seeds."""
    most = max(len(row.per_seed) for row in rows)
    return [row for row in rows if len(row.per_seed) == most]


def kept_by(rows: Sequence[Row]) -> Kept:
    """Return attainment by contender and load."""
    kept: Kept = {}
    for row in rows:
        kept.setdefault(row.policy, {})[row.load] = row.attainment
    return kept


def capacity(kept: Mapping[float, float], target: float = 0.9) -> float:
    """Return the load at which *target* is kept, linear between those played.

    0 when the lowest already misses it; the highest when all keep it, a lower bound then.
    """
    points = sorted(kept.items())
    if points[0][1] < target:
        return 0.0
    for (load, share), (next_load, next_share) in pairwise(points):
        if next_share < target:
            return load + (share - target) / (share - next_share) * (next_load - load)
    return points[-1][0]


def _table(rows: Sequence[Row]) -> list[str]:
    loads = sorted({row.load for row in rows})
    most = max(len(row.per_seed) for row in rows)
    lines = [
        f"1 × is {rows[0].unit_rps:g} requests/s. Mean of the seeds (least to most); * where only"
        " the tuning seeds were played.",
        "",
        "| policy | " + " | ".join(f"{load:g} ×" for load in loads) + " |",
        "|---|" + "---:|" * len(loads),
    ]
    by_name: dict[str, dict[float, Row]] = {}
    for row in rows:
        by_name.setdefault(row.policy, {})[row.load] = row
    for name, cells in sorted(by_name.items(), key=_order):
        mark = "" if len(cells[loads[0]].per_seed) == most else " *"
        lines.append(f"| {name}{mark} | " + " | ".join(_cell(cells[x]) for x in loads) + " |")
    return lines


def _order(item: tuple[str, Mapping[float, Row]]) -> tuple[bool, float]:
    name, cells = item
    return name not in STOCK, -sum(row.attainment for row in cells.values())


def _cell(row: Row) -> str:
    low, high = min(row.per_seed), max(row.per_seed)
    return f"{row.attainment:.3f} ({low:.2f}–{high:.2f})"


@click.command()
def main() -> None:
    """Show the results again."""
    path = Path(__file__).parent / "results.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    click.echo(markdown([Row(**row) for row in document["rows"]]))


if __name__ == "__main__":
    main()
