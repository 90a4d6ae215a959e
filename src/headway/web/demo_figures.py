"""The figures of the demo's page: a waterfall of each contender, and promises kept by class."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import plotly.graph_objects as go  # type: ignore[import-untyped]

from headway.bench.contest import Entry
from headway.metrics.record import RequestRecord
from headway.web.bars import Segments, draw_bars, draw_marks, story_of
from headway.web.theme import BROKEN, LATE, OUR_COLOUR, PALETTE, PHASE_COLOURS, lay_out
from headway.web.wait_figures import Waits

CONTENDERS = (*PALETTE[:2], OUR_COLOUR)
"""One colour each, in the order they ran; told apart without red against green."""

WATERFALL_LEGEND = {
    "waiting for the first word": PHASE_COLOURS["queued"],
    "answer, promise kept": OUR_COLOUR,
    "answer, promise broken": BROKEN,
    "pause longer than promised": LATE,
}

ROW_HEIGHT_PX = 3.6


def in_rows(records: Sequence[RequestRecord]) -> list[RequestRecord]:
    """Return records class by class, the most impatient first, each in order of arrival."""

    def patience_s(record: RequestRecord) -> float:
        return record.slo.ttft_s or record.slo.jct_s or float("inf")

    return sorted(records, key=lambda r: (patience_s(r), r.slo.class_name, r.arrived_at_s))


def compared(entries: Sequence[Entry]) -> list[Waits]:
    """Return the contenders with their colours and requests."""
    return [
        Waits(entry.contender.title, colour, in_rows(entry.records))
        for entry, colour in zip(entries, CONTENDERS, strict=False)
    ]


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
            if after_s - before_s > record.slo.least_late_s:
                late.add(before_s, after_s, row, text)
    figure = go.Figure()
    layers = zip(WATERFALL_LEGEND.items(), (waiting, kept, broken, late), strict=True)
    draw_bars(figure, [(*named, bars) for named, bars in layers], ROW_HEIGHT_PX - 0.6)
    if crosses.x:
        draw_marks(figure, "no answer", "x", crosses)
    lay_out(figure, int(ROW_HEIGHT_PX * len(rows)) + 85, showlegend=False,
            margin={"l": 70, "r": 20, "t": 10, "b": 45})  # fmt: skip
    _label_classes(figure, rows)
    figure.update_xaxes(title="seconds since the first request", range=[0, until_s])
    return figure


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
    lay_out(figure, 340, barmode="group", bargap=0.25)
    figure.update_yaxes(range=[0, 108], title="promises kept, %")
    return figure
