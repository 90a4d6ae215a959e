"""The report's tables: key figures, lateness by cause, settings."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

from headway.metrics.causes import CAUSES
from headway.metrics.lateness import ClassLateness
from headway.units import format_s
from headway.web.material import Material, band, load_rps
from headway.web.series import Figure, Group, Point, percent_of, plain, points, quantile
from headway.web.theme import CAUSE_NAMES

MAX_TABLE_ROWS = 60
NOTHING = "–"

TOLD = {
    "policy",
    "rate_rps",
    "seed",
    "step_time_band",
    "num_requests",
    "engine",
    "workload",
    "source",
    "gpu",
    "kv_tokens",
    "overload",
    "digest",
    "options",
}
"""What the settings say of all runs; the rest of a spec is known of kept runs only."""


class Column(NamedTuple):
    """One column of the key figures: ``better`` is 1 when more is better, −1 when less, 0 else.

    A column that ``may_be_left_out`` is when it is zero everywhere.
    """

    title: str
    figure: Figure
    better: int = 0
    is_span: bool = False
    may_be_left_out: bool = False


def _inside(name: str, *keys: str) -> Figure:
    """Return the sum of some entries of a run's table; nothing when none of them is known."""

    def figure(run: Mapping[str, Any]) -> float | None:
        table = run.get(name) or {}
        known = [float(table[key]) for key in keys if table.get(key) is not None]
        return sum(known) if known else None

    return figure


def _reading(name: str) -> Figure:
    """Return the share of promises kept as another reading of the gaps has it, in percent."""
    share = _inside("attainment_by_reading", name)

    def figure(run: Mapping[str, Any]) -> float | None:
        found = share(run)
        return None if found is None else 100 * found

    return figure


COLUMNS = (
    Column("promises kept, %", percent_of("attainment"), 1),
    Column("without the pause, %", _reading("plain"), 1),
    Column("every gap, %", _reading("strict"), 1),
    Column("at a pace, %", _reading("pace"), 1),
    Column("goodput, req/s", plain("goodput_rps"), 1),
    Column("first token P50", quantile("ttft_s", "p50"), -1, is_span=True),
    Column("first token P99", quantile("ttft_s", "p99"), -1, is_span=True),
    Column("gap P50", quantile("tbt_s", "p50"), -1, is_span=True),
    Column("gap P99", quantile("tbt_s", "p99"), -1, is_span=True),
    Column("longest pause P99", quantile("pause_s", "p99"), -1, is_span=True),
    Column("thrown out", _inside("preemptions", "recompute", "swap")),
    Column("refused", _inside("outcomes", "refused"), may_be_left_out=True),
    Column("cut off", _inside("outcomes", "failed", "timed_out", "aborted"), may_be_left_out=True),
    Column("lost", plain("lost")),
    Column("plan P99, ms", quantile("plan_time_us", "p99")),
)


def key_figures(groups: Sequence[Group]) -> str:
    """Return the table at the top: one row a load and policy, the best of each load in bold."""
    columns = [column for column in COLUMNS if _says_something(column, groups)]
    loads = sorted({load_rps(run) for group in groups for run in group.runs})
    rows: list[str] = []
    for at_rps in loads:
        here = [(g, [run for run in g.runs if load_rps(run) == at_rps]) for g in groups]
        here = [(group, runs) for group, runs in here if runs]
        cells = [_cells(column, [runs for _, runs in here]) for column in columns]
        for index, (group, runs) in enumerate(here):
            rows.append(
                f'<tr><td><i style="background:{group.colour}"></i>{escape(group.label)}</td>'
                f"<td>{at_rps:g}</td><td>{len(runs)}</td>"
                + "".join(column[index] for column in cells)
                + "</tr>"
            )
    head = "".join(f"<th>{escape(column.title)}</th>" for column in columns)
    left_out = len(rows) - MAX_TABLE_ROWS
    note = f'<p class="quiet">{left_out} more rows are left out.</p>' if left_out > 0 else ""
    return (
        f'<div class="wide"><table><tr><th>policy</th><th>load, req/s</th><th>runs</th>{head}</tr>'
        + "".join(rows[:MAX_TABLE_ROWS])
        + f"</table></div>{note}"
    )


