"""``headway top``: what a server does now, in a terminal."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from headway.cli.running_server import AWAITED, DOING, NoAnswer, ask, key_option, url_option
from headway.cli.values import save
from headway.units import format_s

Json = Mapping[str, Any]

BAR_CELLS = 40
ROWS_OF_BROKEN = 8
ROWS_OF_TENANTS = 8

BUDGET_COLUMNS = ("target", "budget left", "burn 1 h")
"""Shown where anybody has a target: of the budget what is left of 28 days, and how fast it goes."""


@click.command()
@url_option
@key_option
@click.option(
    "--every", "every_s", default=1.0, show_default=True, type=click.FloatRange(0.1, 3600),
    help="Seconds between two updates.",
)  # fmt: skip
@click.option("--once", is_flag=True, help="Print once and end.")
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), help="Write one snapshot and end."
)
def top(url: str, api_key: str | None, every_s: float, once: bool, json_path: Path | None) -> None:
    """Show promises kept per class, the KV cache, and late requests. Ends with Ctrl-C."""
    console = Console()
    state = ask(url, "/headway/state", api_key)
    if json_path is not None:
        save(json_path, state)
        return
    if once:
        console.print(screen(state))
        return
    with Live(screen(state), console=console, screen=console.is_terminal) as live:
        while True:
            time.sleep(every_s)
            try:
                live.update(screen(ask(url, "/headway/state", api_key)))
            except NoAnswer as error:
                live.update(Group(Text(str(error), style="bold red"), screen(state)))


def screen(state: Json) -> Group:
    """Return everything ``top`` shows."""
    if not state["ready"]:
        return Group("The server has not scheduled anything yet.")
    now, model = state["now"], state["model"]
    head = (
        f"policy {state['policy']}, overload {state['overload']}; {now['running']} running,"
        f" {now['waiting']} waiting, pressure {now['load']['pressure']:.0%};"
        f" longest step {format_s(now['longest_step_s'])};"
        f" a plan takes {_span(model['plan_s']['p50'])} (p99 {_span(model['plan_s']['p99'])});"
        f" heard of {state['age_s']:.0f} s ago"
    )
    parts = [Text(head), _late(state), _kv(now["kv"]), _classes(state)]
    if (chances := model.get("chances")) and chances["num"]:
        parts.append(
            Text(
                f"Of {chances['num']:,} promises {chances['told']:.1%} were expected to be kept"
                f" when they started; {chances['kept']:.1%} were"
            )
        )
    if state.get("tenants"):
        parts.append(_tenants(state))
    return Group(*parts, _broken(state))


def _span(value_s: float | None) -> str:
    if value_s is not None and value_s < 1e-3:
        return f"{value_s * 1e6:.0f} µs"
    return format_s(value_s)


def _late(state: Json) -> Text | Table:
    """Return who waits for something that is overdue, the most overdue first."""
    rows = state["late"]
    if not rows:
        return Text("Late now: nobody", style="green")
    num_late = max(state["now"].get("num_late", 0), len(rows))
    which = f", the {len(rows)} most overdue" if num_late > len(rows) else ""
    table = Table(title=f"Late now: {num_late}{which}", title_justify="left", box=None)
    table.add_column("request", min_width=34)  # All of it: headway explain asks for it.
    for name in ("class", "waits for its", "late by", "what it is doing"):
        table.add_column(name, justify="right" if name == "late by" else "left")
    for row in rows:
        table.add_row(
            Text(str(row["id"])),
            Text(str(row["class"])),
            AWAITED.get(row["breaks"], "–"),
            Text(format_s(row["late_s"]), style="red"),
            DOING.get(row["stage"], "–"),
        )
    return table


def _kv(kv: Json) -> Text:
    total = max(kv["held"] + kv["reserved"] + kv["free"], 1)
    held, reserved = (round(BAR_CELLS * kv[key] / total) for key in ("held", "reserved"))
    text = Text("KV cache ")
    text.append("█" * held, style="cyan")
    text.append("▒" * min(reserved, BAR_CELLS - held), style="cyan")
    text.append("░" * max(BAR_CELLS - held - reserved, 0), style="dim")
    text.append(
        f" {kv['held'] / total:.0%} held, {kv['reserved'] / total:.0%} reserved,"
        f" {kv['free']:,} of {total:,} tokens free"
    )
    return text


def _classes(state: Json) -> Table:
    minutes = state["window_s"] / 60
    has_targets = any(row.get("budget") for row in state["classes"])
    table = Table(title=f"Last {minutes:g} minutes", title_justify="left", box=None)
    for name in (
        "class",
        "kept",
        "",
        "here",
        "TTFT p50",
        "p99",
        "gap p50",
        "p99",
        "pause",
        "refused",
        *(BUDGET_COLUMNS if has_targets else ()),
    ):
        table.add_column(name, justify="left" if name == "class" else "right")
    for row in state["classes"]:
        table.add_row(
            Text(str(row["name"])),
            _kept(row["attained"], row["promised"], row.get("budget")),
            f"{row['attained']}/{row['promised']}" if row["promised"] else f"{row['ended']} ended",
            str(row["live"]),
            *(format_s(row[key][q]) for key in ("ttft_s", "gap_s") for q in ("p50", "p99")),
            format_s(row["pause_s"]["p99"]),
            str(row["outcomes"]["refused"]),
            *(_budget(row.get("budget")) if has_targets else ()),
        )
    return table


def _kept(attained: int, promised: int, budget: Json | None) -> Text:
    """Return the share kept: green or red by its target, without one by 99 % and 90 %."""
    if not promised:
        return Text("–")
    share = attained / promised
    good, bad = (0.99, 0.9) if budget is None else (budget["target"], budget["target"])
    return Text(f"{share:.1%}", style="green" if share >= good else "red" if share < bad else "")


def _budget(budget: Json | None) -> tuple[str | Text, ...]:
    """Return a group's cells of :data:`BUDGET_COLUMNS`."""
    if budget is None:
        return ("–",) * len(BUDGET_COLUMNS)
    left, rate = budget["budget_left"], budget["burn_rate"]["1h"]
    return (
        f"{100 * budget['target']:.5g}%",
        Text(f"{left:.0%}", style="red" if left < 0 else ""),
        Text(f"{rate:.1f}", style="red" if rate > 1 else ""),
    )


