"""Figures over load: one line a policy, one point a load, the seeds as a band."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import plotly.graph_objects as go  # type: ignore[import-untyped]
from plotly.subplots import make_subplots  # type: ignore[import-untyped]

from headway.web.material import band
from headway.web.series import Figure, Group, Point, percent_of, plain, points, quantile
from headway.web.theme import QUIET, faded, lay_out

PANEL_HEIGHT_PX = 330
LOAD_AXIS = "offered load, requests/s"
NO_FIGURE = "no figure to draw"


class Panel(NamedTuple):
    """One small chart: its title, what it reads from a run, its unit, its axis."""

    title: str
    figure: Figure
    unit: str
    is_log: bool = False
    is_percent: bool = False


def has_one_load(groups: Sequence[Group]) -> bool:
    """Whether the runs were made at one load only: then bars say more than dots."""
    figure = plain("attainment")
    return len({p.load_rps for g in groups for p in points([*g.runs, *g.off], figure)}) <= 1


def attainment(groups: Sequence[Group]) -> go.Figure:
    """Return promises kept and goodput over load."""
    figure = panels(
        groups,
        [
            Panel("promises kept", percent_of("attainment"), "%", is_percent=True),
            Panel("goodput: kept promises per second", plain("goodput_rps"), "requests/s"),
        ],
        num_columns=2,
    )
    loads = [p.load_rps for g in groups for p in points(g.runs, plain("goodput_rps"))]
    if loads and not has_one_load(groups):
        figure.add_scatter(
            x=[min(loads), max(loads)], y=[min(loads), max(loads)], name="every promise kept",
            mode="lines", line={"color": QUIET, "dash": "dot", "width": 1.5}, hoverinfo="skip",
            row=1, col=2,
        )  # fmt: skip
    return figure


def by_class(groups: Sequence[Group], names: Sequence[str]) -> go.Figure:
    """Return promises kept over load, one chart a class."""
    shown = [Panel(n, percent_of("attainment", n), "%", is_percent=True) for n in names]
    return panels(groups, shown, num_columns=3, one_scale_a_row=True)


def tails(groups: Sequence[Group]) -> go.Figure:
    """Return P50, P95 and P99 of the first token's wait and of the gaps, over load."""
    shown = [
        Panel(f"{what}, {which.upper()}", quantile(field, which), "seconds", is_log=True)
        for field, what in (("ttft_s", "first token"), ("tbt_s", "gap between tokens"))
        for which in ("p50", "p95", "p99")
    ]
    return panels(groups, shown, num_columns=3, one_scale_a_row=True)


