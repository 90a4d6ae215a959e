"""Question: what does the one flag change for traffic that promises nothing?

Stock vLLM's scheduler and Headway's with its defaults serve the same requests under the virtual
clock, none of which has an SLO: light load, heavy load, overload, bursts, and a cache too small for
what arrives, each with and without async scheduling, over seeds. Bounds: output tokens a second
within 2 % of stock's, the 99th percentile of the gaps no longer. Writes results.json and
results.md beside itself; exit code 1 when a bound is missed.

    python experiments/one_flag/run.py [--only NAME] [--seeds 0,1,2] [--workers N] [--out FOLDER]

A pair that is in results.json is not run again; delete the file to measure anew.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import geometric_mean
from typing import Any

import click
import numpy as np

from headway.bench.provenance import commit
from headway.engines.virtual import Outcome, VirtualCall
from headway.latency import profile as profiles
from headway.latency.truth import Truth
from headway.metrics.define import gaps_s
from headway.study.requests import book_of, calls_of, requests_of
from headway.study.spec import Load
from headway.study.sweep import in_parallel

HERE = Path(__file__).parent
GPU = "llama-3.1-8b@h100"
THROUGHPUT_WITHIN = 0.02
GAPS_WITHIN = 0.005
"""Two runs whose steps differ at all do not end in the same float: half a per cent is no longer."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A load, and the cache it is served with; ``kv_tokens`` ``None`` is the profile's own."""

    name: str
    workload: str
    rate_rps: float
    kv_tokens: int | None = None
    arrivals: str = "poisson"


CELLS = (
    Cell("light", "mixed", 6.0),
    Cell("heavy", "mixed", 14.0),
    Cell("overload", "mixed", 30.0),
    Cell("bursts", "mixed", 12.0, arrivals="onoff:5:15"),
    Cell("long prompts", "longdoc", 0.8),
    Cell("pressure, chats", "sharegpt", 8.0, 40_000),
    Cell("pressure, long outputs", "long-outputs", 3.0, 41_000),
    Cell("pressure, long outputs, overload", "long-outputs", 6.0, 41_000),
    Cell("pressure, mixed, bursts", "mixed", 12.0, 60_000, "onoff:5:15"),
    Cell("pressure, retrieval", "retrieval", 4.0, 41_000),
)


@dataclass(frozen=True, slots=True)
class Served:
    """One run, as all its clients together saw it."""

    tokens_per_s: float
    gap_p50_s: float
    gap_p99_s: float
    gap_max_s: float
    ttft_p50_s: float
    ttft_p99_s: float
    num_preemptions: int
    num_steps: int


def calls_without_promises(cell: Cell, requests: int, seed: int) -> list[VirtualCall]:
    """Return the workload's requests as a client who knows nothing of SLOs sends them."""
    load = Load(cell.workload, cell.rate_rps, requests, seed, arrivals=cell.arrivals)
    calls, _ = calls_of(requests_of(load), book_of(load))
    return [replace(call, xargs={}) for call in calls]


def serve(cell: Cell, requests: int, seed: int, asynchronous: bool, ours: bool) -> Served:
    """Serve the cell's requests with stock vLLM's scheduler or with Headway's defaults."""
    from headway.engines.vllm import quiet  # noqa: F401  Before vLLM.
    from headway.engines.vllm.bare import Engine
    from headway.engines.vllm.harness import VirtualRun

    profile = profiles.load(GPU)
    engine = Engine(
        num_blocks=(cell.kv_tokens or profile.kv_capacity_tokens) // 16 + 1,
        max_num_batched_tokens=profile.max_num_batched_tokens,
        max_num_seqs=profile.max_num_seqs,
        asynchronous=asynchronous,
        headway={} if ours else None,
    )
    run = VirtualRun(engine, Truth(profile))
    outcomes = run.run(calls_without_promises(cell, requests, seed))
    return _seen(outcomes, run.num_preemptions, len(run.steps))


def _seen(outcomes: dict[str, Outcome], num_preemptions: int, num_steps: int) -> Served:
    for outcome in outcomes.values():
        assert len(outcome.emitted_at_s) == outcome.call.num_output_tokens, outcome.call
    gaps = np.concatenate([gaps_s(o.emitted_at_s) for o in outcomes.values()])
    waits = [o.emitted_at_s[0] - o.call.arrived_at_s for o in outcomes.values()]
    began_s = min(o.call.arrived_at_s for o in outcomes.values())
    ended_s = max(o.emitted_at_s[-1] for o in outcomes.values())
    gap_p50_s, gap_p99_s, gap_max_s = np.quantile(gaps, (0.5, 0.99, 1.0)).tolist()
    ttft_p50_s, ttft_p99_s = np.quantile(waits, (0.5, 0.99)).tolist()
    return Served(
        sum(len(o.emitted_at_s) for o in outcomes.values()) / (ended_s - began_s),
        gap_p50_s,
        gap_p99_s,
        gap_max_s,
        ttft_p50_s,
        ttft_p99_s,
        num_preemptions,
        num_steps,
    )


