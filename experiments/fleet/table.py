"""Write results.md from results.json: what each routing keeps, and against taking turns."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from headway.study.named_rows import Rows, by_case

HERE = Path(__file__).parent
Cells = Mapping[tuple[str, ...], Mapping[str, Mapping[str, float]]]


def label(router: str, age: str) -> str:
    """Return a column's head; turns and quotes see nothing old."""
    return router if router in ("round-robin", "quote") else f"{router}, {age} s"


def kept(cells: Cells, case: tuple[str, ...]) -> np.ndarray:
    """Return the shares kept, by seed in rising order."""
    return np.array([cells[case][seed]["kept"] for seed in sorted(cells[case], key=int)])


def table(rows: Rows, kind: str, heads: Sequence[str], what: str) -> Iterator[str]:
    """Yield one kind's table: a line a load, a column a router; bold is the best.

    Args:
        heads: What the parts of a case's name say, router and age left out.
    """
    cells: Cells = by_case(rows, kind)
    routers = list(dict.fromkeys(case[-2:] for case in cells))
    yield f"## {what}"
    yield ""
    yield f"| {' | '.join(heads)} | seeds | {' | '.join(label(*one) for one in routers)} |"
    yield f"|{'---|' * len(heads)}---:|{'---:|' * len(routers)}"
    for load in dict.fromkeys(case[:-2] for case in cells):
        found = [kept(cells, (*load, *one)) for one in routers if (*load, *one) in cells]
        if len(found) < len(routers):
            continue
        num = min(len(one) for one in found)
        means = [100 * float(one[:num].mean()) for one in found]
        texts = [f"**{m:.1f}**" if m == max(means) else f"{m:.1f}" for m in means]
        yield f"| {' | '.join(load)} | {num} | {' | '.join(texts)} |"
    yield ""


def gains(rows: Rows) -> Iterator[str]:
    """Yield what quotes gain over what is one second old, and what routing gains over turns."""
    yield "## Quotes against pressure, both at 1 s; the best routing against taking turns"
    yield ""
    yield "Points of kept promises, mean of the seeds and, in brackets, the worst and best of them."
    yield ""
    yield "| kind | case | quote over pressure | quote over prefix | best over turns |"
    yield "|---|---|---:|---:|---:|"
    for kind in ("plain", "refuse", "cached", "many"):
        cells: Cells = by_case(rows, kind)
        for load in dict.fromkeys(case[:-2] for case in cells):
            quote, turns = (*load, "quote", "1"), (*load, "round-robin", "0")
            if quote not in cells or turns not in cells:
                continue
            others = [(*load, name, "1") for name in ("pressure", "prefix")]
            texts = [over(cells, quote, other) for other in others]
            same = [case for case in cells if case[:-2] == load]
            best = max(same, key=lambda case: float(kept(cells, case).mean()))
            name = label(*best[-2:])
            yield (
                f"| {kind} | {', '.join(load)} | {' | '.join(texts)}"
                f" | {over(cells, best, turns)} {name} |"
            )
    yield ""


def over(cells: Cells, one: tuple[str, ...], other: tuple[str, ...]) -> str:
    """Return by how many points *one* keeps more than *other*, seed by seed."""
    if other not in cells:
        return "–"
    seeds = sorted(set(cells[one]) & set(cells[other]), key=int)
    points = np.array([100 * (cells[one][s]["kept"] - cells[other][s]["kept"]) for s in seeds])
    return f"{points.mean():+.1f} ({points.min():+.1f} to {points.max():+.1f})"


def retries(rows: Rows) -> Iterator[str]:
    """Yield what became of refused requests that were tried at one more server."""
    cells: Cells = by_case(rows, "refuse")
    yield "## Refused, and tried at one more server"
    yield ""
    yield "| fleet | router | kept without | kept with | tried elsewhere | of them kept |"
    yield "|---|---|---:|---:|---:|---:|"
    for fleet, num, *router in cells:
        without = (fleet, "0", *router)
        if num != "1" or without not in cells:
            continue
        found = list(cells[fleet, num, *router].values())
        tried = sum(row["elsewhere"] for row in found)
        saved = sum(row["saved"] for row in found)
        pair = [100 * float(kept(cells, (fleet, n, *router)).mean()) for n in ("0", "1")]
        yield (
            f"| {fleet} | {label(*router)} | {pair[0]:.1f} | {pair[1]:.1f} | {tried}"
            f" | {saved / max(tried, 1):.0%} |"
        )
    yield ""


def varied(rows: Rows) -> Iterator[str]:
    """Yield what each value of a router's constant keeps."""
    cells: Cells = by_case(rows, "varied")
    yield "## Constants of the routers, at 1.3 times and an age of 1 s: kept, %"
    yield ""
    yield "| constant | workload | fleet | kept, by value |"
    yield "|---|---|---|---|"
    for load in dict.fromkeys(case[:-1] for case in cells):
        values = [case[-1] for case in cells if case[:-1] == load]
        texts = [
            f"{value}: {100 * float(kept(cells, (*load, value)).mean()):.1f}" for value in values
        ]
        yield f"| `{load[0]}` | {load[1]} | {load[2]} | {', '.join(texts)} |"
    yield ""


def main() -> None:
    """Write the tables."""
    rows = json.loads((HERE / "results.json").read_text("utf-8"))
    kinds = (
        ("plain", ("fleet", "load"), "Eight servers, mixed: kept, %"),
        ("refuse", ("fleet", "retries"), "The same at twice the load, refusing: kept, %"),
        ("cached", ("workload", "fleet", "load"), "Eight servers, prompts cached: kept, %"),
        ("many", ("fleet",), "64 servers, mixed at 1.3 times: kept, %"),
    )
    lines = ["# Fleets", ""]
    for kind, heads, what in kinds:
        lines += table(rows, kind, heads, what)
    lines += [*gains(rows), *retries(rows), *varied(rows)]
    (HERE / "results.md").write_text("\n".join(lines), "utf-8")


if __name__ == "__main__":
    main()
