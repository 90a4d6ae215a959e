"""Write results.md from what ``headway paper cacheopt`` measured: python table.py paper-out.

Copies the figures (not the single runs) to results.json beside itself.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from headway.study.experiments import CACHEOPT

HERE = Path(__file__).parent
Row = dict[str, Any]

CLAIMS = {
    "gap p95": ("published 3.29 ×", False),
    "gap p99": ("", False),
    "longest gap": ("", False),
    "TTFT p95": ("published 2.83 ×", False),
    "TTFT attainment": ("published +47 points", True),
    "TBT attainment": ("published +53 points", True),
    "attainment": ("", True),
    "goodput": ("", False),
}
LESS_IS_BETTER = ("gap p95", "gap p99", "longest gap", "TTFT p95", "normalised latency")


def table(rows: Sequence[Row]) -> list[str]:
    """Return one table a workload: policies by rates, with the spread over seeds."""
    lines: list[str] = []
    for workload in dict.fromkeys(r["workload"] for r in rows):
        lines += [
            f"### {workload}",
            "",
            "| policy | rate | kept (least–most) | TTFT kept | gaps kept | TTFT p95 | gap p95"
            " | gap p99 | longest gap | preempted |",
            "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
        ]
        here = [r for r in rows if r["workload"] == workload]
        for r in sorted(here, key=lambda r: (r["rate_rps"], -r["attainment"])):
            seeds = r["attainment_per_seed"]
            lines.append(
                f"| {r['policy']} | {r['rate_rps']:g}/s"
                f" | {r['attainment']:.3f} ({min(seeds):.2f}–{max(seeds):.2f})"
                f" | {r['TTFT attainment']:.3f} | {r['TBT attainment']:.3f}"
                f" | {r['TTFT p95']:.2f} s | {1000 * r['gap p95']:.0f} ms"
                f" | {1000 * r['gap p99']:.0f} ms | {r['longest gap']:.1f} s"
                f" | {r['preemptions']:.0f} |"
            )
        lines.append("")
    return lines


def against_each(rows: Sequence[Row], ours: str, baselines: Sequence[str]) -> list[str]:
    """Return our largest gain over each baseline, and over the best of them, per figure."""
    at = {(r["policy"], r["workload"], r["rate_rps"]): r for r in rows}
    loads = sorted({(r["workload"], r["rate_rps"]) for r in rows})
    lines = [
        "| figure | " + " | ".join(baselines) + " | the best of them |",
        "|---|" + "---:|" * (len(baselines) + 1),
    ]
    for figure, (claim, is_share) in CLAIMS.items():
        cells = []
        for group in [[b] for b in baselines] + [list(baselines)]:
            best = max((_gain(at, figure, is_share, ours, group, load), load) for load in loads)
            unit = f"{best[0]:+.0f} points" if is_share else f"{best[0]:.2f} ×"
            cells.append(f"{unit} ({best[1][0]}, {best[1][1]:g}/s)")
        name = f"{figure} ({claim})" if claim else figure
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _gain(
    at: dict[Any, Row], figure: str, is_share: bool, ours: str, group: Sequence[str], load: Any
) -> float:
    mine = at[ours, *load][figure]
    theirs = [at[b, *load][figure] for b in group]
    if is_share:
        return 100.0 * (mine - max(theirs))
    if figure in LESS_IS_BETTER:
        return min(theirs) / max(mine, 1e-9)
    return mine / max(*theirs, 1e-9)


def changes(rows: Sequence[Row], base: str) -> list[str]:
    """Return what each variant keeps beside *base*, in points, by workload."""
    loads = list(dict.fromkeys((r["workload"], r["rate_rps"]) for r in rows))
    kept = {(r["policy"], r["workload"], r["rate_rps"]): r for r in rows}
    head = " | ".join(f"{w}, {rate:g}/s" for w, rate in loads)
    lines = [f"| variant | {head} |", "|---|" + "---:|" * len(loads)]
    for policy in dict.fromkeys(r["policy"] for r in rows):
        own = "headway" if policy.startswith("headway") else base
        cells = []
        for load in loads:
            r = kept[policy, *load]
            delta = (
                100 * (r["attainment"] - kept[own, *load]["attainment"])
                if (own, *load) in kept
                else None
            )
            change = f" ({delta:+.1f})" if delta is not None and policy != own else ""
            cells.append(f"{r['attainment']:.3f}{change}, {r['preemptions']:.0f} preempted")
        lines.append(f"| {policy} | " + " | ".join(cells) + " |")
    return lines


@click.command()
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
def main(folder: Path) -> None:
    """Read FOLDER/cacheopt.json and write results.md and results.json."""
    document = json.loads((folder / "cacheopt.json").read_text(encoding="utf-8"))
    shutil.copy(folder / "cacheopt.json", HERE / "results.json")
    lines = ["# Main", "", *table(document["main"]), "# Largest gains of `cacheopt`", ""]
    for ours in ("cacheopt", "headway"):
        lines += [f"`{ours}`:", "", *against_each(document["main"], ours, CACHEOPT.baselines), ""]
    lines += ["# Capacity: the highest rate with 90 % kept, requests/s", ""]
    for workload, kept in document["capacity_at_90"].items():
        ordered = sorted(kept.items(), key=lambda item: -item[1])
        lines.append(f"{workload}: " + ", ".join(f"{name} {rate:.2f}" for name, rate in ordered))
        lines.append("")
    if "ablation" in document:
        lines += ["# Ablation", "", *changes(document["ablation"], "cacheopt"), ""]
    if "sensitivity" in document:
        both = [r for r in document.get("ablation", []) if r["policy"] == "cacheopt"]
        lines += ["# Sensitivity", "", *changes([*both, *document["sensitivity"]], "cacheopt"), ""]
    (HERE / "results.md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
