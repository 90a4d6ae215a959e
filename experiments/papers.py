"""Write results.md from what ``headway paper NAME`` measured.

    python experiments/papers.py cacheopt paper-out
    python experiments/papers.py accelgen paper-out

Copies the figures (not the single runs) to NAME/results.json beside it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from headway.study.experiments import ACCELGEN, CACHEOPT, Experiment
from headway.study.paper_grid import FIGURES, Figure

HERE = Path(__file__).parent
FIGURE = {figure.label: figure for figure in FIGURES}
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Layout:
    """What is shown of one paper's experiment.

    Attributes:
        columns: Head of a column, and its cell in a row.
        compared: Labels of the figures compared with each baseline.
    """

    experiment: Experiment
    columns: Mapping[str, Callable[[Row], str]]
    compared: Sequence[str]


_KEPT: dict[str, Callable[[Row], str]] = {
    "rate": lambda r: f"{r['rate_rps']:g}/s",
    "kept (least–most)": lambda r: (
        f"{r['attainment']:.3f}"
        f" ({min(r['attainment_per_seed']):.2f}–{max(r['attainment_per_seed']):.2f})"
    ),
    "TTFT kept": lambda r: f"{r['TTFT attainment']:.3f}",
    "gaps kept": lambda r: f"{r['TBT attainment']:.3f}",
}

LAYOUTS = {
    "cacheopt": Layout(
        CACHEOPT,
        {
            **_KEPT,
            "TTFT p95": lambda r: f"{r['TTFT p95']:.2f} s",
            "gap p95": lambda r: f"{1000 * r['gap p95']:.0f} ms",
            "gap p99": lambda r: f"{1000 * r['gap p99']:.0f} ms",
            "longest gap": lambda r: f"{r['longest gap']:.1f} s",
            "preempted": lambda r: f"{r['preemptions']:.0f}",
        },
        (
            "gap p95",
            "gap p99",
            "longest gap",
            "TTFT p95",
            "TTFT attainment",
            "TBT attainment",
            "attainment",
            "goodput",
        ),
    ),
    "accelgen": Layout(
        ACCELGEN,
        {
            **_KEPT,
            "goodput": lambda r: f"{r['goodput']:.2f}/s",
            "output": lambda r: f"{r['throughput']:.0f} tokens/s",
            "latency, normalised": lambda r: f"{r['normalised latency']:.3f} s/token",
            "JCT p50, p95": lambda r: f"{r['JCT p50']:.1f}, {r['JCT p95']:.1f} s",
            "tokens a step": lambda r: f"{r['tokens a step']:.0f}",
            "KV held": lambda r: f"{r['KV held']:.0%}",
            "plan p50": lambda r: (
                f"{r['plan time p50, µs']:.0f} µs" if r["plan time p50, µs"] else "–"
            ),
            "preempted": lambda r: f"{r['preemptions']:.0f}",
        },
        ("throughput", "goodput", "attainment", "normalised latency"),
    ),
}


def table(rows: Sequence[Row], layout: Layout) -> list[str]:
    """Return one table a workload: policies by rates, with the spread over seeds."""
    lines: list[str] = []
    for workload in dict.fromkeys(r["workload"] for r in rows):
        head = " | ".join(layout.columns)
        lines += [f"### {workload}", "", f"| policy | {head} |"]
        lines.append("|---|" + "---:|" * len(layout.columns))
        here = [r for r in rows if r["workload"] == workload]
        for r in sorted(here, key=lambda r: (r["rate_rps"], -r["attainment"])):
            cells = " | ".join(cell(r) for cell in layout.columns.values())
            lines.append(f"| {r['policy']} | {cells} |")
        lines.append("")
    return lines


def against_each(rows: Sequence[Row], ours: str, layout: Layout) -> list[str]:
    """Return our largest gain over each baseline, and over the best of them, per figure."""
    baselines = layout.experiment.baselines
    at = {(r["policy"], r["workload"], r["rate_rps"]): r for r in rows}
    loads = sorted({(r["workload"], r["rate_rps"]) for r in rows})
    lines = [
        "| figure | " + " | ".join(baselines) + " | the best of them |",
        "|---|" + "---:|" * (len(baselines) + 1),
    ]
    for label in layout.compared:
        figure, cells = FIGURE[label], []
        for group in [[b] for b in baselines] + [list(baselines)]:
            best = max((_gain(at, figure, ours, group, load), load) for load in loads)
            unit = f"{best[0]:+.0f} points" if figure.is_share else f"{best[0]:.2f} ×"
            cells.append(f"{unit} ({best[1][0]}, {best[1][1]:g}/s)")
        claim = layout.experiment.published.get(label)
        name = f"{label} (published {claim})" if claim else label
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _gain(at: dict[Any, Row], figure: Figure, ours: str, group: Sequence[str], load: Any) -> float:
    mine = at[ours, *load][figure.label]
    theirs = [at[b, *load][figure.label] for b in group]
    if figure.is_share:
        return 100.0 * (mine - max(theirs))
    if figure.less_is_better:
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
@click.argument("name", type=click.Choice(list(LAYOUTS)))
@click.argument("folder", type=click.Path(path_type=Path, exists=True))
def main(name: str, folder: Path) -> None:
    """Read FOLDER/NAME.json and write NAME/results.md and NAME/results.json."""
    layout = LAYOUTS[name]
    document = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    (HERE / name).mkdir(exist_ok=True)
    shutil.copy(folder / f"{name}.json", HERE / name / "results.json")
    lines = ["# Main", "", *table(document["main"], layout), f"# Largest gains of `{name}`", ""]
    for ours in (name, "headway"):
        lines += [f"`{ours}`:", "", *against_each(document["main"], ours, layout), ""]
    lines += ["# Capacity: the highest rate with 90 % kept, requests/s", ""]
    for workload, kept in document["capacity_at_90"].items():
        ordered = sorted(kept.items(), key=lambda item: -item[1])
        lines.append(
            f"{workload}: " + ", ".join(f"{policy} {rate:.2f}" for policy, rate in ordered)
        )
        lines.append("")
    if "ablation" in document:
        lines += ["# Ablation", "", *changes(document["ablation"], name), ""]
    if "sensitivity" in document:
        both = [r for r in document.get("ablation", []) if r["policy"] == name]
        lines += ["# Sensitivity", "", *changes([*both, *document["sensitivity"]], name), ""]
    for other in layout.experiment.more:
        if other in document:
            lines += [f"# {other}", "", *table(document[other], layout)]
    (HERE / name / "results.md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
