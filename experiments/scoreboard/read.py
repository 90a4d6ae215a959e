"""What a finished board says: a table a ground, and the verdicts on the default policy.

``python experiments/scoreboard/read.py`` writes results.md, README's table and its chart, from
results.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from chart import mean_line, svg

from headway.metrics.define import DEFINITION
from headway.metrics.kept import read_json
from headway.study.highest_rate import crossing

OURS = ("headway", "slack")
"""The default policy, and its predecessor: the same with a fixed quantile of the lengths."""

ROOT = Path(__file__).parents[2]
CHART = ROOT / "docs" / "assets" / "kept.svg"

MARKS = ("<!-- scoreboard -->", "<!-- /scoreboard -->")
OLDER = "Not played again yet: 99 % of the gaps in time, however long the others"
STOCK = ("stock", "stock-static", "stock-hindsight")


@dataclass(frozen=True, slots=True)
class Row:
    """A contender at a load of a ground; ``attainment`` is the mean over seeds.

    ``definition`` is the reading of a kept promise (:mod:`headway.metrics.define`).
    """

    ground: str
    overload: str
    unit_rps: float
    load: float
    policy: str
    attainment: float
    per_seed: list[float]
    goodput_rps: float
    settings: list[str]
    definition: str = "plain"


Kept = dict[str, dict[float, float]]
"""Attainment by contender and load."""


def markdown(rows: Sequence[Row]) -> str:
    """Return the verdicts, then a table a ground."""
    parts: list[str] = []
    for title, of_it in (("Headway against each", by_today), (OLDER, by_before)):
        some = [row for row in rows if of_it(row)]
        played = list(dict.fromkeys((row.ground, row.overload) for row in some))
        if not played:
            continue
        parts += [f"## {title}", "", _overall(some, played), "", *_verdicts(some, played), ""]
        for ground, overload in played:
            here = [row for row in some if (row.ground, row.overload) == (ground, overload)]
            parts += [f"### {ground}, {overload}", "", *_table(here), ""]
    return "\n".join(parts)


def by_today(row: Row) -> bool:
    """Return whether *row* counts promises as they are counted now."""
    return row.definition == DEFINITION


def by_before(row: Row) -> bool:
    """Return whether *row* counts by an older reading."""
    return not by_today(row)


def load_rows(path: Path) -> list[Row]:
    """Return the rows of a file."""
    return [Row(**row) for row in read_json(path)["rows"]]


def _overall(rows: Sequence[Row], played: Sequence[tuple[str, str]]) -> str:
    """Return one sentence on all grounds and loads."""
    leads: list[tuple[float, float, float]] = []
    for ground, overload in played:
        here = [row for row in rows if (row.ground, row.overload) == (ground, overload)]
        leads += [(load, *points) for load, points in _leads(here).items()]
    below = [f"{stock:.1f}" for _, stock, _ in leads if stock <= -0.1]
    under = [f"{rival:.1f}" for *_, rival in leads if rival <= -0.1]
    over = [lead for lead in leads if lead[0] > 1.0]
    stock, rival = (sum(lead[i] for lead in over) / len(over) for i in (1, 2))
    return (
        f"Of {len(leads)} loads it is below stock in hindsight at {len(below)}"
        f" ({', '.join(below) or '–'} points) and below the best rival at {len(under)}. Above 1 ×"
        f" the mean is {stock:+.1f} points over stock in hindsight and {rival:+.1f} over the best"
        " rival of each load."
    )


def _leads(rows: Sequence[Row]) -> dict[float, tuple[float, float]]:
    """Return by load the points over stock in hindsight, and over the best rival."""
    kept = kept_by(whole(rows))
    ours, stock = kept[OURS[0]], best_of_stock(kept)
    rivals = [row for name, row in kept.items() if name not in (*OURS, *STOCK)]
    return {
        load: (
            100 * (ours[load] - stock[load]),
            100 * (ours[load] - max(row[load] for row in rivals)),
        )
        for load in ours
    }


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
    leads = _leads(rows)
    lead = {load: points for load, (points, _) in leads.items()}
    rival = {load: points for load, (_, points) in leads.items()}
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
    path = ROOT / "README.md"
    before, mark, rest = path.read_text(encoding="utf-8").partition(MARKS[0])
    _, end, after = rest.partition(MARKS[1])
    text = f"{before}{mark}\n\n{readme_table(rows)}\n\n{end}{after}"
    path.write_text(text, encoding="utf-8")


def write_chart(rows: Sequence[Row]) -> None:
    """Draw what is kept against the load, the mean of the grounds of demote mode."""
    demoted = [row for row in rows if row.overload == "demote"]
    grounds = dict.fromkeys(row.ground for row in demoted)
    boards = [kept_by(whole([r for r in demoted if r.ground == ground])) for ground in grounds]
    lines = {
        "Headway": ("#2f80ed", [board[OURS[0]] for board in boards]),
        "vLLM, tuned in hindsight": ("#b36b00", [best_of_stock(board) for board in boards]),
        "vLLM, as it comes": ("#d0453a", [board["stock"] for board in boards]),
    }
    drawn = svg(
        {name: (colour, mean_line(found)) for name, (colour, found) in lines.items()},
        f"Promises kept against load, the mean of {len(boards)} kinds of traffic",
        "load, in multiples of what a well-set first come, first served carries",
    )
    CHART.write_text(drawn, encoding="utf-8")


@click.command()
def main() -> None:
    """Write the tables again."""
    path = Path(__file__).parent / "results.json"
    rows = load_rows(path)
    (path.parent / "results.md").write_text(markdown(rows), encoding="utf-8")
    of_today = [row for row in rows if by_today(row)] or rows
    write_readme(of_today)
    write_chart(of_today)
    click.echo(markdown(rows))


if __name__ == "__main__":
    main()
