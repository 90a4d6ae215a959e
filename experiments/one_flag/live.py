"""Question: what does the one flag cost a real server, for traffic that promises nothing?

Two servers of the same model on the same machine, plain vLLM and plain vLLM with ``--scheduler-cls
headway.vllm.SyncScheduler`` (the CPU engine schedules when a step has ended), take turns A B B A;
while one is asked the other has nothing to do. A turn is a closed loop: so many clients, each
sending its next prompt when the last is answered. Once with room for everybody, once with a cache
that is too small for them. A round's ratio is of its two turns each, so a machine that gets slower
or faster touches both alike. Bounds: tokens a second within 2 % of stock's, the 99th percentile of
the gaps no longer; over rounds by the median.

    python experiments/one_flag/live.py [--quick] [--rounds 4] [--results FOLDER]

A finished round is a file and is not run again. About 25 minutes on two cores; ``--quick`` 4.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import click
import numpy as np

from headway.bench.client import Call, RunClock, send
from headway.bench.provenance import commit, machine
from headway.bench.server import LiveServer, stop_on_signals
from headway.errors import HeadwayError
from headway.metrics.define import gaps_s
from headway.metrics.record import RequestRecord
from headway.slo import NO_PROMISE
from headway.workloads.realtext import made_up_prompt

HERE = Path(__file__).parent
STOCK = ("smollm2", "--policy", "stock", "--block-size", "32", "--max-model-len", "2048")
"""``--policy stock`` hands every argument to vLLM as it is; nothing of Headway is in it."""

OUTPUT_TOKENS = 48
CLIENTS = 12
SIZES = {"roomy": (), "pressed": ("--num-gpu-blocks-override", "96")}
"""KV cache: 23,000 tokens; 3,000 tokens, where twelve clients with 350 each want 4,200."""

TURNS = ("stock", "headway", "headway", "stock")
TIMEOUT_S = 300.0


@dataclass(frozen=True, slots=True)
class Turn:
    """What the clients of one turn saw."""

    tokens_per_s: float
    gap_p50_s: float
    gap_p99_s: float
    ttft_p99_s: float


def calls(num_calls: int, seed: int) -> Iterator[Call]:
    """Yield prompts of 100 to 500 tokens that are answered with exactly ``OUTPUT_TOKENS``."""
    rng = np.random.default_rng(seed)
    for i in range(num_calls):
        num_tokens = int(rng.integers(100, 500))
        body = {
            "model": "smollm2",
            "messages": [
                {"role": "user", "content": made_up_prompt(num_tokens, seed * 10_000 + i)}
            ],
            "max_tokens": OUTPUT_TOKENS,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "return_token_ids": True,
        }
        yield Call(f"s{seed}-{i}", 0.0, NO_PROMISE, body, num_tokens)


async def closed_loop(url: str, pending: Iterator[Call], num_clients: int) -> list[RequestRecord]:
    """Let *num_clients* clients work through *pending*, one request at a time each."""
    records: list[RequestRecord] = []
    clock = RunClock()

    async def client(session: aiohttp.ClientSession) -> None:
        for call in pending:
            records.append((await send(session, url, call, clock, TIMEOUT_S)).record)

    async with aiohttp.ClientSession(read_bufsize=2**20) as session:
        await asyncio.gather(*(client(session) for _ in range(num_clients)))
    return records


def measure(url: str, num_calls: int, seed: int) -> Turn:
    """Run one turn.

    Raises:
        HeadwayError: A request was not answered in full.
    """
    records = asyncio.run(closed_loop(url, calls(num_calls, seed), CLIENTS))
    for record in records:
        if len(record.emitted_at_s) != OUTPUT_TOKENS:
            raise HeadwayError(
                f"{record.id} got {len(record.emitted_at_s)} tokens: {record.detail}"
            )
    gaps = np.concatenate([gaps_s(r.emitted_at_s) for r in records])
    began_s = min(r.sent_at_s or 0.0 for r in records)
    ended_s = max(r.emitted_at_s[-1] for r in records)
    waits = [r.emitted_at_s[0] - (r.sent_at_s or 0.0) for r in records]
    return Turn(
        len(records) * OUTPUT_TOKENS / (ended_s - began_s),
        float(np.quantile(gaps, 0.5)),
        float(np.quantile(gaps, 0.99)),
        float(np.quantile(waits, 0.99)),
    )


def play_round(urls: Mapping[str, str], number: int, num_calls: int) -> dict[str, Any]:
    """Return the four turns of one round and their ratios, ours to stock's.

    Both are asked the same, and nobody the same twice: the prefix cache would know it.
    """
    seen: dict[str, list[Turn]] = {"stock": [], "headway": []}
    for who in TURNS:
        turns = seen[who]
        turns.append(measure(urls[who], num_calls, seed=2 * number + len(turns)))
    ratios = {
        name: _mean(seen["headway"], name) / _mean(seen["stock"], name)
        for name in ("tokens_per_s", "gap_p50_s", "gap_p99_s", "ttft_p99_s")
    }
    return {
        "round": number,
        "calls": num_calls,
        "ratios": ratios,
        **{who: [{n: getattr(t, n) for n in t.__slots__} for t in seen[who]] for who in seen},
    }


def _mean(turns: Sequence[Turn], name: str) -> float:
    return statistics.mean(getattr(turn, name) for turn in turns)


def run_size(size: str, rounds: int, num_calls: int, results: Path) -> None:
    """Start both servers and play the rounds of *size* that have no file."""
    missing = [n for n in range(1, rounds + 1) if not _path(results, size, n, num_calls).exists()]
    if not missing:
        return
    flag = ("--scheduler-cls", "headway.vllm.SyncScheduler")
    with ExitStack() as stack:
        urls = {
            who: stack.enter_context(
                LiveServer([*STOCK, *SIZES[size], *extra], results / "logs" / f"{size}-{who}.log")
            ).url
            for who, extra in (("stock", ()), ("headway", flag))
        }
        for who in urls:
            measure(urls[who], CLIENTS, seed=1_000_003)  # Warm up; not counted.
        for number in missing:
            row: dict[str, Any] = {
                "size": size,
                "commit": commit(HERE.parent.parent),
                "machine": machine(),
            }
            row |= play_round(urls, number, num_calls)
            path = _path(results, size, number, num_calls)
            path.write_text(json.dumps(row, indent=1) + "\n", encoding="utf-8")
            shown = ", ".join(f"{k} {v:.3f}" for k, v in row["ratios"].items())
            click.echo(f"{size}, round {number}: {shown}")


def _path(results: Path, size: str, number: int, num_calls: int) -> Path:
    return results / f"{size}__n{num_calls}__{number}.json"


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the medians of the ratios over rounds, with the least and the greatest."""
    lines = [
        "| cache | rounds | tokens a second | p50 gap | p99 gap | p99 TTFT | stock's tokens/s |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for size, group in itertools.groupby(rows, key=lambda row: row["size"]):
        own = list(group)
        cells = []
        for name in ("tokens_per_s", "gap_p50_s", "gap_p99_s", "ttft_p99_s"):
            ratios = [row["ratios"][name] for row in own]
            middle = statistics.median(ratios)
            cells.append(f"{middle:.3f} ({min(ratios):.3f} to {max(ratios):.3f})")
        speed = statistics.mean(t["tokens_per_s"] for row in own for t in row["stock"])
        lines.append(f"| {size} | {len(own)} | {' | '.join(cells)} | {speed:.1f} |")
    return "\n".join([*lines, "", "Headway over stock; median, least and greatest.", ""])


@click.command()
@click.option("--rounds", default=4, show_default=True, type=click.IntRange(1))
@click.option("--calls", "num_calls", default=48, show_default=True, type=click.IntRange(1))
@click.option("--quick", is_flag=True, help="One round of 24 calls with room for everybody.")
@click.option("--results", default=HERE / "results", type=click.Path(path_type=Path))
def main(rounds: int, num_calls: int, quick: bool, results: Path) -> None:
    """Play what is missing, then write the table."""
    stop_on_signals()
    results.mkdir(parents=True, exist_ok=True)
    if quick:
        rounds, num_calls = 1, 24
    for size in ["roomy"] if quick else SIZES:
        run_size(size, rounds, num_calls, results)
    rows = [
        json.loads(path.read_text(encoding="utf-8"))
        for size in SIZES
        for path in sorted(results.glob(f"{size}__n{num_calls}__*.json"))
    ]
    text = markdown(rows)
    if not quick:
        (HERE / "live.md").write_text(text, encoding="utf-8")
        document = {"schema": 1, "rounds": rows}
        (HERE / "live.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    click.echo(text)


if __name__ == "__main__":
    main()