def _tenants(state: Json) -> Table:
    """Return who asked for the most lately."""
    rows = state["tenants"]
    has_targets = any(row["budget"] for row in rows)
    which = f", the first {ROWS_OF_TENANTS} of {len(rows)}" if len(rows) > ROWS_OF_TENANTS else ""
    table = Table(title=f"Tenants{which}", title_justify="left", box=None)
    names = ("tenant", "kept", "", "refused", "tokens", "engine time")
    for name in (*names, *(BUDGET_COLUMNS if has_targets else ())):
        table.add_column(name, justify="left" if name == "tenant" else "right")
    for row in rows[:ROWS_OF_TENANTS]:
        share = row["engine_share"]
        table.add_row(
            Text(str(row["name"])),
            _kept(row["attained"], row["promised"], row["budget"]),
            f"{row['attained']}/{row['promised']}" if row["promised"] else f"{row['ended']} ended",
            str(row["refused"]),
            f"{row['tokens']:,}",
            "–" if share is None else f"{share:.0%}",
            *(_budget(row["budget"]) if has_targets else ()),
        )
    return table


def _broken(state: Json) -> Table:
    table = Table(title="Newest broken promises", title_justify="left", box=None)
    for name in ("request", "class", "outcome", "late by", "mostly"):
        table.add_column(name, justify="right" if name == "late by" else "left")
    for told in state["broken"][:ROWS_OF_BROKEN]:
        causes = told["by_cause_s"]
        table.add_row(
            Text(str(told["id"])),
            Text(str(told["class"])),
            str(told["outcome"]),
            format_s(told["late_s"]) if told["late_s"] > 0 else "–",
            max(causes, key=causes.__getitem__) if causes else "–",
        )
    return table
