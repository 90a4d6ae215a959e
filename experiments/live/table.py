"""From the runs to the tables: what each kept, and Headway's lead, seed by seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from scipy import stats

Played = dict[str, Any]
"""A run's file."""

NAMES = {
    "demo": "demo: chats, summaries, jobs",
    "chats": "chats of several turns, prefix caching",
}


def best_stock(played: Sequence[Played], ground: str, load: str | None, seed: int) -> str:
    """Return the setting of stock vLLM that kept most on a seed, at a load or over all.

    Only settings that were run at as many loads as any other count.
    """
    kept: dict[str, list[float]] = {}
    for one in played:
        is_it = one["ground"] == ground and one["seed"] == seed and load in (None, one["load"])
        if is_it and one["contender"].startswith("stock-"):
            kept.setdefault(one["contender"], []).append(one["run"]["attainment"])
    most = max(map(len, kept.values()))
    whole = {key: fmean(found) for key, found in kept.items() if len(found) == most}
    return max(whole, key=lambda key: whole[key])


def lead(ours: Sequence[float], theirs: Sequence[float]) -> tuple[float, float]:
    """Return the mean difference over seeds, and half its 95 % interval by Student's t."""
    differences = [a - b for a, b in zip(ours, theirs, strict=True)]
    count = len(differences)
    if count < 2:
        return fmean(differences), math.inf
    half = float(stats.t.ppf(0.975, count - 1)) * stdev(differences) / math.sqrt(count)
    return fmean(differences), half


def write_tables(played: Sequence[Played], folder: Path) -> str:
    """Write results.md, and return it."""
    counted = [one for one in played if one["seed"] < 100]
    lines = ["# Live results", "", "Written by `run.py`; README.md has the question.", ""]
    for ground, load in dict.fromkeys((one["ground"], one["load"]) for one in counted):
        here = [one for one in counted if (one["ground"], one["load"]) == (ground, load)]
        rates = sorted(one["run"]["rate_rps"] for one in here)
        slow = sorted(one["slowness"] for one in here)
        loads = f"{rates[0]:g} to {rates[-1]:g} requests/s"
        longer = f"promises {slow[0]:g} to {slow[-1]:g} times as long"
        lines += [f"## {NAMES[ground]}, {load}", "", f"{loads}, {longer}.", ""]
        lines += [*_table(here), ""]
    facts = {f"{k} {v}" for one in counted for k, v in one["machine"].items()}
    lines += [f"Machine: {', '.join(sorted(facts))}.", "", "```"]
    lines += sorted({one["command"] for one in counted})
    text = "\n".join([*lines, "```", ""])
    (folder / "results.md").write_text(text, encoding="utf-8")
    return text


def _table(here: Sequence[Played]) -> list[str]:
    """Return the lines of a ground at a load."""
    by_key: dict[str, dict[int, Played]] = {}
    for one in here:
        by_key.setdefault(one["contender"], {})[one["seed"]] = one
    rows = [
        "| contender | promises kept | by seed | first token p95, s | gap p99, s"
        " | longest pause p99, s | preempted |",
        "|---|---:|---|---:|---:|---:|---:|",
    ]
    for key, seeds in by_key.items():
        runs = [seeds[seed]["run"] for seed in sorted(seeds)]
        each = ", ".join(f"{100 * run['attainment']:.0f}" for run in runs)
        cells = [
            f"{100 * fmean(run['attainment'] for run in runs):.1f}%",
            each,
            *(f"{_mean(runs, span, q):.2f}" for span, q in SPANS),
            f"{fmean(run['preemptions']['recompute'] or 0 for run in runs):.1f}",
        ]
        rows.append(f"| {key} | " + " | ".join(cells) + " |")
    rows.append("")
    for key in (key for key in by_key if key.startswith("stock")):
        both = sorted(by_key[key].keys() & by_key.get("headway", {}).keys())
        if not both:
            continue
        kept = {k: [by_key[k][s]["run"]["attainment"] for s in both] for k in ("headway", key)}
        mean, half = lead(kept["headway"], kept[key])
        told = f"{100 * mean:+.1f} ± {100 * half:.1f} points"
        rows.append(f"Headway over {key}, the same {len(both)} seeds: {told}.")
    return rows


SPANS = (("ttft_s", "p95"), ("tbt_s", "p99"), ("pause_s", "p99"))


def _mean(runs: Sequence[dict[str, Any]], span: str, quantile: str) -> float:
    return fmean(run[span][quantile] or 0.0 for run in runs)
