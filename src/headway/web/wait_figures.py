"""Figures that compare kept runs: how long people waited, and what lateness was made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import plotly.graph_objects as go  # type: ignore[import-untyped]
from plotly.subplots import make_subplots  # type: ignore[import-untyped]

from headway.metrics import define
from headway.metrics.kept import KeptRequest, KeptRun
from headway.metrics.lateness import ClassLateness
from headway.metrics.lateness import of_run as lateness_of
from headway.metrics.record import RequestRecord
from headway.metrics.request_lateness import Lateness
from headway.slo import Slo
from headway.web.material import KeptFile, Run
from headway.web.theme import CAUSE_COLOURS, CAUSE_NAMES, INK, lay_out

MAX_CLASSES = 6

MAX_CURVE_POINTS = 300
"""A curve of more points looks the same and makes the page larger."""

GAPS_FROM_PERCENT = 70.0
"""Nearly all gaps are short; what matters is the top of the curve."""

SHOWN_PROMISES = 4.0
"""Waiting times are drawn up to this many times the promise; what is later is off the page."""

AnyRequest = KeptRequest | RequestRecord
Spans = Callable[[AnyRequest], Sequence[float]]
Promise = Callable[[Slo], float | None]


class Waits(NamedTuple):
    """The requests of one run in a comparison."""

    label: str
    colour: str
    requests: Sequence[AnyRequest]


class ComparedRun(NamedTuple):
    """A kept run in a comparison."""

    label: str
    colour: str
    run: Run
    kept: KeptRun
    late: Mapping[str, Lateness]

    @classmethod
    def of(cls, label: str, colour: str, file: KeptFile) -> ComparedRun:
        """Return the run in a file."""
        kept = file.open()
        return cls(label, colour, file.run, kept, lateness_of(kept))

    @property
    def requests(self) -> Sequence[AnyRequest]:
        """The run's requests."""
        return self.kept.requests


Compared = ComparedRun | Waits


def first_token_waits(shown: Sequence[Compared]) -> go.Figure | None:
    """Return the share of requests answered within each time, by class; ``None`` without one."""

    def spans_s(request: AnyRequest) -> list[float]:
        span_s = define.ttft_s(request.arrived_at_s, request.emitted_at_s)
        return [] if span_s is None else [span_s]

    return _waits(shown, spans_s, lambda slo: slo.ttft_s, "to the first token", 0.0)


def gap_waits(shown: Sequence[Compared]) -> go.Figure | None:
    """Return the share of gaps up to each length, by class; ``None`` when no gap was promised."""
    return _waits(
        shown,
        lambda request: define.gaps_s(request.emitted_at_s),
        lambda slo: slo.tbt_s,
        "between two tokens",
        GAPS_FROM_PERCENT,
    )


