"""Colours and layout that every figure of the report shares."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import plotly.graph_objects as go  # type: ignore[import-untyped]

from headway import registry

INK, QUIET, GRID = "#1d2733", "#5b6675", "#e9edf2"
BROKEN, LATE = "#e4572e", "#5c1a06"

OURS = ("headway", registry.DEFAULT)
PALETTE = (
    "#8d99ae", "#e0a030", "#7b5ea7", "#4c6fb1", "#b5546a", "#6b8e23", "#a0673d", "#2b2d42",
)  # fmt: skip
OUR_COLOUR = "#1f7a8c"
"""Our default policy looks the same in every report; the others take turns."""

PHASE_COLOURS = {
    "queued": "#c3c9d3",
    "prefill": "#e0a030",
    "decode": "#1f7a8c",
    "preempted": "#7b5ea7",
    "swapped": "#b79ad6",
}
PHASE_NAMES = {
    "queued": "waiting to start",
    "prefill": "prompt being computed",
    "decode": "answer coming",
    "preempted": "thrown out, waiting again",
    "swapped": "moved out to the host, waiting again",
}

CAUSE_COLOURS = {
    "elsewhere": "#5d6470",
    "queueing": "#8d99ae",
    "kv_wait": "#4c6fb1",
    "prefill": "#e0a030",
    "preemption": "#7b5ea7",
    "swap": "#b79ad6",
    "long_step": "#1f7a8c",
    "skipped": "#86c5cf",
    "model_error": "#e4572e",
    "other": "#d9dde4",
}
CAUSE_NAMES = {
    "elsewhere": "before it reached the server",
    "queueing": "waiting for a turn",
    "kv_wait": "waiting for KV cache",
    "prefill": "prompt computed in pieces",
    "preemption": "thrown out and redone",
    "swap": "moved out to the host and back",
    "long_step": "its own long steps",
    "skipped": "steps without a token for it",
    "model_error": "steps beyond their promise",
    "other": "engine idle",
}


def colours(labels: Iterable[str]) -> dict[str, str]:
    """Return a colour for each label; our default policy always has its own."""
    names = list(labels)
    taken: dict[str, str] = {}
    turn = 0
    for name in names:
        if name.split(" ")[0] in OURS and OUR_COLOUR not in taken.values():
            taken[name] = OUR_COLOUR
        else:
            taken[name] = PALETTE[turn % len(PALETTE)]
            turn += 1
    return taken


def faded(colour: str, opacity: float) -> str:
    """Return ``#rrggbb`` as an ``rgba()`` of that opacity."""
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{opacity:g})"


def lay_out(figure: go.Figure, height_px: int, **extra: Any) -> go.Figure:
    """Give *figure* the house look and return it."""
    figure.update_layout(
        **{
            "height": height_px,
            "margin": {"l": 70, "r": 25, "t": 60, "b": 50},
            "template": "none",
            "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
            "paper_bgcolor": "white",
            "plot_bgcolor": "white",
            "legend": {
                "orientation": "h", "yref": "container", "y": 0.995, "yanchor": "top", "x": 0,
                "traceorder": "normal",
            },
            **extra,
        }
    )  # fmt: skip
    figure.update_xaxes(gridcolor=GRID, zeroline=False)
    figure.update_yaxes(gridcolor=GRID, zeroline=False)
    return figure
