"""``headway demo``: stock vLLM, stock vLLM at its best, and Headway, on one workload."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console

from headway.bench.compare import table_of, verdict
from headway.bench.contenders import DEMO_LOAD, DEMO_REQUESTS, DEMO_SEED, everyone
from headway.bench.contest import Entry, Leg, run_contender
from headway.bench.provenance import machine
from headway.bench.server import stop_on_signals
from headway.bench.speed import demo_book
from headway.errors import UserError
from headway.metrics.record import write_records
from headway.web.demo_page import write_page
from headway.workloads.schema import number

START_S, REQUEST_S = 35.0, 1.6
"""Seconds that a server takes to start and warm up, and for each request, in a demo that took 4 min
40 s on two quiet cores. They decide nothing: the demo only says what to expect."""

NEXT = """\
With your own vLLM, in its environment:
  pip install .                                            in this checkout
  vllm serve MODEL --scheduler-cls headway.vllm.Scheduler  one flag
  headway verify MODEL                                     measures stock vLLM and Headway
With your own traffic, without a server:
  headway simulate --trace trace.csv --engine vllm --policy stock,headway --rate 4,7,10"""


@click.command()
@click.option(
    "--rate", default=None,
    help="Requests per second [--load times the measured speed of the machine].",
)  # fmt: skip
@click.option(
    "--load", default=DEMO_LOAD, show_default=True, type=click.FloatRange(0, 10, min_open=True),
    help="Share of the engine's time that the requests need.",
)  # fmt: skip
@click.option(
    "--requests", default=DEMO_REQUESTS, show_default=True, type=click.IntRange(1, 100_000),
    help="Requests for each server.",
)  # fmt: skip
@click.option("--seed", default=DEMO_SEED, show_default=True, type=click.IntRange(0))
@click.option(
    "--out", default="demo-out", show_default=True, type=click.Path(path_type=Path),
    help="Folder for the page, the summary and the servers' logs.",
)  # fmt: skip
def demo(rate: str | None, load: float, requests: int, seed: int, out: Path) -> None:
    """Serve a real model three times and compare how many promises are kept.

    Writes summary.json and index.html, a page that works offline.
    """
    rate_rps = None
    if rate is not None:
        rate_rps = number("--rate", "the rate", rate, minimum=0.0, above=True)
    leg = Leg(rate_rps, seed, requests, load=load)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot make the folder {out}: {error.strerror}.") from None
    console = Console()
    stop_on_signals()
    minutes = len(everyone()) * (START_S + requests * REQUEST_S) / 60
    console.print(
        f"Three servers, one after the other, get the same {requests} requests: about"
        f" {max(round(minutes), 1)} minutes on two quiet cores, twice that on busy ones.",
        highlight=False,
    )
    try:
        entries: list[Entry] = []
        for contender in everyone():
            log_path = out / f"{contender.key}.log"
            entries += run_contender(contender, [leg], log_path, console)
            if leg.slowness is None:
                _say_promises(entries[0].leg.slowness or 1.0, console)
            leg = entries[0].leg  # The same for all.
    except KeyboardInterrupt:
        console.print("Stopped; the server is shut down and nothing was written.")
        sys.exit(130)
    _write(entries, out)
    _report(entries, out, console)


def _say_promises(slowness: float, console: Console) -> None:
    """Say what is promised where the machine is too slow for the demo's own promises."""
    if slowness == 1.0:
        return
    chat = demo_book(slowness).classes["chat"]
    console.print(
        f"This machine is slow for the demo's promises; all are {slowness:g} times as long, for"
        f" every server: a chat's first token within {chat.ttft_s:g} s, gaps of {chat.tbt_s:g} s.",
        highlight=False,
    )


def _write(entries: Sequence[Entry], out: Path) -> None:
    facts = machine()
    summary = {entry.contender.key: {**entry.run, "machine": facts} for entry in entries}
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    for entry in entries:
        write_records(out / f"{entry.contender.key}.jsonl", entry.records)
    write_page(out / "index.html", entries, facts)


def _report(entries: Sequence[Entry], out: Path, console: Console) -> None:
    runs = [entry.run for entry in entries]
    console.print()
    console.print(table_of([entry.contender.title for entry in entries], runs))
    console.print(f"[bold]{verdict(*runs)}[/]", highlight=False)
    best = entries[1].contender
    console.print(f"Best stock setting: {best.command}", highlight=False, markup=False)
    if best.priority_by_class:
        pairs = ",".join(f"{name}={value}" for name, value in best.priority_by_class.items())
        console.print(f"  with clients sending priorities {pairs}", highlight=False)
    console.print(f"Page: {out / 'index.html'}   Figures: {out / 'summary.json'}", highlight=False)
    console.print()
    console.print(NEXT, highlight=False, markup=False, soft_wrap=True)
