"""Write results.md from results.json, and so for every other result beside it.

What the few and the others kept, by who asked for what.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
WAYS = ("ignored", "served", "ours")


def main() -> None:
    """Write a table a file of results."""
    for path in sorted(HERE.glob("*.json")):
        path.with_suffix(".md").write_text(table(json.loads(path.read_text())))


def table(rows: dict[str, dict[str, float | None]]) -> str:
    """Return the means over seeds, a line a case."""
    cases: dict[tuple[str, ...], dict[str, dict[str, list[float]]]] = defaultdict(dict)
    for key, row in rows.items():
        *case, _, way = key.split("|")
        kept = cases[tuple(case)].setdefault(way, defaultdict(list))
        for name in ("few", "others", "all"):
            if (share := row[name]) is not None:
                kept[name].append(share)
    lines = [
        "# Kept by the few / the others, means over seeds",
        "",
        "| traffic | rate | asked for | share | ignored | served | ours | others lose | off best |",
        "|---|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    num_missed = {"others": 0, "sum": 0}
    for names, ways in sorted(cases.items()):
        mean = {w: {n: float(np.mean(v)) for n, v in ways[w].items()} for w in WAYS if w in ways}
        if set(mean) != set(WAYS):
            continue
        lost = mean["ignored"]["others"] - mean["ours"]["others"]
        off = max(mean[w]["all"] for w in ("ignored", "served")) - mean["ours"]["all"]
        num_missed["others"] += round(lost, 3) > 0.02
        num_missed["sum"] += round(off, 3) > 0.01  # Shares are of whole requests.
        shown = [f"{mean[w].get('few', 0):.2f} / {mean[w]['others']:.3f}" for w in WAYS]
        name, rate, ask, asking = names
        cells = (name, rate, ask, asking, *shown, f"{lost:+.3f}", f"{off:+.3f}")
        lines.append("| " + " | ".join(cells) + " |")
    total = len(lines) - 4
    lines += ["", f"{total} cases; others lose over 0.02 in {num_missed['others']},"]
    lines += [f"the sum is over 0.01 below the better of the two in {num_missed['sum']}."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
