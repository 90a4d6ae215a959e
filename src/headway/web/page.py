"""A page that needs no network: sections of figures, tables and plain words."""

from __future__ import annotations

from html import escape
from itertools import count

import plotly.graph_objects as go  # type: ignore[import-untyped]
from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]

STYLE = """
body { margin: 0; background: #f3f5f8; color: #1d2733;
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 1060px; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .6rem; }
h2 { font-size: 1.3rem; margin: 0 0 .3rem; }
h3 { font-size: 1.02rem; margin: 1.2rem 0 0; }
p { margin: .3rem 0 .8rem; max-width: 50rem; }
section { background: #fff; border-radius: 12px; padding: 1.3rem 1.5rem; margin: 1.2rem 0; }
.lead { font-size: 1.12rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(220px, 1fr)); gap: 1rem; }
.card { background: #fff; border-radius: 12px; padding: 1.1rem 1.3rem;
        border-top: 5px solid var(--c); }
.card b { display: block; font-size: 2.6rem; line-height: 1.15; }
.card span { color: #5b6675; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .35rem .6rem; border-bottom: 1px solid #e9edf2; }
th:first-child, td:first-child { text-align: left; white-space: pre; }
td.best { font-weight: 700; color: #14606f; }
pre { background: #f3f5f8; padding: .8rem 1rem; border-radius: 8px; white-space: pre-wrap; }
.key { display: inline-block; margin-right: 1.2rem; }
.key i { display: inline-block; width: 1.6rem; height: .6rem; margin-right: .4rem; }
.quiet { color: #5b6675; font-size: .92rem; }
"""


class Page:
    """Sections in order; figures are numbered so that the same input gives the same bytes."""

    def __init__(self) -> None:
        self.parts: list[str] = []
        self._numbers = count(1)

    def section(self, title: str, text: str, *inside: go.Figure | str) -> None:
        """Add a section: a heading, what a person should see, then figures and tables."""
        body = "".join(self.html(part) for part in inside)
        self.parts.append(f"<section><h2>{escape(title)}</h2><p>{text}</p>{body}</section>")

    def html(self, part: go.Figure | str) -> str:
        """Return a figure as HTML without its script; text as it is."""
        if isinstance(part, str):
            return part
        config = {"displaylogo": False, "displayModeBar": False, "responsive": True}
        return str(
            part.to_html(
                full_html=False, include_plotlyjs=False, config=config,
                div_id=f"figure-{next(self._numbers)}",
            )
        )  # fmt: skip

    def document(self, title: str, more_style: str = "", *, has_figures: bool = True) -> str:
        """Return the page as HTML, Plotly's script included where it has figures."""
        script = f"<script>{get_plotlyjs()}</script>" if has_figures else ""
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>Headway: {escape(title)}</title><style>{STYLE}{more_style}</style>"
            f"{script}</head><body><main>\n" + "\n".join(self.parts) + "\n</main></body></html>\n"
        )
