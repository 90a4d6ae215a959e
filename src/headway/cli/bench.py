"""``headway bench``: open-loop load on a live server, and how many promises it kept."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from headway.bench.calls import workload_of
from headway.bench.session import MeasuredRun, Plan, measure
from headway.bench.show import (
    counting_sentence,
    display,
    failure_sentence,
    goodput_sentence,
    lag_sentence,
    readings_sentence,
    retry_sentence,
    run_table,
)
from headway.bench.words import in_one_line
from headway.cli.access_options import access_in, access_options
from headway.cli.target_lines import target_lines
from headway.cli.trace_options import read_options, tell, trace_options
from headway.cli.values import rate, save, whole, writable
from headway.errors import UserError
from headway.metrics.record import write_records
from headway.slo import SloBook
from headway.slo_tenants import header_name
from headway.workloads import named
from headway.workloads.arrivals import FORMS, Arrivals
from headway.workloads.readers import read
from headway.workloads.reading import Reading
from headway.workloads.realtext import SLO_FILE
from headway.workloads.schema import number

DEFAULT_RATE_RPS = 1.5
OTHER_SERVER = "The server does not say it is vLLM: no SLOs or priorities were sent."


@click.command()
@access_options
@click.option(
    "--workload", default="demo", show_default=True, help="demo, a named workload, or a trace file."
)
@trace_options
@click.option(
    "--rate", help=f"Requests per second [demo: {DEFAULT_RATE_RPS}; a file: as recorded]."
)
@click.option("--requests", help="Number of requests [demo: 100; a file: all].")
@click.option("--arrivals", help=f"{FORMS} [a file: trace; else poisson].")
@click.option(
    "--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of texts, times."
)
@click.option("--slo", type=click.Path(path_type=Path), help="SLO file [demo: its own].")
@click.option("--timeout-s", default="120", show_default=True, help="Limit of one request.")
@click.option(
    "--retries", default=0, show_default=True, type=click.IntRange(0),
    help="Retries of a refused request after its Retry-After, if that is within --timeout-s.",
)  # fmt: skip
@click.option("--priority-by-class", default="", help="E.g. chat=0,batch=1 (lower goes first).")
@click.option(
    "--send-slo/--no-send-slo", default=True, show_default=True, help="Tell the server the SLOs."
)
@click.option(
    "--slo-as", type=click.Choice(["ms", "class"]), default="ms", show_default=True,
    help="Send SLOs as milliseconds, or as the name of a class that the server knows.",
)  # fmt: skip
@click.option(
    "--tenant-header", metavar="NAME",
    help="Header that carries the workload's tenants [none].",
)  # fmt: skip
@click.option(
    "--usage/--no-usage", default=True, show_default=True,
    help="Ask the server to count its tokens (stream_options.include_usage).",
)  # fmt: skip
@click.option("--warm-up/--no-warm-up", default=True, show_default=True, help="Warm up first.")
@click.option("--policy", default="unknown", help="Name of the policy, for the report only.")
@click.option("--out", type=click.Path(path_type=Path), help="JSONL, one line per request.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Summary as JSON.")
def bench(url: str, workload: str, out: Path | None, json_path: Path | None, **given: Any) -> None:
    """Load a live OpenAI-compatible server and count the promises it keeps.

    Requests are sent at their times whatever the server does; refused, failed and timed-out ones
    count as offered. When a request failed, or none was served, the exit code is 1; the files are
    written all the same.
    """
    access = access_in(url, given)
    is_file = workload != "demo" and workload not in named.names()
    options = read_options(given, is_file=is_file)
    trace = read(workload, options) if is_file else None
    plan = _plan(workload, trace, given)
    writable(out, json_path)
    console = Console()
    tell(console, trace)
    with display(console, "bench") as shown:
        measured = asyncio.run(
            measure(url, plan, on_stage=shown.stage, on_progress=shown.tally, access=access)
        )
    if out is not None:
        write_records(out, measured.records)
    facts = {} if trace is None else {"trace": trace.facts()}
    save(json_path, {"schema": 1, "runs": [measured.run], **facts})
    _report(console, measured, plan, url)
    sys.exit(_exit_code(measured))


def _plan(workload: str, trace: Reading | None, given: Mapping[str, Any]) -> Plan:
    """Return what is sent, when, and with which promises.

    Raises:
        UserError: An option is wrong.
    """
    rate_rps = rate(given["rate"])
    if workload == "demo" and rate_rps is None:
        rate_rps = DEFAULT_RATE_RPS
    process = Arrivals.parse(given["arrivals"] or ("poisson" if trace is None else "trace"))
    count, seed = whole("--requests", given["requests"]), given["seed"]
    timeout_s = number("--timeout-s", "the span", given["timeout_s"], minimum=0.0, above=True)
    header = given["tenant_header"]
    return Plan(
        workload=workload_of(workload, count, process, rate_rps, seed, trace),
        book=_book(given["slo"], workload),
        policy=given["policy"],
        rate_rps=rate_rps,
        seed=seed,
        timeout_s=timeout_s,
        send_slo=given["slo_as"] if given["send_slo"] else "no",
        priority_by_class=priorities_of(given["priority_by_class"]),
        warm_up=given["warm_up"],
        max_retries=given["retries"],
        asks_usage=given["usage"],
        tenant_header=None if header is None else header_name("--tenant-header", header),
    )


def _exit_code(measured: MeasuredRun) -> int:
    """Return 130 for a stopped run, 1 where what was measured is not the server alone."""
    if measured.load.was_stopped:
        return 130
    outcomes = Counter(record.outcome for record in measured.records)
    return int(outcomes["failed"] > 0 or outcomes["finished"] == 0)


def _report(console: Console, measured: MeasuredRun, plan: Plan, url: str) -> None:
    rate = f"{plan.rate_rps:g}/s" if plan.rate_rps else "as recorded"
    model = in_one_line(measured.server.model)
    title = f"{len(measured.records)} requests to {model} at {url}, {rate}"
    console.print(run_table(measured.run, title))
    console.print(goodput_sentence(measured.run), highlight=False)
    console.print(readings_sentence(measured.run), highlight=False)
    console.print(lag_sentence(measured.load.lag), highlight=False)
    told = (
        counting_sentence(measured.load),
        retry_sentence(measured.load),
        failure_sentence(measured.records),
        *target_lines([("this run", [measured.run])]),
        None if measured.server.is_vllm else OTHER_SERVER,
    )
    for sentence in filter(None, told):
        console.print(sentence, highlight=False, markup=False)
    if measured.load.lag.is_suspect:
        console.print(
            "[yellow]Warning: the load generator itself was late (p99 above 20 ms); the machine"
            " is too busy for exact times."
        )
    if measured.load.was_stopped:
        console.print("[yellow]Stopped early: only requests already sent are counted.")


def _book(slo: Path | None, workload: str) -> SloBook:
    if slo is not None:
        return SloBook.load(slo)
    if workload in named.names():
        return named.book(workload)
    is_demo = workload == "demo"
    return SloBook.load(SLO_FILE) if is_demo else SloBook.builtin()


def priorities_of(text: str) -> dict[str, int]:
    """Read ``"chat=0,batch=1"``.

    Raises:
        UserError: Anything else.
    """
    result: dict[str, int] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, value = part.partition("=")
        if not name or not value.lstrip("-").isdecimal():
            raise UserError(
                f"--priority-by-class must look like chat=0,batch=1,summary=2, not {part!r:.60}."
            )
        result[name.strip()] = int(value)
    return result
