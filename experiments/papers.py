"""Write results.md, and the table of docs/papers.md, from what ``headway paper NAME`` measured.

    python experiments/papers.py cacheopt paper-out
    python experiments/papers.py accelgen paper-out

Copies the figures (not the single runs) to NAME/results.json beside it. Without a folder everything
is written again from the figures kept there.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from headway.metrics.define import PLAIN, definition_of
from headway.study import claims_table
from headway.study.claims import Verdict
from headway.study.experiments import ACCELGEN, CACHEOPT, Experiment
from headway.study.gains import Gain, Unit, largest
from headway.study.paper_grid import FIGURE, Row

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "papers.md"
NOTHING = claims_table.NOTHING


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


def _or_dash(row: Row, label: str, form: str) -> str:
    value = row.get(label)
    return NOTHING if value is None else form.format(value)


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
            "longest gap p95": lambda r: _or_dash(r, "longest gap of a request, p95", "{:.2f} s"),
            "mean gap p95": lambda r: _or_dash(r, "mean gap of a request, p95", "{:.3f} s"),
            "longest gap": lambda r: f"{r['longest gap']:.1f} s",
            "preempted": lambda r: f"{r['preemptions']:.0f}",
        },
        (
            "gap p95",
            "gap p99",
            "longest gap of a request, p95",
            "mean gap of a request, p95",
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
    lines = [
        "| figure | " + " | ".join(baselines) + " | the best of them |",
        "|---|" + "---:|" * (len(baselines) + 1),
    ]
    for label in layout.compared:
        figure, cells = FIGURE[label], []
        for group in [[b] for b in baselines] + [list(baselines)]:
            unit: Unit = "points" if figure.is_share else "factor"
            best = largest(rows, figure, unit, ours, group)
            cells.append(NOTHING if best is None else _largest(best, unit))
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return lines


def _largest(gain: Gain, unit: Unit) -> str:
    amount = f"{gain.gain:+.0f} points" if unit == "points" else f"{gain.gain:.2f} ×"
    return f"{amount} ({gain.workload}, {gain.rate_rps:g}/s)"


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


def claims_lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows of verdicts as a table."""
    head = [f"| {' | '.join(claims_table.HEAD)} |", "|---|---|---:|---|---|---|---|"]
    return [*head, *(f"| {' | '.join(row)} |" for row in rows)]


def verdicts_of(document: Mapping[str, Any], experiment: Experiment) -> list[Verdict]:
    """Return the verdicts on the claims; of old figures, gaps kept are those by the old reading."""
    tables = {name: document[name] for name in experiment.tables() if name in document}
    if definition_of(document) == PLAIN:
        for name, rows in tables.items():
            tables[name] = [
                {_OLD.get(label, label): value for label, value in row.items()} for row in rows
            ]
    return experiment.verdicts(tables)


_OLD = {"TBT attainment": "TBT attainment, plain"}


def provenance(document: Mapping[str, Any], experiment: Experiment) -> list[str]:
    """Return what must be known of the figures in *document*, a sentence each."""
    seeds = ", ".join(str(seed) for seed in document["seeds"])
    said = [f"Seeds {seeds}. The day's baselines: {', '.join(experiment.of_their_day)}."]
    if definition_of(document) == PLAIN:
        said.append(
            "**These are the runs kept so far.** They were made before"
            " [decision 10](decisions/0010-no-freeze-is-kept.md): a gap promise was kept by 99 % of"
            " the gaps alone, and some figures were not counted yet."
        )
    played = {row["policy"] for row in document["main"]}
    rivals = (*experiment.of_their_day, *experiment.of_today)
    missing = [f"`{name}`" for name in rivals if name not in played]
    for verdict in verdicts_of(document, experiment):
        names = [one.reading.name for one in verdict.findings if one.outcome is None]
        if names and verdict.policy == experiment.ours:
            missing.append(f"{verdict.claim.text} ({', '.join(names)})")
    if missing:
        said.append(f"Not in these runs: {'; '.join(missing)}.")
    return said


def with_verdicts(page: str, document: Mapping[str, Any], experiment: Experiment) -> str:
    """Return the text of *page* with the verdicts between the marks of *experiment*."""
    first, last = f"<!-- {experiment.name} -->", f"<!-- /{experiment.name} -->"
    rows = claims_table.cells(verdicts_of(document, experiment))
    lines = [*claims_lines(rows), "", *provenance(document, experiment)]
    before, _, rest = page.partition(first)
    return "\n".join([f"{before}{first}", "", *lines, "", last + rest.partition(last)[2]])


@click.command()
@click.argument("name", type=click.Choice(list(LAYOUTS)))
@click.argument("folder", required=False, type=click.Path(path_type=Path, exists=True))
def main(name: str, folder: Path | None) -> None:
    """Read FOLDER/NAME.json and write NAME/results.md, NAME/results.json and docs/papers.md."""
    layout = LAYOUTS[name]
    (HERE / name).mkdir(exist_ok=True)
    if folder is not None:
        shutil.copy(folder / f"{name}.json", HERE / name / "results.json")
    document = json.loads((HERE / name / "results.json").read_text(encoding="utf-8"))
    (HERE / name / "results.md").write_text("\n".join(results(document, layout)), encoding="utf-8")
    page = with_verdicts(PAGE.read_text(encoding="utf-8"), document, layout.experiment)
    PAGE.write_text(page, encoding="utf-8")


def results(document: Mapping[str, Any], layout: Layout) -> list[str]:
    """Return the lines of results.md."""
    name = layout.experiment.name
    found = verdicts_of(document, layout.experiment)
    lines = ["# Claims, by every reading", ""]
    lines += [*claims_lines(claims_table.reading_cells(found)), ""]
    lines += ["# Main", "", *table(document["main"], layout)]
    lines += [f"# Largest gains of `{name}`", ""]
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
    return lines


if __name__ == "__main__":
    main()
