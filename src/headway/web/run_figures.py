"""Figures of one kept run: its KV cache, its steps, and what each request went through."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import plotly.graph_objects as go  # type: ignore[import-untyped]
from plotly.subplots import make_subplots  # type: ignore[import-untyped]

from headway.metrics.kept import FloatArray, KeptRequest, Timeline
from headway.metrics.request_lateness import Lateness
from headway.units import format_s
from headway.web.bars import Segments, draw_bars, draw_marks, story_of
from headway.web.theme import (
    BROKEN,
    CAUSE_NAMES,
    INK,
    LATE,
    OUR_COLOUR,
    PHASE_COLOURS,
    PHASE_NAMES,
    faded,
    lay_out,
)

MAX_POINTS = 700
"""Longer timelines are drawn as means (or worst cases) of equal runs of steps."""

MAX_ROWS = 150
ROW_HEIGHT_PX = 5.0
SECONDS_AXIS = "seconds since the start of the run"


@dataclass(frozen=True, slots=True)
class Bins:
    """Equal runs of consecutive steps: ``starts`` holds the index of each run's first step."""

    starts: npt.NDArray[np.int64]
    num_steps: int

    @classmethod
    def of(cls, timeline: Timeline) -> Bins:
        """Return at most :data:`MAX_POINTS` runs of steps."""
        num_steps = max(1, -(-len(timeline) // MAX_POINTS))
        return cls(np.arange(0, len(timeline), num_steps), num_steps)

    def mean(self, values: FloatArray, spans_s: FloatArray) -> list[float]:
        """Return the mean of each run, steps weighted by how long they took."""
        if not len(self.starts):
            return []
        weights = np.maximum(spans_s, 1e-12)
        sums = np.add.reduceat(values * weights, self.starts)
        return [float(v) for v in np.round(sums / np.add.reduceat(weights, self.starts), 4)]

    def worst(self, values: FloatArray) -> list[int]:
        """Return the index of the greatest value of each run."""
        edges = [*self.starts.tolist(), len(values)]
        return [low + int(np.argmax(values[low:high])) for low, high in pairwise(edges)]


def kv_over_time(timeline: Timeline) -> go.Figure:
    """Return held, reserved and free KV stacked to the capacity, and lent KV on top of it."""
    bins, spans_s = Bins.of(timeline), timeline.spans_s
    x = np.round(timeline.begins_s[bins.starts], 4).tolist()
    backed = timeline.reserved_tokens - timeline.lent_tokens
    layers = [
        ("held", timeline.held_tokens, OUR_COLOUR),
        ("reserved and free", backed, "#86c5cf"),
        ("free for anybody", timeline.free_tokens - backed, "#e9edf2"),
        ("lent: reserved, yet in use", timeline.lent_tokens, "#e0a030"),
    ]
    figure = go.Figure()
    for name, values, colour in layers:
        if timeline.capacity_tokens or not np.isinf(values).any():
            figure.add_scatter(
                x=x, y=bins.mean(values, spans_s), name=name, stackgroup="kv", mode="lines",
                line={"width": 0.4, "color": colour}, fillcolor=colour,
                hovertemplate=name + ": %{y:,.0f} tokens<extra></extra>",
            )  # fmt: skip
    if timeline.capacity_tokens:
        figure.add_hline(y=timeline.capacity_tokens, line={"color": INK, "width": 1.5})
    lay_out(figure, 330, hovermode="x")
    figure.update_xaxes(title=SECONDS_AXIS)
    figure.update_yaxes(title="KV cache, tokens", rangemode="tozero")
    return figure


def steps_over_time(timeline: Timeline) -> go.Figure:
    """Return the time of the steps against their promise, their tokens, and the queue."""
    bins, spans_s = Bins.of(timeline), timeline.spans_s
    has_plan = np.isfinite(timeline.planned_s)
    furthest_over = [i for i in bins.worst(spans_s - timeline.planned_s) if has_plan[i]]
    drawn = sorted({*bins.worst(spans_s), *furthest_over})
    over = [i for i in drawn if spans_s[i] > timeline.planned_s[i]]
    kept = [i for i in drawn if spans_s[i] <= timeline.planned_s[i]]
    promised = [i for i in drawn if has_plan[i]]
    figure = make_subplots(
        rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.07, row_heights=[0.44, 0.28, 0.28]
    )
    for name, picked, colour in (
        ("step", kept, faded(OUR_COLOUR, 0.55)),
        ("step beyond its promise", over, BROKEN),
    ):
        figure.add_scatter(
            x=_rounded(timeline.begins_s[picked]), y=_rounded(1000 * spans_s[picked]), name=name,
            mode="markers", marker={"size": 4, "color": colour},
            hovertemplate="%{y:.1f} ms<extra></extra>", row=1, col=1,
        )  # fmt: skip
    figure.add_scatter(
        x=_rounded(timeline.begins_s[promised]), y=_rounded(1000 * timeline.planned_s[promised]),
        name="promised at most", mode="markers",
        marker={"size": 7, "symbol": "line-ew-open", "color": INK, "line": {"width": 1}},
        hovertemplate="promised %{y:.1f} ms<extra></extra>", row=1, col=1,
    )  # fmt: skip
    x = _rounded(timeline.begins_s[bins.starts])
    for name, values, colour, row in (
        ("streams (one token each)", timeline.num_decodes, OUR_COLOUR, 2),
        ("prompt tokens", timeline.num_prefill_tokens, PHASE_COLOURS["prefill"], 2),
        ("requests running", timeline.num_running, "#4c6fb1", 3),
        ("requests waiting", timeline.num_waiting, BROKEN, 3),
    ):
        figure.add_scatter(
            x=x, y=bins.mean(values, spans_s), name=name, mode="lines",
            line={"color": colour, "width": 0.4 if row == 2 else 1.8},
            fillcolor=colour if row == 2 else None, stackgroup="tokens" if row == 2 else None,
            hovertemplate=name + ": %{y:,.1f}<extra></extra>", row=row, col=1,
        )  # fmt: skip
    lay_out(figure, 640)
    figure.update_yaxes(rangemode="tozero")
    for row, title in enumerate(("ms a step", "tokens a step", "requests"), start=1):
        figure.update_yaxes(title=title, row=row, col=1)
    figure.update_xaxes(title=SECONDS_AXIS, row=3, col=1)
    if drawn:
        # A first promise, made before anything was measured, may be many times what steps take.
        figure.update_yaxes(range=[0, 1250 * float(spans_s[drawn].max())], row=1, col=1)
    return figure


def worst_stretch(requests: Sequence[KeptRequest]) -> list[KeptRequest]:
    """Return at most :data:`MAX_ROWS` consecutive arrivals: those with most broken promises."""
    rows = sorted(requests, key=lambda r: (r.arrived_at_s, r.id))
    if len(rows) <= MAX_ROWS:
        return rows
    broken = np.concatenate([[0], np.cumsum([not request.attained for request in rows])])
    start = int(np.argmax(broken[MAX_ROWS:] - broken[:-MAX_ROWS]))
    return rows[start : start + MAX_ROWS]


def waterfall(rows: Sequence[KeptRequest], found: Mapping[str, Lateness]) -> go.Figure:
    """Return one bar a request, coloured by phase; late gaps dark, broken promises marked."""
    bars = {phase: Segments.empty() for phase in PHASE_COLOURS}
    late, broken, refused = (Segments.empty() for _ in range(3))
    for row, request in enumerate(rows):
        text = _story(request, found[request.id])
        phases = list(request.phases)
        if not phases or phases[0][0] > request.arrived_at_s:
            phases.insert(0, (request.arrived_at_s, "queued"))  # Until something is told, it waits.
        edges = [*(at_s for at_s, _ in phases), request.last_seen_at_s]
        for (_, phase), (from_s, to_s) in zip(phases, pairwise(edges), strict=True):
            bars[phase].add(round(from_s, 4), round(to_s, 4), row, text)
        for before_s, after_s in pairwise(request.emitted_at_s):
            if after_s - before_s > request.slo.least_late_s:
                late.add(round(before_s, 4), round(after_s, 4), row, text)
        if not request.attained:
            marks = broken if request.emitted_at_s else refused
            at_s = round(request.last_seen_at_s, 4)
            marks.add(at_s, at_s, row, text)
    figure = go.Figure()
    layers = [(PHASE_NAMES[p], colour, bars[p]) for p, colour in PHASE_COLOURS.items() if bars[p].x]
    draw_bars(figure, [*layers, ("gap longer than promised", LATE, late)], ROW_HEIGHT_PX - 1)
    draw_marks(figure, "promise broken", "circle", broken)
    draw_marks(figure, "no answer", "x", refused)
    lay_out(
        figure, int(ROW_HEIGHT_PX * len(rows)) + 150, margin={"l": 70, "r": 25, "t": 80, "b": 50}
    )
    figure.update_xaxes(title=SECONDS_AXIS)
    figure.update_yaxes(
        title="requests, earliest on top", range=[len(rows) - 0.3, -0.7], showticklabels=False,
        showgrid=False,
    )  # fmt: skip
    return figure


def _story(request: KeptRequest, found: Lateness) -> str:
    more = [f"thrown out {request.num_preemptions} times"]
    if request.chance is not None:
        more.append(f"its promise was told a chance of {request.chance:.0%}")
    if not request.attained:
        by_cause_s = found.late_s
        worst = sorted(by_cause_s, key=lambda cause: -by_cause_s[cause])[:3]
        more += [
            f"late: {format_s(by_cause_s[c])} {CAUSE_NAMES[c]}" for c in worst if by_cause_s[c]
        ]
    return story_of(request, *more)


def _rounded(values: FloatArray) -> list[float]:
    return [float(v) for v in np.round(values, 4)]
