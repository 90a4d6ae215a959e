"""``headway trace``: look at a workload, convert one, make one up."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from headway.cli.trace_options import read_options, tell, trace_options
from headway.cli.values import rate as read_rate
from headway.cli.values import save, say, whole, writable
from headway.errors import UserError
from headway.metrics.chrome import write
from headway.metrics.define import quantiles
from headway.metrics.kept import read_json
from headway.study import recorded
from headway.study.requests import too_long
from headway.workloads import named
from headway.workloads.arrivals import FORMS, Arrivals, with_arrivals
from headway.workloads.prefixes import found_tokens
from headway.workloads.readers import read
from headway.workloads.reading import Reading
from headway.workloads.schema import WorkloadRequest, write_jsonl

MOST_TENANTS_NAMED = 8
"""Tenants that a line on the terminal names; JSON has all of them."""


@click.group()
def trace() -> None:
    """Inspect, convert or make up a workload."""


@trace.command()
@click.argument("file", type=click.Path(path_type=Path))
@trace_options
@click.option("--kv-tokens", help="Also count requests that do not fit into such a KV cache.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="The same as JSON.")
def inspect(file: Path, kv_tokens: str | None, json_path: Path | None, **given: Any) -> None:
    """Describe FILE: number of requests, rate, lengths, shared prefixes.

    Also how it was read: the format, the columns and the unit of its times.
    """
    writable(json_path)
    capacity_tokens = whole("--kv-tokens", kv_tokens)
    requests, reading = _read(file, given)
    facts = described(requests)
    sentences = _sentences(facts)
    if capacity_tokens is not None:
        long = too_long(requests, capacity_tokens)
        facts["too_long"] = asdict(long)
        sentences += long.lines(capacity_tokens)
    if reading is not None:
        facts["trace"] = reading.facts()
    console = Console()
    console.print(_table(file.name, facts))
    say(console, (reading.sentence() if reading else "A recording.", *sentences))
    save(json_path, {"schema": 1, "source": file.name, **facts})


@trace.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Headway JSONL.")
@trace_options
@click.option("--requests", help="Only the first N requests.")
@click.option("--rate", help="Mean requests per second [as recorded].")
@click.option("--arrivals", default="trace", show_default=True, help=f"{FORMS}.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of times.")
def convert(
    file: Path,
    out: Path,
    requests: str | None,
    rate: str | None,
    arrivals: str,
    seed: int,
    **given: Any,
) -> None:
    """Read FILE in any known format and write it as Headway JSONL, with other times if asked.

    FILE may be a recording of headway serve --record, or its folder. Its classes are kept by
    name; what they promise, an SLO file says.
    """
    writable(out)
    if out.exists() and file.exists() and out.samefile(file):
        raise UserError(f"--out is the same file as {file}; name another one.")
    process = Arrivals.parse(arrivals)
    rate_rps = read_rate(rate)
    most = whole("--requests", requests)
    rows, reading = _read(file, given)
    made = with_arrivals(rows[:most], process, rate_rps, np.random.default_rng([seed, 0xC0A1]))
    write_jsonl(out, made)
    tell(Console(), reading)
    click.echo(f"{len(made)} requests written to {out}.")


@trace.command()
@click.argument("name")
@click.option("--out", required=True, type=click.Path(path_type=Path), help="Headway JSONL.")
@click.option("--requests", default="600", show_default=True, help="Number of requests.")
@click.option("--rate", default="1", show_default=True, help="Mean requests per second.")
@click.option("--arrivals", default="poisson", show_default=True, help=f"{FORMS}.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed.")
@click.option(
    "--slo-out", type=click.Path(path_type=Path), help="Also write the SLO file of its classes."
)
def synth(
    name: str,
    out: Path,
    requests: str,
    rate: str,
    arrivals: str,
    seed: int,
    slo_out: Path | None,
) -> None:
    """Make up the workload NAME; the same options write the same file."""
    writable(out, slo_out)
    process = Arrivals.parse(arrivals)
    made = named.make(name, whole("--requests", requests), read_rate(rate), seed, process)
    write_jsonl(out, made)
    if slo_out is not None:
        shutil.copyfile(named.SLO_FILE, slo_out)
    click.echo(f"{len(made)} requests of {name} written to {out}.")


def described(requests: Sequence[WorkloadRequest]) -> dict[str, Any]:
    """Return the statistics of a workload, ready for JSON.

    ``rate_rps`` is gaps over the time they cover, and ``gap_cv`` their standard deviation over
    their mean; both ``None`` when no time passes. ``prefix_share`` is the part of all prompt
    tokens that an endless prefix cache would not compute again.
    """
    times_s = np.array([request.arrived_at_s for request in requests])
    gaps_s = np.diff(times_s)
    duration_s = float(times_s[-1] - times_s[0])
    prompts = [request.num_prompt_tokens for request in requests]
    outputs = [request.num_output_tokens for request in requests]
    return {
        "num_requests": len(requests),
        "duration_s": duration_s,
        "rate_rps": len(gaps_s) / duration_s if duration_s > 0 else None,
        "gap_cv": float(gaps_s.std() / gaps_s.mean()) if duration_s > 0 else None,
        "prompt_tokens": {"mean": float(np.mean(prompts)), **quantiles(prompts)},
        "output_tokens": {"mean": float(np.mean(outputs)), **quantiles(outputs)},
        "prefix_share": sum(found_tokens(requests)) / sum(prompts),
        "classes": dict(sorted(Counter(r.slo_class or "default" for r in requests).items())),
        "tenants": dict(Counter(r.tenant for r in requests if r.tenant).most_common()),
    }


def _table(title: str, facts: dict[str, Any]) -> Table:
    table = Table("", "mean", "p50", "p95", "p99", "max", title=title)
    for name in ("prompt_tokens", "output_tokens"):
        table.add_row(name.replace("_", " "), *(f"{value:,.0f}" for value in facts[name].values()))
    return table


def _sentences(facts: dict[str, Any]) -> list[str]:
    rate, cv = facts["rate_rps"], facts["gap_cv"]
    pace = "all at once" if rate is None else f"{rate:.3g} requests/s, gap CV {cv:.3g}"
    classes = ", ".join(f"{name} {size}" for name, size in facts["classes"].items())
    sizes = [f"{name} {size}" for name, size in facts["tenants"].items()]
    more = ", …" if len(sizes) > MOST_TENANTS_NAMED else ""
    tenants = [f"Tenants: {', '.join(sizes[:MOST_TENANTS_NAMED])}{more}."] if sizes else []
    return [
        f"{facts['num_requests']} requests in {facts['duration_s']:.1f} s: {pace}.",
        f"{facts['prefix_share']:.1%} of the prompt tokens were seen before.",
        f"Classes: {classes}.",
        *tenants,
    ]


@trace.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", required=True, type=click.Path(path_type=Path), help="JSON, or .json.gz.")
def chrome(run: Path, out: Path) -> None:
    """Export RUN, kept by simulate --keep, for Perfetto or chrome://tracing."""
    writable(out)
    num_events = write(read_json(run), out)
    Console().print(f"{num_events} events in {out}; open it at ui.perfetto.dev.", highlight=False)


def _read(file: Path, given: dict[str, Any]) -> tuple[list[WorkloadRequest], Reading | None]:
    """Return the requests of a trace and how it was read, or those of a recording."""
    is_recording = recorded.is_recording(file)
    options = read_options(given, is_file=not is_recording)
    if is_recording:
        return list(recorded.for_slo_file(recorded.read(file).requests)), None
    reading = read(file, options)
    return reading.requests, reading
