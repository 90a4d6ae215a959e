"""Side by side: the rows of the comparison, the best of each, and the result in a sentence."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from rich.table import Table

from headway.bench.show import percent
from headway.units import format_s

Run = Mapping[str, Any]

READINGS = {
    "plain": "by 99 % of the gaps, without the pause",
    "strict": "by every gap",
    "pace": "by a pace from the promised first token on",
}
"""The other readings of a promised gap, in words."""


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of every contender.

    Attributes:
        values: In the contenders' order; ``None`` where it is not known.
        shown: The same, for people.
        better: Which direction is better; ``None`` when neither is.
    """

    label: str
    values: tuple[float | None, ...]
    shown: tuple[str, ...]
    better: Literal["more", "less"] | None

    @property
    def best(self) -> tuple[bool, ...]:
        """Which contenders have the best *shown* value; nobody when all look the same."""
        known = [value for value in self.values if value is not None]
        if self.better is None or not known or len(set(self.shown)) == 1:
            return (False,) * len(self.values)
        best = max(known) if self.better == "more" else min(known)
        best_shown = self.shown[self.values.index(best)]
        return tuple(text == best_shown for text in self.shown)


def rows_of(runs: Sequence[Run]) -> list[Row]:
    """Return the rows of the comparison of *runs*."""

    def row(
        label: str,
        value: Callable[[Run], Any],
        shown: Callable[[Any], str],
        better: Literal["more", "less"] | None,
    ) -> Row:
        values = tuple(value(run) for run in runs)
        return Row(label, values, tuple(shown(v) for v in values), better)

    names = sorted({name for run in runs for name in run["per_class"]})
    rows = [row("promises kept", lambda run: run["attainment"], percent, "more")]
    for name in names:
        rows.append(
            row(f"  of {name}", lambda run, name=name: _of_class(run, name), percent, "more")  # type: ignore[misc]
        )
    return [
        *rows,
        *(row(f"  {text}", _by_reading(name), percent, "more") for name, text in READINGS.items()),
        row("goodput", lambda run: run["goodput_rps"], _per_s, "more"),
        row("first token, median", lambda run: run["ttft_s"]["p50"], format_s, "less"),
        row("first token, p95", lambda run: run["ttft_s"]["p95"], format_s, "less"),
        row("gap between tokens, p95", lambda run: run["tbt_s"]["p95"], format_s, "less"),
        row("gap between tokens, p99", lambda run: run["tbt_s"]["p99"], format_s, "less"),
        row(
            "longest pause, p99",
            _pause_s,
            format_s,
            "less",
        ),
        row("tokens per second", lambda run: run["output_tokens_per_s"], _whole, "more"),
        row("refused", lambda run: run["outcomes"]["refused"], _whole, "less"),
        row("failed", _failed, _whole, "less"),
        row("preemptions", lambda run: run["preemptions"]["recompute"], _whole, None),
    ]


def _of_class(run: Run, name: str) -> float | None:
    figures = run["per_class"].get(name)
    return None if figures is None else figures["attainment"]


def _by_reading(name: str) -> Callable[[Run], float | None]:
    return lambda run: (run.get("attainment_by_reading") or {}).get(name)


def _pause_s(run: Run) -> float | None:
    return (run.get("pause_s") or {}).get("p99")


def _failed(run: Run) -> int:
    return sum(int(run["outcomes"][name]) for name in ("failed", "timed_out", "aborted"))


def _per_s(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}/s"


def _whole(value: float | None) -> str:
    return "–" if value is None else f"{value:.0f}"


def table_of(titles: Sequence[str], runs: Sequence[Run]) -> Table:
    """Return the comparison for a terminal, the best of each row in bold green."""
    table = Table(title="Same requests, same machine", title_justify="left")
    table.add_column("")
    for title in titles:
        table.add_column(title, justify="right")
    for row in rows_of(runs):
        cells = [
            f"[bold green]{text}[/]" if best else text
            for text, best in zip(row.shown, row.best, strict=True)
        ]
        table.add_row(row.label, *cells)
    return table


def verdict(stock: Run, stock_best: Run, headway: Run) -> str:
    """Return the result in one or two plain sentences, whichever way it went."""
    num_offered = headway["num_requests"]
    ours, theirs, best = (run["num_attained"] for run in (headway, stock, stock_best))
    first = (
        f"Of {num_offered} promises Headway kept {ours}; stock vLLM kept {theirs} with its"
        f" defaults and {best} with the best setting that a sweep had found for this workload."
    )
    if theirs:
        than_stock = f"{ours / theirs:.1f} times as many as"
    else:
        than_stock = "more than" if ours else "as many as"
    points = 100 * (headway["attainment"] - stock_best["attainment"])
    if ours == best:
        than_best = "as many as"
    else:
        than_best = f"{abs(points):.0f} points {'more' if points > 0 else 'fewer'} than"
    return f"{first} That is {than_stock} the defaults, and {than_best} the best setting."