def _says_something(column: Column, groups: Sequence[Group]) -> bool:
    found = [point for group in groups for point in points(group.runs, column.figure)]
    return any(p.high for p in found) if column.may_be_left_out else bool(found)


def _cells(column: Column, rows: Sequence[Sequence[Mapping[str, Any]]]) -> list[str]:
    """Return one column's cells at one load: mean over the seeds, and their spread in small."""
    found = [next(iter(points(runs, column.figure)), None) for runs in rows]
    means = [point.mean for point in found if point is not None]
    shown = {_amount(column, mean) for mean in means}
    best = max(means, key=lambda mean: column.better * mean) if means and column.better else None
    return [
        f'<td class="best">{_text(column, point)}</td>'
        if point is not None
        and best is not None
        and len(shown) > 1
        and _amount(column, point.mean) == _amount(column, best)
        else f"<td>{_text(column, point)}</td>"
        for point in found
    ]


def _text(column: Column, point: Point | None) -> str:
    if point is None:
        return NOTHING
    text = _amount(column, point.mean)
    if point.low == point.high:
        return text
    return f"{text}<small>{_amount(column, point.low)} to {_amount(column, point.high)}</small>"


def _amount(column: Column, value: float) -> str:
    if column.is_span:
        return format_s(value)
    if column.title.startswith("plan"):
        return f"{value / 1000:.2f}"
    return f"{value:,.1f}" if value < 100 and value != int(value) else f"{value:,.0f}"


def lateness(found: Mapping[str, Mapping[str, ClassLateness]]) -> str:
    """Return how many requests of each class were late, and without an answer in time to measure.

    Args:
        found: Label of the run → class → its lateness.
    """
    rows = [(label, name, late) for label, of in found.items() for name, late in of.items()]
    causes = [cause for cause in CAUSES if any(late.by_cause_s[cause] for _, _, late in rows)]
    body = "".join(
        f"<tr><td>{escape(label)}</td><td>{escape(name)}</td><td>{late.num_requests}</td>"
        f"<td>{late.num_late}</td><td>{late.num_unanswered}</td><td>{late.total_s:,.1f}</td>"
        + "".join(f"<td>{late.by_cause_s[cause]:,.1f}</td>" for cause in causes)
        + "</tr>"
        for label, name, late in rows
    )
    head = "".join(f"<th>{escape(CAUSE_NAMES[cause])}</th>" for cause in causes)
    return (
        '<div class="wide"><table><tr><th>policy</th><th>class</th><th>requests</th><th>late</th>'
        f"<th>no full answer</th><th>late, s</th>{head}</tr>{body}</table></div>"
    )


def settings(material: Material) -> str:
    """Return what was run: every setting with its distinct values."""
    runs = material.runs
    given: dict[str, Iterable[Any]] = {
        "policy": [run["policy"] for run in runs],
        "load, requests/s": [f"{at:g}" for at in sorted({load_rps(run) for run in runs})],
        "seed": [run.get("seed") for run in runs],
        "requests a run": [run.get("num_requests") for run in runs],
        "step times scaled by": [f"{band(run):+.0%}" for run in runs if band(run)],
    }
    for name in ("engine", "workload", "gpu", "kv_tokens", "overload"):
        given[name.replace("_", " ")] = [run.get(name) for run in runs]
    given["settings of the policies"] = [
        f"{run['policy']}: {run['settings']}"
        for run in runs
        if run.get("settings") not in (None, "{}", "(defaults)")
    ]
    of_kept: dict[str, list[Any]] = {}
    for file in material.kept:
        for name, value in file.spec.items():
            if name not in TOLD:
                of_kept.setdefault(name.replace("_", " "), []).append(value)
    given |= of_kept
    given["files"] = material.sources
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(_distinct(values))}</td></tr>"
        for name, values in given.items()
        if _distinct(values) not in ("", "False", "0", "0.0")
    )
    return f'<table class="facts">{rows}</table>'


def _distinct(values: Iterable[Any]) -> str:
    """Return the distinct values in the order they first come, the first twenty of them."""
    texts = list(dict.fromkeys(str(value) for value in values if value not in (None, "")))
    more = f" and {len(texts) - 20} more" if len(texts) > 20 else ""
    return ", ".join(texts[:20]) + more
