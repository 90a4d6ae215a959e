"""The README's chart: promises kept against load, the mean of the grounds, as an SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

WIDTH, HEIGHT = 760, 340
LEFT, RIGHT, TOP, BOTTOM = 56, 235, 20, 48
INK = "#767676"
"""Of words and axes: as far from white as from black, so that it is read on both."""

Line = Mapping[float, float]
"""Share kept by load."""


def mean_line(lines: Sequence[Line]) -> dict[float, float]:
    """Return the mean of several grounds at each load that all of them have."""
    loads = sorted(set.intersection(*(set(line) for line in lines)))
    return {load: fmean(line[load] for line in lines) for load in loads}


def svg(lines: Mapping[str, tuple[str, Line]], title: str, x_title: str) -> str:
    """Return a chart of shares against load; each line's name stands at its end.

    Args:
        lines: Colour and shares of each line, by its name.
        title: What the chart shows, for those who do not see it.
        x_title: What the loads are multiples of.
    """
    loads = sorted({load for _, line in lines.values() for load in line})

    def x(load: float) -> float:
        return LEFT + (load - loads[0]) / (loads[-1] - loads[0]) * (WIDTH - LEFT - RIGHT)

    def y(share: float) -> float:
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
        f' font-family="system-ui, sans-serif" font-size="14" fill="{INK}">',
        f"<title>{title}</title>",
    ]
    for percent in range(0, 101, 25):
        at = y(percent / 100)
        parts += [
            f'<path d="M{LEFT} {at:.1f}H{WIDTH - RIGHT}" stroke="{INK}" stroke-opacity="0.3"/>',
            f'<text x="{LEFT - 8}" y="{at + 5:.1f}" text-anchor="end">{percent} %</text>',
        ]
    parts += [
        f'<text x="{x(load):.1f}" y="{HEIGHT - BOTTOM + 20}" text-anchor="middle">{load:g} ×</text>'
        for load in loads
    ]
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{x_title}</text>')
    for name, (colour, line) in lines.items():
        points = " ".join(f"{x(load):.1f},{y(line[load]):.1f}" for load in sorted(line))
        last = max(line)
        parts += [
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="3"/>',
            f'<text x="{x(last) + 10:.1f}" y="{y(line[last]) + 5:.1f}" fill="{colour}">{name}'
            f" {line[last]:.0%}</text>",
        ]
    return "\n".join([*parts, "</svg>"]) + "\n"
