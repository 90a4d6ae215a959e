"""The demo's page: one file, readable without a network, in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go  # type: ignore[import-untyped]
from plotly.offline import get_plotlyjs  # type: ignore[import-untyped]

from headway.bench import figures
from headway.bench.compare import rows_of, verdict
from headway.bench.contest import Entry
from headway.bench.show import percent
from headway.slo import Slo
from headway.units import format_s

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


def write_page(path: Path, entries: Sequence[Entry], machine: Mapping[str, Any]) -> None:
    """Write the page that compares *entries*: stock, stock at its best, Headway, in this order."""
    path.write_text(page_of(entries, machine), encoding="utf-8")


def page_of(entries: Sequence[Entry], machine: Mapping[str, Any]) -> str:
    """Return the page as HTML, Plotly's script included."""
    runs = [entry.run for entry in entries]
    parts = [
        "<h1>Same requests, same machine, three schedulers</h1>",
        f'<p class="lead">{escape(verdict(*runs))}</p>',
        _cards(entries),
        _promises(entries[0]),
        _waterfalls(entries),
        _section(
            "Promises kept, by kind of user",
            "Out of all requests sent, those that got everything they were promised.",
            figures.class_bars(entries),
        ),
        _section(
            "The wait for the first word",
            "Each curve climbs as more requests get their first token; the further left, the"
            " sooner. Where it crosses the dotted line is the share that came within the promise."
            " What came much later is beyond the right edge.",
            figures.first_token_waits(entries),
        ),
        _section(
            "The pauses while the answer comes",
            "The same for the time between one token and the next: a long pause is text that"
            " stutters. A request keeps its promise when 99 % of its pauses do, so the curve has"
            " to be close to the top at the dotted line (the scale starts at 70 %).",
            figures.gap_waits(entries),
        ),
        _table(entries),
        _how(entries, machine),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Headway: promises kept</title><style>{STYLE}</style>"
        f"<script>{get_plotlyjs()}</script></head><body><main>\n"
        + "\n".join(parts)
        + "\n</main></body></html>\n"
    )


def _cards(entries: Sequence[Entry]) -> str:
    cards = []
    for entry, colour in zip(entries, figures.CONTENDERS, strict=False):
        run = entry.run
        cards.append(
            f'<div class="card" style="--c:{colour}">{escape(entry.contender.title)}'
            f"<b>{percent(run['attainment'])}</b>"
            f"<span>{run['num_attained']} of {run['num_requests']} promises kept</span></div>"
        )
    return f'<div class="cards">{"".join(cards)}</div>'


def _promises(entry: Entry) -> str:
    slos = {record.slo.class_name: record.slo for record in figures.in_rows(entry.records)}
    counts = {name: entry.run["per_class"][name]["num_requests"] for name in slos}
    items = "".join(
        f"<li><b>{escape(name)}</b> ({counts[name]} requests): {promise_text(slo)}</li>"
        for name, slo in slos.items()
    )
    return (
        "<section><h2>What was promised</h2><p>A small language model (SmolLM2-135M) answered"
        f" {entry.leg.num_requests} requests that arrived at random, {entry.leg.rate_rps:g} a"
        " second on average, in the same order and at the same moments for each scheduler. Each"
        " kind of user has a promise, and it is kept or broken as a whole (a token is a word or a"
        " piece of one):</p>"
        f"<ul>{items}</ul></section>"
    )


def promise_text(slo: Slo) -> str:
    """Return a promise in words."""
    parts = []
    if slo.ttft_s is not None:
        parts.append(f"the first token within {slo.ttft_s:g} s")
    if slo.tbt_s is not None:
        parts.append(f"then never more than {slo.tbt_s:g} s between two tokens")
    if slo.jct_s is not None:
        parts.append(f"all done within {slo.jct_s:g} s")
    return ", ".join(parts) or "nothing promised"


def _waterfalls(entries: Sequence[Entry]) -> str:
    until_s = max(
        (r.ended_at_s or r.arrived_at_s for entry in entries for r in entry.records), default=1.0
    )
    shown = [
        f"<h3>{escape(entry.contender.title)}: {entry.run['num_attained']} of"
        f" {entry.run['num_requests']} kept</h3>"
        + _html(figures.waterfall(entry.records, until_s * 1.01))
        for entry in entries
    ]
    return (
        "<section><h2>What each user went through</h2><p>One line is one request, from the moment"
        " it was sent. Rest the pointer on a line to see its story; a cross is a request that got"
        " no answer.</p><p>" + _legend() + "</p>" + "".join(shown) + "</section>"
    )


def _legend() -> str:
    return "".join(
        f'<span class="key"><i style="background:{colour}"></i>{escape(name)}</span>'
        for name, colour in figures.WATERFALL_LEGEND.items()
    )


def _section(title: str, text: str, figure: go.Figure) -> str:
    return f"<section><h2>{title}</h2><p>{text}</p>{_html(figure)}</section>"


def _html(figure: go.Figure) -> str:
    config = {"displaylogo": False, "displayModeBar": False, "responsive": True}
    return str(figure.to_html(full_html=False, include_plotlyjs=False, config=config))


def _table(entries: Sequence[Entry]) -> str:
    head = "".join(f"<th>{escape(entry.contender.title)}</th>" for entry in entries)
    body = ""
    for row in rows_of([entry.run for entry in entries]):
        cells = "".join(
            f'<td class="best">{text}</td>' if best else f"<td>{text}</td>"
            for text, best in zip(row.shown, row.best, strict=True)
        )
        body += f"<tr><td>{escape(row.label)}</td>{cells}</tr>"
    return (
        "<section><h2>All figures</h2><p>Refused and failed requests count as broken promises."
        " Goodput is requests that kept their promise, per second. The best of each row is in"
        f" bold.</p><table><tr><th></th>{head}</tr>{body}</table></section>"
    )


def _how(entries: Sequence[Entry], machine: Mapping[str, Any]) -> str:
    commands = "\n".join(
        f"# {entry.contender.title}"
        + (f" (clients send priority {_pairs(entry)})" if entry.contender.priority_by_class else "")
        + f"\n{entry.contender.command}"
        for entry in entries
    )
    facts = ", ".join(f"{name} {value}" for name, value in machine.items() if value is not None)
    lag = max(entry.run["client_lag_s"]["send"]["p99"] or 0.0 for entry in entries)
    return (
        "<section><h2>How this was measured</h2><p>Every scheduler ran alone, on the same server"
        " settings and after the same short warm-up. The best setting of stock vLLM was found by"
        " trying many beforehand; Headway has no tuned setting.</p>"
        f"<pre>{escape(commands)}</pre>"
        f'<p class="quiet">Seed {entries[0].leg.seed}; the clients sent requests at most'
        f" {format_s(lag)} late (p99). Machine: {escape(facts)}.</p></section>"
    )


def _pairs(entry: Entry) -> str:
    return ", ".join(f"{k}={v}" for k, v in entry.contender.priority_by_class.items())