def panels(
    groups: Sequence[Group],
    shown: Sequence[Panel],
    num_columns: int,
    *,
    one_scale_a_row: bool = False,
) -> go.Figure:
    """Return *shown* as a grid of charts with one legend; all share the meaning of colours."""
    num_columns = max(1, min(num_columns, len(shown)))
    num_rows = max(1, -(-len(shown) // num_columns))
    figure = make_subplots(
        rows=num_rows, cols=num_columns, subplot_titles=[panel.title for panel in shown],
        vertical_spacing=0.34 / num_rows if num_rows > 1 else 0.1,
        horizontal_spacing=0.18 / num_columns, shared_yaxes="rows" if one_scale_a_row else False,
    )  # fmt: skip
    one_load = has_one_load(groups)
    for index, panel in enumerate(shown):
        row, col = index // num_columns + 1, index % num_columns + 1
        found = [(group, points(group.runs, panel.figure)) for group in groups]
        if one_load:
            _bars(figure, found, row, col)
        else:
            _lines(figure, found, panel.unit, row, col, in_legend=index == 0)
            figure.update_xaxes(title=LOAD_AXIS, rangemode="tozero", row=row, col=col)
        _scale(figure, panel, found, row, col)
        if col == 1 or not one_scale_a_row:
            figure.update_yaxes(title=panel.unit, row=row, col=col)
    return lay_out(
        figure,
        PANEL_HEIGHT_PX * num_rows + 70,
        margin={"l": 70, "r": 25, "t": 90, "b": 55},
        showlegend=not one_load,
        hovermode="closest",
    )


def step_time_band(groups: Sequence[Group]) -> go.Figure:
    """Return promises kept over load with the range of the runs whose steps were off."""
    figure = go.Figure()
    reader = percent_of("attainment")
    for group in groups:
        around = points([*group.runs, *group.off], reader)
        if not group.off or not around:
            continue
        line = points(group.runs, reader) or around
        x = [p.load_rps for p in around]
        if len(around) > 1:
            figure.add_scatter(
                x=x + x[::-1], y=[p.high for p in around] + [p.low for p in around[::-1]],
                fill="toself", fillcolor=faded(group.colour, 0.2), line={"width": 0},
                mode="lines", hoverinfo="skip", showlegend=False,
            )  # fmt: skip
        figure.add_scatter(
            x=[p.load_rps for p in line], y=[p.mean for p in line], name=group.label,
            mode="lines+markers", line={"color": group.colour, "width": 2.5},
            error_y=_errors(around) if len(around) == 1 and len(line) == 1 else None,
            hovertemplate=group.label + ": %{y:.1f} % at %{x:g}/s<extra></extra>",
        )  # fmt: skip
    lay_out(figure, PANEL_HEIGHT_PX + 90, showlegend=True)
    figure.update_xaxes(title=LOAD_AXIS, rangemode="tozero")
    figure.update_yaxes(title="promises kept, %", range=[0, 104])
    return figure


def by_machine(groups: Sequence[Group]) -> go.Figure:
    """Return promises kept over load, one chart for each scale of the step times."""
    everything = [Group(g.label, g.colour, [*g.runs, *g.off], []) for g in groups if g.off]
    scales = sorted({band(run) for group in everything for run in group.runs})
    shown = [
        Panel(_machine(scale), _attainment_at(scale), "promises kept, %", is_percent=True)
        for scale in scales
    ]
    return panels(everything, shown, num_columns=3, one_scale_a_row=True)


def _machine(scale: float) -> str:
    if not scale:
        return "steps as modelled"
    return f"steps {abs(scale):.0%} {'longer' if scale > 0 else 'shorter'}"


def _attainment_at(scale: float) -> Figure:
    reader = percent_of("attainment")
    return lambda run: reader(run) if band(run) == scale else None


def _lines(
    figure: go.Figure,
    found: Sequence[tuple[Group, list[Point]]],
    unit: str,
    row: int,
    col: int,
    *,
    in_legend: bool,
) -> None:
    for group, line in found:
        x = [p.load_rps for p in line]
        if any(p.low < p.high for p in line):
            figure.add_scatter(
                x=x + x[::-1], y=[p.high for p in line] + [p.low for p in line[::-1]],
                fill="toself", fillcolor=faded(group.colour, 0.18), line={"width": 0},
                mode="lines", hoverinfo="skip", showlegend=False, legendgroup=group.label,
                row=row, col=col,
            )  # fmt: skip
        seeds = [f"{p.low:.3g} to {p.high:.3g} over {p.num_seeds} seeds" for p in line]
        figure.add_scatter(
            x=x, y=[p.mean for p in line], text=seeds, name=group.label,
            legendgroup=group.label, showlegend=in_legend, mode="lines+markers",
            line={"color": group.colour, "width": 2.5}, marker={"size": 6},
            hovertemplate=f"{group.label}: %{{y:.4g}} {unit} at %{{x:g}}/s"
            "<br>%{text}<extra></extra>",
            row=row, col=col,
        )  # fmt: skip


def _bars(
    figure: go.Figure, found: Sequence[tuple[Group, list[Point]]], row: int, col: int
) -> None:
    drawn = [(group, line[0]) for group, line in found if line]
    spread = any(point.low < point.high for _, point in drawn)
    figure.add_bar(
        x=[group.label for group, _ in drawn], y=[point.mean for _, point in drawn],
        marker_color=[group.colour for group, _ in drawn],
        text=[f"{point.mean:.3g}" for _, point in drawn],
        textposition="inside" if spread else "outside", insidetextanchor="start",
        error_y=_errors([point for _, point in drawn]) if spread else None,
        hoverinfo="skip", cliponaxis=False, row=row, col=col,
    )  # fmt: skip


def _errors(found: Sequence[Point]) -> dict[str, object]:
    return {
        "type": "data", "symmetric": False, "thickness": 1.2,
        "array": [p.high - p.mean for p in found],
        "arrayminus": [p.mean - p.low for p in found],
    }  # fmt: skip


def _scale(
    figure: go.Figure,
    panel: Panel,
    found: Sequence[tuple[Group, list[Point]]],
    row: int,
    col: int,
) -> None:
    """Set the value axis of one chart, and say so where no run has the figure."""
    values = [value for _, line in found for point in line for value in (point.low, point.high)]
    axis: dict[str, object] = {"rangemode": "tozero"}
    if panel.is_percent:
        axis = {"range": [0, 108]}
    elif panel.is_log and values and min(values) > 0 and not has_one_load([g for g, _ in found]):
        axis = {"type": "log", "tickmode": "array", **_log_ticks_s()}
    figure.update_yaxes(**axis, row=row, col=col)
    if not values:
        figure.add_annotation(
            text=NO_FIGURE, x=0.5, y=0.5, xref="x domain", yref="y domain", showarrow=False,
            font={"color": QUIET}, row=row, col=col,
        )  # fmt: skip


def _log_ticks_s() -> dict[str, object]:
    """Return marks at 1, 2 and 5 of each decade from a tenth of a millisecond, with their unit."""
    values_s = [digit * 10.0**power for power in range(-4, 6) for digit in (1, 2, 5)]
    texts = [f"{v * 1000:g} ms" if v < 1 else f"{v:g} s" for v in values_s]
    return {"tickvals": values_s, "ticktext": texts}