def _waits(
    shown: Sequence[Compared],
    spans_of: Spans,
    promise_of: Promise,
    what: str,
    from_percent: float,
) -> go.Figure | None:
    names = _classes(shown, promise_of)
    if not names:
        return None
    num_columns = min(3, len(names))
    num_rows = -(-len(names) // num_columns)
    figure = make_subplots(
        rows=num_rows, cols=num_columns, subplot_titles=names,
        vertical_spacing=0.3 / num_rows if num_rows > 1 else 0.1,
    )  # fmt: skip
    lowest = 100.0
    for index, name in enumerate(names):
        row, col = index // num_columns + 1, index % num_columns + 1
        promises = {
            promise_of(request.slo)
            for one in shown
            for request in one.requests
            if request.slo.class_name == name
        }
        promised_s = promises.pop() if len(promises) == 1 else None
        for one in shown:
            points = _points(one.requests, name, spans_of, promise_of, promised_s)
            _add_curve(figure, one, points, row, col, index == 0)
            on_time = [share for at, share in points if at <= (promised_s or 1.0)]
            lowest = min(lowest, max(on_time, default=0.0))
        unit = "seconds" if promised_s else "times its promise,"
        border = promised_s or 1.0
        figure.update_xaxes(title=f"{unit} {what}", range=[0, SHOWN_PROMISES * border],
                            row=row, col=col)  # fmt: skip
        figure.add_vline(
            x=border, line={"color": INK, "dash": "dot", "width": 1.5},
            annotation_text=f"promised {promised_s:g} s" if promised_s else "promised",
            annotation_position="bottom right", row=row, col=col,
        )  # fmt: skip
    lay_out(figure, 330 * num_rows + 70, margin={"l": 70, "r": 25, "t": 90, "b": 55})
    figure.update_yaxes(range=[from_percent if lowest > from_percent else 0, 101])
    figure.update_yaxes(title="% within that time", col=1)
    return figure


def _points(
    requests: Sequence[AnyRequest],
    class_name: str,
    spans_of: Spans,
    promise_of: Promise,
    promised_s: float | None,
) -> list[tuple[float, float]]:
    """Return (wait, percent within it); where promises differ, waits are in units of their own."""
    spans: list[float] = []
    num_never = 0
    for request in requests:
        own_s = promise_of(request.slo)
        if request.slo.class_name != class_name or own_s is None:
            continue
        spans += [span_s if promised_s else span_s / own_s for span_s in spans_of(request)]
        num_never += not request.emitted_at_s
    return curve(sorted(spans), len(spans) + num_never)


def curve(spans_s: Sequence[float], total: int) -> list[tuple[float, float]]:
    """Return points (span in seconds, percent of *total* within it) of sorted *spans_s*."""
    step = max(1, len(spans_s) // MAX_CURVE_POINTS)
    picked = sorted({*range(0, len(spans_s), step), len(spans_s) - 1} - {-1})
    # To the microsecond, as files have it: a wait just beyond its promise must not be drawn within.
    return [(round(spans_s[i], 6), round(100 * (i + 1) / total, 3)) for i in picked]


def _add_curve(
    figure: go.Figure,
    one: Compared,
    points: Sequence[tuple[float, float]],
    row: int,
    col: int,
    in_legend: bool,
) -> None:
    figure.add_scatter(
        x=[0.0, *(at for at, _ in points)], y=[0.0, *(share for _, share in points)],
        name=one.label, legendgroup=one.label, showlegend=in_legend, mode="lines",
        line={"color": one.colour, "width": 2.5, "shape": "hv" if len(points) < 40 else "linear"},
        hovertemplate=one.label + ": %{y:.1f} % within %{x:.3g}<extra></extra>", row=row, col=col,
    )  # fmt: skip


def _classes(shown: Sequence[Compared], promise_of: Promise) -> list[str]:
    """Return the classes with such a promise, those with most requests first."""
    counts: dict[str, int] = {}
    for one in shown:
        for request in one.requests:
            if promise_of(request.slo) is not None:
                name = request.slo.class_name
                counts[name] = counts.get(name, 0) + 1
    return sorted(counts, key=lambda name: (-counts[name], name))[:MAX_CLASSES]


def lateness(found: Mapping[str, Mapping[str, ClassLateness]]) -> go.Figure:
    """Return one bar a policy and class: the seconds its requests were late, by cause.

    Args:
        found: Label of the run → class → its lateness.
    """
    rows = [(label, name, late) for label, of in found.items() for name, late in of.items()]
    figure = go.Figure()
    for cause, title in CAUSE_NAMES.items():
        spent = [late.by_cause_s[cause] for _, _, late in rows]
        if any(spent):
            figure.add_bar(
                y=[[label for label, _, _ in rows], [name for _, name, _ in rows]],
                x=[round(seconds, 3) for seconds in spent], orientation="h", name=title,
                marker_color=CAUSE_COLOURS[cause],
                hovertemplate=title + ": %{x:,.1f} s<extra></extra>",
            )  # fmt: skip
    lay_out(
        figure, 30 * len(rows) + 170, barmode="stack", bargap=0.3,
        margin={"l": 190, "r": 25, "t": 80, "b": 50},
    )  # fmt: skip
    figure.update_xaxes(title="seconds late, all requests of the class together")
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return figure
