"""``headway explain``: why a request was late, second by second."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from headway.cli.running_server import AWAITED, DOING, ENDED, ask, key_option, url_option
from headway.cli.values import save
from headway.errors import UserError
from headway.metrics.causes import CAUSES
from headway.units import format_s

BAR_CELLS = 24


@click.command()
@click.argument("request_id", required=False)
@click.option("--worst", type=click.IntRange(1, 512), help="The N requests that were latest.")
@url_option
@key_option
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path), help="Write the account as JSON."
)
def explain(
    request_id: str | None,
    worst: int | None,
    url: str,
    api_key: str | None,
    json_path: Path | None,
) -> None:
    """Tell where the seconds of a broken promise went.

    REQUEST_ID is the id of the answer (chatcmpl-...), or its beginning. The server remembers the
    last 512 broken promises. If the request is late right now, it says what it waits for.
    """
    if (request_id is None) == (worst is None):
        raise UserError("Name one request, or ask for the latest ones with --worst 10.")
    if request_id is not None:
        answer = ask(url, "/headway/broken", api_key, id=request_id)
        told = [*answer["broken"], *answer["late"]]
        if not told:
            raise UserError(_unknown(request_id, answer["num_lost"]))
    else:
        told = ask(url, "/headway/broken", api_key, worst=worst or 0)["broken"]
    save(json_path, told)
    console = Console()
    if not told:
        console.print("No promise was broken so far.")
    for one in told:
        if "story" in one:
            show(console, one)
        else:
            _show_late(console, one)


def _unknown(request_id: str, num_lost: int) -> str:
    """Return what can be said of a request the server has no story of."""
    why = ["it was kept", "it is not over and not among the latest", "512 others were broken since"]
    if num_lost:
        why.append(f"its story is one of {num_lost:,} that were dropped on their way to the server")
    reasons = ", ".join(why[:-1]) + f", or {why[-1]}"
    return f"The server remembers no broken promise of {request_id!r:.80}: {reasons}."


def _show_late(console: Console, row: Mapping[str, Any]) -> None:
    """Print a request that is not over: what is overdue, by how much, and what it is doing."""
    console.print(Text(str(row["id"]), style="bold"), Text(f"class {row['class']}"))
    awaited = AWAITED.get(row["breaks"], "promise")
    sentence = (
        f"  late now: its {awaited} is {format_s(row['late_s'])} overdue;"
        f" {DOING.get(row['stage'], row['stage'])}, {format_s(row['lived_s'])} after it arrived."
        " Its story comes with its end."
    )
    console.print(Text(sentence))
    console.print()


def show(console: Console, told: Mapping[str, Any]) -> None:
    """Print one request: what was promised, what it got, its seconds by cause, its story."""
    console.print(Text(str(told["id"]), style="bold"), Text(f"class {told['class']}"))
    console.print(f"  promised  {_promised(told['promise'])}", highlight=False)
    console.print(f"  got       {_got(told)}", highlight=False)
    if told["broke"]:
        console.print(f"  broken by {_broken_by(told)}", highlight=False)
    if told["late_s"] > 0:
        # Beside late gaps a pause is one of them; alone it has seconds of its own.
        parts = set(told["broke"]) - ({"pause"} if "tbt" in told["broke"] else set())
        added = " (what broke it adds up)" if len(parts) > 1 else ""
        console.print(f"  late by   {format_s(told['late_s'])}{added}:", highlight=False)
        console.print(_causes(told))
    for at_s, what in told.get("story", ()):
        console.print(Text(f"    +{at_s:9.3f} s  {ENDED.get(what, what)}"))
    console.print()


def _causes(told: Mapping[str, Any]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 1), pad_edge=True)
    table.add_column(width=2)
    table.add_column(justify="right")
    table.add_column()
    table.add_column(style="cyan", width=BAR_CELLS)
    table.add_column(style="dim")
    for cause, seconds in sorted(told["by_cause_s"].items(), key=lambda item: -item[1]):
        cells = round(BAR_CELLS * seconds / told["late_s"])
        table.add_row("", format_s(seconds), cause, "█" * cells, CAUSES.get(cause, ""))
    return table


def _promised(promise: Mapping[str, float]) -> str:
    words = {
        "ttft_s": "first token within",
        "tbt_s": "gaps of at most",
        "pause_s": "no pause over",
        "tpot_s": "a mean per token of at most",
        "jct_s": "done within",
    }
    return ", ".join(f"{text} {format_s(promise[k])}" for k, text in words.items() if k in promise)


BROKEN_BY = {
    "ttft": "a late first token",
    "tbt": "late gaps (more than one in a hundred)",
    "pause": "a pause",
    "tpot": "its mean per token",
    "jct": "a late end",
}
"""What of a promise was broken, in words; the names are the server's."""


def _broken_by(told: Mapping[str, Any]) -> str:
    return ", ".join(BROKEN_BY.get(name, name) for name in told["broke"])


def _got(told: Mapping[str, Any]) -> str:
    parts = [str(told["outcome"])]
    if told["ttft_s"] is not None:
        parts.append(f"first token after {format_s(told['ttft_s'])}")
    if told["num_gaps"]:
        parts.append(f"{told['num_late_gaps']} of {told['num_gaps']} gaps late")
        parts.append(f"longest pause {format_s(told['pause_s'])}")
    if "tpot_s" in told["promise"] and told["tpot_s"] is not None:
        parts.append(f"a mean per token of {format_s(told['tpot_s'])}")
    if told["jct_s"] is not None:
        parts.append(f"last token after {format_s(told['jct_s'])}")
    if told["num_preemptions"]:
        parts.append(f"preempted {told['num_preemptions']} times")
    return ", ".join(parts)
