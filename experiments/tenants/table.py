"""Write results.md from results.json: what the four keep, what equal shares cost, who waits."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from headway.study.named_rows import Rows, by_case

HERE = Path(__file__).parent
LEAST_OF_ALONE = 0.95
MOST_COST = 0.02
MOST_TIMES_STOCK = 1.5
"""What was asked: of the four beside a flooder, of five equal tenants, of first tokens."""


def cases(rows: Rows, kind: str) -> dict[tuple[str, ...], list[Rows]]:
    """Return the rows of one kind by all of their names but the seed, which they say."""
    return {
        case: [{**row, "seed": seed} for seed, row in found.items()]
        for case, found in by_case(rows, kind).items()
    }


def mean(rows: Sequence[Rows], name: str) -> float:
    """Return the mean of one figure over seeds."""
    return float(np.mean([row[name] for row in rows]))


def bold(text: str, is_missed: bool) -> str:
    """Return *text*, bold where it is a miss."""
    return f"**{text}**" if is_missed else text


def floods(rows: Rows) -> Iterator[str]:
    """Yield what the four keep beside each kind of flooder."""
    yield "## Four beside one at five times the capacity"
    yield ""
    yield "| flooder | ground | mode | seeds | alone | beside | of alone | worst seed | flooder |"
    yield "|---|---|---|---:|---:|---:|---:|---:|---:|"
    alone = {key: row["quiet"] for key, row in rows.items() if key.startswith("alone|")}
    num, num_missed = 0, 0
    for (kind, ground, mode), found in sorted(cases(rows, "flood").items()):
        before = [alone[f"alone|{ground}|{mode}|{row['seed']}"] for row in found]
        parts = [row["quiet"] / was for row, was in zip(found, before, strict=True)]
        part = mean(found, "quiet") / float(np.mean(before))
        num += kind != "one tenant"
        num_missed += kind != "one tenant" and part < LEAST_OF_ALONE
        own = "–" if kind == "no promise" else f"{mean(found, 'flood'):.3f}"
        yield (
            f"| {kind} | {ground} | {mode} | {len(found)} | {np.mean(before):.3f}"
            f" | {mean(found, 'quiet'):.3f} | {bold(f'{part:.3f}', part < LEAST_OF_ALONE)}"
            f" | {bold(f'{min(parts):.3f}', min(parts) < LEAST_OF_ALONE)} | {own} |"
        )
    yield ""
    yield f"{num} cases with accounts, {num_missed} below {LEAST_OF_ALONE:g} in the mean of seeds."
    yield ""


def equals(rows: Rows) -> Iterator[str]:
    """Yield what equal shares cost where nobody floods."""
    yield "## Five equal tenants"
    yield ""
    yield "| ground | load | seeds | one tenant | five | points | worst seed | least to most kept |"
    yield "|---|---:|---:|---:|---:|---:|---:|---:|"
    for (times, ground), found in sorted(cases(rows, "equal").items(), key=lambda c: c[0][::-1]):
        cost = mean(found, "one") - mean(found, "five")
        worst = max(row["one"] - row["five"] for row in found)
        yield (
            f"| {ground} | {times} × | {len(found)} | {mean(found, 'one'):.3f}"
            f" | {mean(found, 'five'):.3f} | {bold(f'{-100 * cost:+.1f}', cost > MOST_COST)}"
            f" | {-100 * worst:+.1f} | {mean(found, 'least'):.2f} to {mean(found, 'most'):.2f} |"
        )
    yield ""


def halves(rows: Rows) -> Iterator[str]:
    """Yield when those without a promise see their first token, and what the others keep."""
    yield "## Half without a promise, at 1.3 times the capacity"
    yield ""
    yield "First tokens of requests without a promise, p50 and p95; kept of the others."
    yield ""
    yield "| ground | seeds | stock | `fair` | times stock's | `last` | kept: stock | `fair` | `last` |"  # fmt: skip  # noqa: E501
    yield "|---|---:|---:|---:|---:|---:|---:|---:|---:|"
    found = cases(rows, "half")
    for ground in dict.fromkeys(ground for _, ground in found):
        ways = {way: found[way, ground] for way in ("stock", "fair", "last")}
        if len({len(one) for one in ways.values()}) > 1:
            continue
        p50, p95 = (
            {way: mean(one, name) for way, one in ways.items()} for name in ("p50_s", "p95_s")
        )
        times = [p["fair"] / p["stock"] for p in (p50, p95)]
        cells = {way: f"{p50[way]:.2f}, {p95[way]:.2f} s" for way in ways}
        ratio = ", ".join(bold(f"{t:.2f}", t > MOST_TIMES_STOCK) for t in times)
        kept = " | ".join(f"{mean(one, 'kept'):.3f}" for one in ways.values())
        yield (
            f"| {ground} | {len(ways['fair'])} | {cells['stock']} | {cells['fair']} | {ratio}"
            f" | {cells['last']} | {kept} |"
        )
    yield ""


def others(rows: Rows) -> Iterator[str]:
    """Yield shares of two to one, and the constants."""
    yield "## Shares of two to one, each sending twice the capacity"
    yield ""
    yield "| ground | seeds | share 2 keeps | share 1 keeps | times |"
    yield "|---|---:|---:|---:|---:|"
    for (ground,), found in cases(rows, "shares").items():
        two, one = mean(found, "two"), mean(found, "one")
        yield f"| {ground} | {len(found)} | {two:.3f} | {one:.3f} | {two / max(one, 1e-9):.2f} |"
    yield ""
    yield "## Constants"
    yield ""
    yield "What the four keep beside a flooder and one in bursts; kept of five equal at 1.5 times;"
    yield "how many times as much a double share keeps."
    yield ""
    yield "| constant | ground | seeds | flooder | bursts | five equal | share 2 over 1 |"
    yield "|---|---|---:|---:|---:|---:|---:|"
    for (label, ground), found in sorted(
        cases(rows, "constant").items(), key=lambda c: (c[0][1], c[0][0] != "as it is", c[0][0])
    ):
        cells = " | ".join(f"{mean(found, n):.3f}" for n in ("plain", "bursts", "five"))
        yield f"| {label} | {ground} | {len(found)} | {cells} | {mean(found, 'ratio'):.2f} |"
    yield ""


def main() -> None:
    """Write the tables."""
    rows = json.loads((HERE / "results.json").read_text("utf-8"))
    lines = [line for part in (floods, equals, halves, others) for line in part(rows)]
    (HERE / "results.md").write_text("\n".join(lines), "utf-8")


if __name__ == "__main__":
    main()
