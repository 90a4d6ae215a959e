"""The reliability diagram: chances told to promises, against the share of them that was kept."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go  # type: ignore[import-untyped]

from headway.metrics.deciles import ENOUGH, DecileRow, error_of
from headway.web.material import Run, load_rps
from headway.web.series import Group
from headway.web.theme import QUIET, faded, lay_out

LARGEST_PX = 26.0
"""Marker of the decile with most requests; areas are as the requests."""

LEAST_PX = 5.0


def deciles_of(run: Run) -> list[DecileRow]:
    """Return the deciles of a run; none where nothing was told."""
    rows = run.get("calibration") or ()
    return [DecileRow(float(r["told"]), float(r["kept"]), int(r["num"])) for r in rows]


def reliability(groups: Sequence[Group]) -> go.Figure | None:
    """Return a point a run and decile, hollow where too few to judge; ``None`` where none told."""
    found = [(g, [(run, row) for run in g.runs for row in deciles_of(run)]) for g in groups]
    most = max((row.num for _, points in found for _, row in points), default=0)
    if not most:
        return None
    figure = go.Figure()
    figure.add_scatter(
        x=[0, 100], y=[0, 100], name="as told", mode="lines", hoverinfo="skip",
        line={"color": QUIET, "dash": "dot", "width": 1.5},
    )  # fmt: skip
    for group, points in found:
        if not points:
            continue
        judged = [row.num >= ENOUGH for _, row in points]
        figure.add_scatter(
            x=[round(100 * row.told, 2) for _, row in points],
            y=[round(100 * row.kept, 2) for _, row in points],
            name=group.label, mode="markers",
            marker={
                "color": [faded(group.colour, 0.75 if is_judged else 0.0) for is_judged in judged],
                "line": {"color": group.colour, "width": 1.2},
                "size": [_size_px(row.num, most) for _, row in points],
            },
            customdata=[[row.num, load_rps(run)] for run, row in points],
            hovertemplate="told %{x:.1f} %, kept %{y:.1f} %<br>%{customdata[0]} requests at"
            " %{customdata[1]:g} requests/s<extra>" + group.label + "</extra>",
        )  # fmt: skip
    lay_out(figure, 420)
    figure.update_xaxes(title="mean chance told, %", range=[-2, 102])
    figure.update_yaxes(title="promises kept, %", range=[-2, 104])
    return figure


def sentence(groups: Sequence[Group]) -> str:
    """Return how far told and kept are from each other at most."""
    errors = [error_of(deciles_of(run)) for group in groups for run in group.runs]
    known = [error for error in errors if error is not None]
    if not known:
        return f" No decile of a run has {ENOUGH} requests yet."
    return (
        f" Of the deciles with {ENOUGH} requests or more, the furthest off is off by"
        f" {100 * max(known):.1f} points."
    )


def _size_px(num: int, most: int) -> float:
    return round(max(LARGEST_PX * math.sqrt(num / most), LEAST_PX), 1)
