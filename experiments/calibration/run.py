"""Question: is a promise kept as often as was expected when it started?

Every ground at a light load, at what it keeps, at one and a half times that and at twice that, with
a short KV cache and a whole one, on Headway's simulator with 5 % noise: chances told when requests
start against the share kept, by decile. Writes results.json and results.md beside itself.

    python experiments/calibration/run.py
    python experiments/calibration/run.py --only retrieval --seed 1 --dry
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from headway.metrics.deciles import ENOUGH
from headway.study.spec import Load, Machine, RunSpec
from headway.study.sweep import in_parallel
from headway.study.virtual_run import execute

HERE = Path(__file__).parent
GOAL = 0.05
"""How far told and kept may be apart."""

SHORT_TOKENS = 41_408

RATES: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "mixed": ((5.5, 11, 16, 22), (8, 16, 24, 32)),
    "retrieval": ((4.7, 9.5, 14, 19), (5, 10, 15, 20)),
    "long-outputs": ((1.2, 1.8, 2.4, 3.6), (3, 6, 9, 12)),
    "sharegpt-turn": ((10, 20, 30, 40), (20, 40, 60, 80)),
    "azure-chat": ((4, 8, 12, 16), (10, 20, 30, 40)),
}
"""Requests a second by ground, with a short KV cache and with a whole one."""

FEWER: dict[tuple[str, int | None], int] = {("long-outputs", SHORT_TOKENS): 1000}
"""Requests where a run takes minutes."""


def specs(requests: int, seed: int, only: str) -> Iterator[RunSpec]:
    """Yield every run."""
    for source, by_cache in RATES.items():
        for kv_tokens, rates in zip((SHORT_TOKENS, None), by_cache, strict=True):
            for rate in rates if only in source else ():
                number = min(FEWER.get((source, kv_tokens), requests), requests)
                machine = Machine("llama-3.1-8b@h100", kv_tokens=kv_tokens, noise=0.05)
                yield RunSpec("headway", "sim", Load(source, rate, number, seed), machine)


def measure(spec: RunSpec) -> dict[str, Any]:
    """Return what one run says of itself."""
    run = execute(spec).run
    return {
        "ground": spec.load.source,
        "kv": "short" if spec.machine.kv_tokens else "whole",
        "rate_rps": spec.load.rate_rps,
        "attainment": run["attainment"],
        "calibration": run["calibration"],
    }


def beyond_by_chance(told: float, num: int) -> float:
    """Return how likely the share kept of *num* requests is beyond the goal if *told* is right."""
    deviation = math.sqrt(max(told * (1.0 - told), 1e-9) / num)
    return math.erfc(GOAL / deviation / math.sqrt(2.0))


def markdown(rows: Sequence[dict[str, Any]], seed: int) -> str:
    """Return the table, a row a decile with enough requests."""
    lines = [
        "| ground | KV | requests/s | kept of all | told | kept of them | requests | off, points |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    judged: list[tuple[float, float]] = []
    for row in rows:
        for one in row["calibration"]:
            if one["num"] < ENOUGH:
                continue
            off = one["kept"] - one["told"]
            judged.append((abs(off), beyond_by_chance(one["told"], one["num"])))
            shown = f"{100 * off:+.1f}"
            lines.append(
                f"| {row['ground']} | {row['kv']} | {row['rate_rps']:g} | {row['attainment']:.3f}"
                f" | {one['told']:.3f} | {one['kept']:.3f} | {one['num']}"
                f" | {f'**{shown}**' if abs(off) > GOAL else shown} |"
            )
    missed = sum(off > GOAL for off, _ in judged)
    by_chance = sum(chance for _, chance in judged)
    lines += [
        "",
        f"Seed {seed}. {len(judged)} deciles with {ENOUGH} requests or more, {missed} of them"
        f" further off than {100 * GOAL:.0f} points; told the exact chances, {by_chance:.1f} would"
        " be expected to be, by luck alone.",
        "",
    ]
    return "\n".join(lines)


@click.command()
@click.option("--requests", default=1500, show_default=True, help="How many a run.")
@click.option("--seed", default=0, show_default=True)
@click.option("--only", default="", help="Grounds whose name holds this.")
@click.option("--workers", default=None, type=int)
@click.option("--dry", is_flag=True, help="Write nothing.")
def main(requests: int, seed: int, only: str, workers: int | None, dry: bool) -> None:
    """Measure every load."""
    tasks = [(measure, (spec,)) for spec in specs(requests, seed, only)]
    rows: list[dict[str, Any]] = in_parallel(
        tasks, workers, lambda i, row: click.echo(json.dumps(row)), "sim"
    )
    table = markdown(rows, seed)
    click.echo(table)
    if not dry:
        document = {"schema": 1, "requests": requests, "seed": seed, "rows": rows}
        (HERE / "results.md").write_text(table)
        (HERE / "results.json").write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