def pair(cell: Cell, requests: int, seed: int, asynchronous: bool) -> dict[str, Any]:
    """Return both runs of one cell and their ratios, ours to stock's."""
    stock = serve(cell, requests, seed, asynchronous, ours=False)
    ours = serve(cell, requests, seed, asynchronous, ours=True)
    return {
        "cell": cell.name,
        "seed": seed,
        "async": asynchronous,
        "throughput": ours.tokens_per_s / stock.tokens_per_s,
        "gap_p99": ours.gap_p99_s / stock.gap_p99_s,
        "gap_max": ours.gap_max_s / stock.gap_max_s,
        "ttft_p99": ours.ttft_p99_s / stock.ttft_p99_s,
        "stock": asdict(stock),
        "headway": asdict(ours),
    }


def misses(row: dict[str, Any]) -> list[str]:
    """Return which bounds *row* breaks."""
    found = []
    if row["throughput"] < 1.0 - THROUGHPUT_WITHIN:
        found.append("throughput")
    if row["gap_p99"] > 1.0 + GAPS_WITHIN:
        found.append("gaps")
    return found


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """Return one line a cell: geometric means over its runs, and the worst of them."""
    lines = [
        "| load | cache, tokens | runs | throughput | worst | p99 gap | worst | p99 TTFT"
        " | preemptions, stock : ours | p99 gap of stock, ms |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for cell in CELLS:
        own = [row for row in rows if row["cell"] == cell.name]
        if not own:
            continue
        counts = [sum(r[who]["num_preemptions"] for r in own) for who in ("stock", "headway")]
        lines.append(
            f"| {cell.name} | {cell.kv_tokens or 'all'} | {len(own)}"
            f" | {_mean(own, 'throughput'):.3f} | {min(r['throughput'] for r in own):.3f}"
            f" | {_mean(own, 'gap_p99'):.3f} | {max(r['gap_p99'] for r in own):.3f}"
            f" | {_mean(own, 'ttft_p99'):.3f} | {counts[0]} : {counts[1]}"
            f" | {np.mean([r['stock']['gap_p99_s'] for r in own]) * 1e3:.1f} |"
        )
    broken = [row for row in rows if misses(row)]
    lines += ["", f"Runs: {len(rows)}; with a bound missed: {len(broken)}.", ""]
    lines += [
        f"- {row['cell']}, seed {row['seed']}, {'async' if row['async'] else 'sync'}:"
        f" {' and '.join(misses(row))} (throughput {row['throughput']:.3f},"
        f" p99 gap {row['gap_p99']:.3f})"
        for row in broken
    ]
    return "\n".join(lines).rstrip() + "\n"


def _mean(rows: Iterable[dict[str, Any]], name: str) -> float:
    return geometric_mean(row[name] for row in rows)


@click.command()
@click.option("--only", help="Part of a cell's name.")
@click.option("--seeds", default="0,1,2", show_default=True)
@click.option("--requests", default=300, show_default=True, type=click.IntRange(2))
@click.option("--workers", default=None, type=click.IntRange(1))
@click.option("--out", default=HERE, type=click.Path(path_type=Path, file_okay=False))
def main(only: str | None, seeds: str, requests: int, workers: int | None, out: Path) -> None:
    """Run every cell, write the results, and say which bound was missed."""
    cells = [cell for cell in CELLS if only is None or only in cell.name]
    if not cells:
        raise click.UsageError(f"--only matches none of {', '.join(c.name for c in CELLS)}.")
    done = kept_rows(out, requests)
    tasks = [
        (pair, (cell, requests, int(seed), asynchronous))
        for cell in cells
        for seed in seeds.split(",")
        for asynchronous in (False, True)
        if (cell.name, int(seed), asynchronous) not in done
    ]
    out.mkdir(parents=True, exist_ok=True)

    def take(number: int, row: dict[str, Any]) -> None:
        row["commit"] = commit(HERE.parent.parent)
        done[row["cell"], row["seed"], row["async"]] = row
        write(out, requests, list(done.values()))
        words = f"{row['cell']}, seed {row['seed']}, async {row['async']}:"
        figures = (f"{name} {row[name]:.3f}" for name in ("throughput", "gap_p99", "ttft_p99"))
        click.echo(f"{words} {', '.join(figures)} {misses(row) or ''}")

    in_parallel(tasks, workers, take, "vllm")
    rows = list(done.values())
    write(out, requests, rows)
    click.echo(markdown(rows))
    sys.exit(1 if any(misses(row) for row in rows) else 0)


def kept_rows(out: Path, requests: int) -> dict[tuple[str, int, bool], dict[str, Any]]:
    """Return the pairs that an earlier run of as many requests left in *out*."""
    path = out / "results.json"
    if not path.exists():
        return {}
    document = json.loads(path.read_text(encoding="utf-8"))
    if document["requests"] != requests:
        raise click.UsageError(
            f"{path} is of {document['requests']} requests a run: delete it, or name another --out."
        )
    return {(row["cell"], row["seed"], row["async"]): row for row in document["rows"]}


def write(out: Path, requests: int, rows: Sequence[dict[str, Any]]) -> None:
    """Write what is measured so far, and the table."""
    document = {
        "schema": 1,
        "gpu": GPU,
        "requests": requests,
        "bounds": {"throughput": THROUGHPUT_WITHIN, "gap_p99": GAPS_WITHIN},
        "rows": rows,
    }
    part = out / "results.json.part"
    part.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    part.replace(out / "results.json")
    (out / "results.md").write_text(markdown(rows), encoding="utf-8")


if __name__ == "__main__":
    main()
