"""What a finished board says: a table a ground, and the verdicts on the default policy.

``python experiments/scoreboard/read.py`` writes results.md, and README's table, from results.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from headway.study.highest_rate import crossing

OURS = ("headway", "slack")
"""The default policy, and its predecessor: the same with a fixed quantile of the lengths."""

MARKS = ("<!-- scoreboard -->", "<!-- /scoreboard -->")
STOCK = ("stock", "stock-static", "stock-hindsight")


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
        " | capacity at 90 % against hindsight, static, stock | worst against the best rival"
        " | mean of it above 1 × |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for ground, overload in played:
        here = [row for row in rows if (row.ground, row.overload) == (ground, overload)]
        lines.append(f"| {ground} | {overload} | " + " | ".join(_verdict(here)) + " |")
    return lines


def _verdict(rows: Sequence[Row]) -> list[str]:
    kept = kept_by(whole(rows))
    ours, stock = kept[OURS[0]], best_of_stock(kept)
    rivals = {name: row for name, row in kept.items() if name not in (*OURS, *STOCK)}
    lead = {load: 100 * (ours[load] - stock[load]) for load in ours}
    rival = {x: 100 * (ours[x] - max(row[x] for row in rivals.values())) for x in ours}
    pressed = [lead[load] for load in lead if 0.5 <= stock[load] < 0.9]
    over = [rival[load] for load in rival if load > 1.0]
    mine = crossing(ours.items())
    stocks = (stock, kept["stock-static"], kept["stock"])
    times = [_times(mine, crossing(theirs.items())) for theirs in stocks]
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


def best_of_stock(kept: Kept) -> dict[float, float]:
    """Return stock's attainment by load, at each that of its best rows.

    Settings chosen in hindsight of the tuning seeds may be beaten on all seeds by another row.
    """
    return {load: max(kept[name][load] for name in STOCK) for load in kept["stock"]}


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


def readme_table(rows: Sequence[Row], load: float = 2.0) -> str:
    """Return what is kept at one load on every ground, demote mode, in whole per cent."""
    lines = [
        "| promises kept | stock vLLM, defaults | stock vLLM, best setting for the load"
        " | best published rival | Headway |",
        "|---|---|---|---|---|",
    ]
    for ground in dict.fromkeys(row.ground for row in rows if row.overload == "demote"):
        here = [row for row in rows if (row.ground, row.overload) == (ground, "demote")]
        by_load = kept_by(whole(here))
        stock = best_of_stock(by_load)[load]
        kept = {name: shares[load] for name, shares in by_load.items()}
        rivals = {name: share for name, share in kept.items() if name not in (*OURS, *STOCK)}
        best = max(rivals, key=lambda name: rivals[name])
        lines.append(
            f"| {ground} | {kept['stock']:.0%} | {stock:.0%}"
            f" | {rivals[best]:.0%} ({best}) | **{kept[OURS[0]]:.0%}** |"
        )
    return "\n".join(lines)


def write_readme(rows: Sequence[Row]) -> None:
    """Put the table between its marks in the project's README."""
    path = Path(__file__).parents[2] / "README.md"
    before, mark, rest = path.read_text(encoding="utf-8").partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    text = f"{before}{mark}\n\n{readme_table(rows)}\n\n{end}{after}"
    path.write_text(text, encoding="utf-8")


@click.command()
def main() -> None:
    """Write the tables again."""
    path = Path(__file__).parent / "results.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    rows = [Row(**row) for row in document["rows"]]
    (path.parent / "results.md").write_text(markdown(rows), encoding="utf-8")
    write_readme(rows)
    click.echo(markdown(rows))


if __name__ == "__main__":
    main()
