"""From result files to the table: means and spreads over seeds, and who is best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

Document = dict[str, Any]


def contender_key(document: Document) -> str:
    """Return whose result it is."""
    return str(document["contender"])


def best_at(
    documents: Sequence[Document], rate_rps: float | None, seeds: Sequence[int]
) -> str | None:
    """Return the stock setting with the best mean attainment at a rate (``None``: at all rates).

    Only the sweep's seeds count, so that settings which were run more often have no advantage,
    and only settings that were run everywhere the others were.
    """
    runs = [
        d
        for d in documents
        if contender_key(d).startswith("stock")
        and d["run"]["seed"] in seeds
        and rate_rps in (None, d["run"]["rate_rps"])
    ]
    by_key: dict[str, list[Document]] = {}
    for document in runs:
        by_key.setdefault(contender_key(document), []).append(document)
    most = max((len(found) for found in by_key.values()), default=0)
    scores = {
        key: (_mean(found, "attainment"), _mean(found, "goodput_rps"))
        for key, found in by_key.items()
        if len(found) == most
    }
    return max(scores, key=lambda key: scores[key]) if scores else None


def best_overall(documents: Sequence[Document], seeds: Sequence[int]) -> str | None:
    """Return the one stock setting that is best over all swept rates."""
    return best_at(documents, None, seeds)


def _mean(documents: Sequence[Document], name: str) -> float:
    return fmean(d["run"][name] or 0.0 for d in documents)


def table_of(documents: Sequence[Document]) -> list[dict[str, Any]]:
    """Return one row a contender and rate: mean, min and max over seeds of the main figures."""
    groups: dict[tuple[float, str], list[Document]] = {}
    for document in documents:
        key = (document["run"]["rate_rps"], contender_key(document))
        groups.setdefault(key, []).append(document)
    rows = []
    for (rate_rps, key), found in sorted(groups.items()):
        runs = [document["run"] for document in found]
        rows.append(
            {
                "contender": key,
                "rate_rps": rate_rps,
                "seeds": sorted(run["seed"] for run in runs),
                "attainment": spread(runs, lambda run: run["attainment"]),
                "per_class": {
                    name: spread(runs, lambda run, n=name: run["per_class"][n]["attainment"])  # type: ignore[misc]
                    for name in runs[0]["per_class"]
                },
                "goodput_rps": spread(runs, lambda run: run["goodput_rps"]),
                "ttft_p95_s": spread(runs, lambda run: run["ttft_s"]["p95"]),
                "tbt_p99_s": spread(runs, lambda run: run["tbt_s"]["p99"]),
                "preemptions": spread(runs, lambda run: run["preemptions"]["recompute"]),
                "client_lag_p99_s": spread(runs, lambda run: run["client_lag_s"]["send"]["p99"]),
                "command": runs[0]["command"],
            }
        )
    return rows


def spread(
    runs: Sequence[dict[str, Any]], value: Callable[[dict[str, Any]], float | None]
) -> dict[str, float] | None:
    """Return mean, min and max of what is known; ``None`` when nothing is."""
    known = [found for run in runs if (found := value(run)) is not None]
    if not known:
        return None
    return {"mean": fmean(known), "min": min(known), "max": max(known)}


def markdown(
    table: Sequence[dict[str, Any]], documents: Sequence[Document], sweep_seeds: Sequence[int]
) -> str:
    """Return the results as a page."""
    facts = documents[-1]["machine"]
    lines = [
        "# Live results",
        "",
        "Written by `run.py`; see README.md for the question and how to repeat it.",
        f"Machine: {', '.join(f'{k} {v}' for k, v in facts.items())}.",
        f"Commits: {', '.join(sorted({str(d['commit']) for d in documents}))}.",
        "",
    ]
    for rate_rps in sorted({row["rate_rps"] for row in table}):
        rows = [row for row in table if row["rate_rps"] == rate_rps]
        best = best_at(documents, rate_rps, sweep_seeds)
        lines += [f"## {rate_rps:g} requests/s", ""]
        lines += [_verdict(rows, best), ""]
        names = list(rows[0]["per_class"])
        head = ["contender", "seeds", "promises kept", *names, "goodput /s", "TTFT p95 s",
                "gap p99 s", "preemptions"]  # fmt: skip
        lines += ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
        for row in sorted(rows, key=lambda row: -row["attainment"]["mean"]):
            mark = " (best in hindsight)" if row["contender"] == best else ""
            cells = [
                row["contender"] + mark,
                str(len(row["seeds"])),
                shown(row["attainment"]),
                *(shown(row["per_class"].get(name)) for name in names),
                shown(row["goodput_rps"]),
                shown(row["ttft_p95_s"]),
                shown(row["tbt_p99_s"]),
                shown(row["preemptions"], digits=0),
            ]
            lines.append("| " + " | ".join(cells) + " |")
        lines.append("")
    lines += ["Each figure is the mean over seeds, with (min–max) when there are several.", ""]
    lines += ["## Commands", "", "```"]
    lines += [
        f"{key}: {text}" for key, text in {r["contender"]: r["command"] for r in table}.items()
    ]
    return "\n".join([*lines, "```", ""])


def _verdict(rows: Sequence[dict[str, Any]], best: str | None) -> str:
    """Return how Headway did at one rate, over the seeds each contender has."""
    means = {row["contender"]: row["attainment"]["mean"] for row in rows}
    if "headway" not in means or "stock" not in means:
        return "Headway and stock have not both been run at this load yet."
    ours, stock = means["headway"], means["stock"]
    times = f"{ours / stock:.2f} ×" if stock else "everything against nothing of"
    text = f"Headway kept {ours:.3f}; that is {times} stock's defaults ({stock:.3f})"
    if best is None:
        return text + "."
    return (
        f"{text} and {100 * (ours - means[best]):+.1f} points against {best} ({means[best]:.3f})."
    )


def shown(found: dict[str, float] | None, digits: int = 2) -> str:
    """Return ``"0.87 (0.84–0.91)"``, the spread only where there is one."""
    if found is None:
        return "–"
    text = f"{found['mean']:.{digits}f}"
    if found["min"] == found["max"]:
        return text
    return f"{text} ({found['min']:.{digits}f}–{found['max']:.{digits}f})"
