"""What requests went through, drawn: bars in rows, with a story for each."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import plotly.graph_objects as go  # type: ignore[import-untyped]

from headway.metrics import define
from headway.metrics.kept import KeptRequest
from headway.metrics.record import RequestRecord
from headway.units import format_s
from headway.web.theme import BROKEN


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


def draw_bars(
    figure: go.Figure, layers: Iterable[tuple[str, str, Segments]], width_px: float
) -> None:
    """Add bars by (name, colour, bars), the last on top."""
    for name, colour, bars in layers:
        figure.add_scatter(
            x=bars.x, y=bars.y, text=bars.text, name=name, mode="lines", hoverinfo="text",
            line={"color": colour, "width": width_px},
        )  # fmt: skip


def draw_marks(figure: go.Figure, name: str, symbol: str, marks: Segments) -> None:
    """Add a mark where each of *marks* begins."""
    figure.add_scatter(
        x=marks.x[::3], y=marks.y[::3], text=marks.text[::3], name=name, mode="markers",
        hoverinfo="text", marker={"symbol": symbol, "color": BROKEN, "size": 6},
    )  # fmt: skip


def story_of(request: KeptRequest | RequestRecord, *more: str) -> str:
    """Return what happened to one request, for the pointer resting on its bar."""
    slo, emitted = request.slo, request.emitted_at_s
    first_s = define.ttft_s(request.arrived_at_s, emitted)
    lines = [
        f"<b>{request.id}</b> ({slo.class_name}): promise"
        f" {'kept' if request.attained else 'broken'}"
        + ("" if request.outcome == "finished" else f" ({request.outcome.replace('_', ' ')})"),
        f"first token after {format_s(first_s)}{_promised(slo.ttft_s)}",
        f"gaps{_promised(slo.tbt_s)}, the longest {format_s(define.pause_s(emitted))}"
        + _promised(slo.longest_pause_s if slo.longest_pause_s < math.inf else None, "at most "),
        f"{format_s(define.tpot_s(emitted))} a token on average{_promised(slo.tpot_s)}",
        f"done after {format_s(define.jct_s(request.arrived_at_s, emitted))}{_promised(slo.jct_s)}",
        f"{request.num_prompt_tokens} tokens in, {len(emitted)} out",
    ]
    return "<br>".join([*lines, *more])


def _promised(span_s: float | None, how: str = "") -> str:
    return "" if span_s is None else f" (promised {how}{span_s:g} s)"
