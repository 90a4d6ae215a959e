"""The demo's page: one file, readable without a network, in plain words."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go  # type: ignore[import-untyped]

from headway.bench.compare import rows_of, verdict
from headway.bench.contest import Entry
from headway.bench.show import percent
from headway.slo import Slo
from headway.units import format_s
from headway.web import demo_figures as figures
from headway.web.page import Page
from headway.web.wait_figures import first_token_waits, gap_waits


def write_page(path: Path, entries: Sequence[Entry], machine: Mapping[str, Any]) -> None:
    """Write the page that compares *entries*: stock, stock at its best, Headway, in this order."""
    path.write_text(page_of(entries, machine), encoding="utf-8")


def page_of(entries: Sequence[Entry], machine: Mapping[str, Any]) -> str:
    """Return the page as HTML, Plotly's script included."""
    runs = [entry.run for entry in entries]
    page = Page()
    page.parts += [
        "<h1>Same requests, same machine, three schedulers</h1>",
        f'<p class="lead">{escape(verdict(*runs))}</p>',
        _cards(entries),
        _promises(entries[0]),
    ]
    _waterfalls(page, entries)
    page.section(
        "Promises kept, by kind of user",
        "Out of all requests sent, those that got everything they were promised.",
        figures.class_bars(entries),
    )
    shown = figures.compared(entries)
    first, gaps = first_token_waits(shown), gap_waits(shown)
    if first is not None:
        page.section(
            "The wait for the first word",
            "Each curve climbs as more requests get their first token; the further left, the"
            " sooner. Where it crosses the dotted line is the share that came within the promise."
            " What came much later is beyond the right edge.",
            first,
        )
    if gaps is not None:
        page.section(
            "The pauses while the answer comes",
            "The same for the time between one token and the next: a long pause is text that"
            " stutters. A request keeps its promise when 99 % of its pauses do, so the curve has"
            " to be close to the top at the dotted line.",
            gaps,
        )
    page.parts += [_table(entries), _how(entries, machine)]
    return page.document("promises kept")


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
        parts.append(f"then at most {slo.tbt_s:g} s between two tokens (99 of 100 times)")
    if slo.longest_pause_s < math.inf:
        parts.append(f"never a pause of more than {slo.longest_pause_s:g} s")
    if slo.tpot_s is not None:
        parts.append(f"{slo.tpot_s:g} s a token on average")
    if slo.jct_s is not None:
        parts.append(f"all done within {slo.jct_s:g} s")
    return ", ".join(parts) or "nothing promised"


def _waterfalls(page: Page, entries: Sequence[Entry]) -> None:
    until_s = max(
        (r.ended_at_s or r.arrived_at_s for entry in entries for r in entry.records), default=1.0
    )
    shown: list[go.Figure | str] = []
    for entry in entries:
        kept = f"{entry.run['num_attained']} of {entry.run['num_requests']} kept"
        shown += [
            f"<h3>{escape(entry.contender.title)}: {kept}</h3>",
            figures.waterfall(entry.records, until_s * 1.01),
        ]
    legend = "".join(
        f'<span class="key"><i style="background:{colour}"></i>{escape(name)}</span>'
        for name, colour in figures.WATERFALL_LEGEND.items()
    )
    page.section(
        "What each user went through",
        "One line is one request, from the moment it was sent. Rest the pointer on a line to see"
        " its story; a cross is a request that got no answer.",
        f"<p>{legend}</p>",
        *shown,
    )


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
