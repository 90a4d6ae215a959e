"""The figures of the demo's page: waterfalls, bars and waiting times, drawn by Plotly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import plotly.graph_objects as go  # type: ignore[import-untyped]
from plotly.subplots import make_subplots  # type: ignore[import-untyped]

from headway.bench.contest import Entry
from headway.metrics import define
from headway.metrics.record import RequestRecord
from headway.units import format_s

WAITING, KEPT, BROKEN, LATE, INK = "#c3c9d3", "#1f7a8c", "#e4572e", "#5c1a06", "#1d2733"
CONTENDERS = ("#8d99ae", "#e0a030", "#1f7a8c")
"""One colour each, in the order they ran; told apart without red against green."""

WATERFALL_LEGEND = {
    "waiting for the first word": WAITING,
    "answer, promise kept": KEPT,
    "answer, promise broken": BROKEN,
    "pause longer than promised": LATE,
}

ROW_HEIGHT_PX = 3.6
MAX_CURVE_POINTS = 300
"""A curve of more points looks the same and makes the page larger."""

GAPS_FROM_PERCENT = 70.0
"""Nearly all gaps are short; what matters is the top of the curve."""

SHOWN_PROMISES = 4.0
"""Waiting times are drawn up to this many times the promise; what is later is off the page."""


@dataclass(frozen=True, slots=True)
class Segments:
    """Horizontal bars of one colour: x and y with gaps between, and a text for each point."""

    x: list[float | None]
    y: list[int | None]
    text: list[str]

    @classmethod
    def empty(cls) -> Segments:
        """Return no bars."""
        return cls([], [], [])

    def add(self, start_s: float, end_s: float, row: int, text: str) -> None:
        """Add one bar."""
        self.x.extend((start_s, end_s, None))
        self.y.extend((row, row, None))
        self.text.extend((text, text, ""))


def in_rows(records: Sequence[RequestRecord]) -> list[RequestRecord]:
    """Return records class by class, the most impatient first, each in order of arrival."""

    def patience_s(record: RequestRecord) -> float:
        return record.slo.ttft_s or record.slo.jct_s or float("inf")

    return sorted(records, key=lambda r: (patience_s(r), r.slo.class_name, r.arrived_at_s))


def waterfall(records: Sequence[RequestRecord], until_s: float) -> go.Figure:
    """Return one thin bar a request: grey while it waits, coloured while its answer comes.

    Gaps longer than promised are drawn dark on the bar; a cross is a request without an answer.
    """
    waiting, kept, broken, late = (Segments.empty() for _ in range(4))
    crosses = Segments.empty()
    rows = in_rows(records)
    for row, record in enumerate(rows):
        text = story_of(record)
        emitted = record.emitted_at_s
        if not emitted:
            ended_s = record.ended_at_s or record.arrived_at_s
            waiting.add(record.arrived_at_s, ended_s, row, text)
            crosses.add(ended_s, ended_s, row, text)
            continue
        waiting.add(record.arrived_at_s, emitted[0], row, text)
        bars = kept if record.attained else broken
        bars.add(emitted[0], max(emitted[-1], emitted[0] + until_s / 600), row, text)
        for before_s, after_s in pairwise(emitted):
            if record.slo.tbt_s is not None and after_s - before_s > record.slo.tbt_s:
                late.add(before_s, after_s, row, text)
    figure = go.Figure()
    layers = zip(WATERFALL_LEGEND.items(), (waiting, kept, broken, late), strict=True)
    for (name, colour), bars in layers:
        figure.add_scatter(
            x=bars.x, y=bars.y, text=bars.text, name=name, mode="lines", hoverinfo="text",
            line={"color": colour, "width": ROW_HEIGHT_PX - 0.6},
        )  # fmt: skip
    if crosses.x:
        figure.add_scatter(
            x=crosses.x[::3], y=crosses.y[::3], text=crosses.text[::3], name="no answer",
            mode="markers", hoverinfo="text",
            marker={"symbol": "x", "color": BROKEN, "size": 6},
        )  # fmt: skip
    _label_classes(figure, rows)
    figure.update_layout(
        **_layout(height=int(ROW_HEIGHT_PX * len(rows)) + 85, top=10), showlegend=False
    )
    figure.update_xaxes(title="seconds since the first request", range=[0, until_s])
    return figure


def story_of(record: RequestRecord) -> str:
    """Return what happened to one request, for the pointer resting on its bar."""
    first_s = define.ttft_s(record.arrived_at_s, record.emitted_at_s)
    gaps_s = define.gaps_s(record.emitted_at_s)
    slo = record.slo
    lines = [
        f"<b>{record.id}</b>: promise {'kept' if record.attained else 'broken'}"
        + ("" if record.finished else f" ({record.outcome.replace('_', ' ')})"),
        f"first token after {format_s(first_s)}{_promised(slo.ttft_s)}",
        f"longest gap {format_s(max(gaps_s, default=None))}{_promised(slo.tbt_s)}",
        f"done after {format_s(define.jct_s(record.arrived_at_s, record.emitted_at_s))}"
        f"{_promised(slo.jct_s)}",
        f"{record.num_prompt_tokens} tokens in, {record.num_output_tokens} out",
    ]
    return "<br>".join(lines)


def _promised(span_s: float | None) -> str:
    return "" if span_s is None else f" (promised {span_s:g} s)"


def _label_classes(figure: go.Figure, rows: Sequence[RequestRecord]) -> None:
    names = [record.slo.class_name for record in rows]
    middles = []
    for name in dict.fromkeys(names):
        first, num_rows = names.index(name), names.count(name)
        middles.append(first + num_rows / 2)
        if first:
            figure.add_hline(y=first - 0.5, line={"color": "#e3e7ed", "width": 1})
    figure.update_yaxes(
        range=[len(rows) - 0.2, -0.8], tickvals=middles, ticktext=list(dict.fromkeys(names)),
        showgrid=False, zeroline=False,
    )  # fmt: skip


def class_bars(entries: Sequence[Entry]) -> go.Figure:
    """Return the share of promises kept, by class and contender."""
    figure = go.Figure()
    names = list(dict.fromkeys(r.slo.class_name for r in in_rows(entries[0].records)))
    for entry, colour in zip(entries, CONTENDERS, strict=False):
        classes = {**entry.run["per_class"], "all": entry.run}
        shares = [100 * (classes[name]["attainment"] or 0.0) for name in [*names, "all"]]
        figure.add_bar(
            name=entry.contender.title, x=[*names, "all"], y=shares, marker_color=colour,
            text=[f"{share:.0f} %" for share in shares], textposition="outside",
            hoverinfo="skip", cliponaxis=False,
        )  # fmt: skip
    figure.update_layout(
        **_layout(height=340), barmode="group", bargap=0.25,
        legend={"orientation": "h", "y": 1.08, "yanchor": "bottom", "x": 0},
    )  # fmt: skip
    figure.update_yaxes(range=[0, 108], title="promises kept, %", gridcolor="#e9edf2")
    return figure


def waits(
    entries: Sequence[Entry],
    spans_of: Callable[[RequestRecord], Sequence[float]],
    promise_of: Callable[[RequestRecord], float | None],
    axis: str,
    from_percent: float = 0.0,
) -> go.Figure:
    """Return, for each class with such a promise, the share of waits up to each length.

    A vertical line marks the promise; requests without any token count as never.
    """
    rows = [record for record in in_rows(entries[0].records) if promise_of(record) is not None]
    names = list(dict.fromkeys(record.slo.class_name for record in rows))
    promises = {record.slo.class_name: promise_of(record) for record in rows}
    figure = make_subplots(rows=1, cols=max(1, len(names)), subplot_titles=names)
    for column, name in enumerate(names, start=1):
        for entry, colour in zip(entries, CONTENDERS, strict=False):
            of_class = [r for r in entry.records if r.slo.class_name == name]
            spans_s = sorted(span_s for record in of_class for span_s in spans_of(record))
            num_never = sum(not record.emitted_at_s for record in of_class)
            shown = curve(spans_s, len(spans_s) + num_never)
            figure.add_scatter(
                x=[span_s for span_s, _ in shown], y=[share for _, share in shown],
                name=entry.contender.title, legendgroup=entry.contender.key,
                showlegend=column == 1, mode="lines", line={"color": colour, "width": 2.5},
                hovertemplate="%{y:.1f} % within %{x:.2f} s",
                row=1, col=column,
            )  # fmt: skip
        promised_s = promises[name] or 0.0
        figure.update_xaxes(range=[0, SHOWN_PROMISES * promised_s], row=1, col=column)
        figure.add_vline(
            x=promised_s, line={"color": INK, "dash": "dot", "width": 1.5},
            annotation_text=f"promised {promised_s:g} s",
            annotation_position="bottom right", row=1, col=column,
        )  # fmt: skip
    figure.update_layout(
        **_layout(height=360),
        legend={"orientation": "h", "y": 1.12, "yanchor": "bottom", "x": 0},
    )
    figure.update_xaxes(title=axis, gridcolor="#e9edf2")
    figure.update_yaxes(range=[from_percent, 101], gridcolor="#e9edf2")
    figure.update_yaxes(title="% within that time", col=1)
    return figure


def curve(spans_s: Sequence[float], total: int) -> list[tuple[float, float]]:
    """Return points (span in seconds, percent of *total* within it) of sorted *spans_s*."""
    step = max(1, len(spans_s) // MAX_CURVE_POINTS)
    picked = sorted({*range(0, len(spans_s), step), len(spans_s) - 1} - {-1})
    # To the microsecond, as files have it: a wait just beyond its promise must not be drawn within.
    return [(round(spans_s[i], 6), round(100 * (i + 1) / total, 3)) for i in picked]


def first_token_waits(entries: Sequence[Entry]) -> go.Figure:
    """Return how long people waited for the first token."""

    def spans_of(record: RequestRecord) -> list[float]:
        span_s = define.ttft_s(record.arrived_at_s, record.emitted_at_s)
        return [] if span_s is None else [span_s]

    return waits(entries, spans_of, lambda r: r.slo.ttft_s, "seconds to the first token")


def gap_waits(entries: Sequence[Entry]) -> go.Figure:
    """Return how long the pauses between tokens were."""
    return waits(
        entries,
        lambda record: define.gaps_s(record.emitted_at_s),
        lambda record: record.slo.tbt_s,
        "seconds between two tokens",
        from_percent=GAPS_FROM_PERCENT,
    )


def _layout(height: int, top: int = 40) -> dict[str, object]:
    return {
        "height": height,
        "margin": {"l": 70, "r": 20, "t": top, "b": 45},
        "template": "none",
        "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
    }
