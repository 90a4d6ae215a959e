"""What a run looks like on a terminal: progress while it lasts, tables when it is over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Any, Protocol

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from headway.bench.load import ClientLag, LoadResult, Tally
from headway.metrics.record import RequestRecord
from headway.units import format_s

PLAIN_LINE_EVERY_S = 15.0
"""Without a terminal (CI, a log file) a line this often instead of a moving bar."""


class Display(Protocol):
    """What a run reports its progress to."""

    def stage(self, text: str) -> None:
        """Name what is going on now."""

    def waited(self, waited_s: float) -> None:
        """Tell how long a server has been starting."""

    def tally(self, tally: Tally) -> None:
        """Tell how far the load is."""


@contextmanager
def display(console: Console, title: str) -> Iterator[Display]:
    """Show the progress of one run, moving on a terminal and line by line elsewhere."""
    if not console.is_terminal:
        yield _ProgressLines(console, title)
        return
    progress = Progress(
        SpinnerColumn(),
        TextColumn("[bold]{task.fields[title]}"),
        BarColumn(bar_width=30),
        TextColumn("{task.description}"),
        TimeElapsedColumn(),
        console=console,
    )
    with progress:
        yield _Bar(progress, title)


class _Bar:
    def __init__(self, progress: Progress, title: str) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None, title=title)

    def stage(self, text: str) -> None:
        self._progress.update(self._task, description=text)

    def waited(self, waited_s: float) -> None:
        self.stage(f"starting the server ({waited_s:.0f} s)")

    def tally(self, tally: Tally) -> None:
        self._progress.update(
            self._task,
            total=tally.num_planned,
            completed=tally.num_ended,
            description=tally_text(tally),
        )


class _ProgressLines:
    def __init__(self, console: Console, title: str) -> None:
        self._console, self._title = console, title
        self._last_line_at_s = monotonic() - PLAIN_LINE_EVERY_S

    def stage(self, text: str) -> None:
        self._line(text)

    def waited(self, waited_s: float) -> None:
        self._rarely(f"starting the server ({waited_s:.0f} s)")

    def tally(self, tally: Tally) -> None:
        if tally.num_ended == tally.num_planned:
            self._line(tally_text(tally))
        else:
            self._rarely(tally_text(tally))

    def _rarely(self, text: str) -> None:
        if monotonic() - self._last_line_at_s >= PLAIN_LINE_EVERY_S:
            self._line(text)

    def _line(self, text: str) -> None:
        self._last_line_at_s = monotonic()
        self._console.print(f"{self._title}: {text}", highlight=False, markup=False)


def tally_text(tally: Tally) -> str:
    """Return ``"offered 40/100 · finished 31 · kept 29"``, with refusals and failures if any."""
    lost = tally.num_refused + tally.num_failed
    parts = [
        f"offered {tally.num_offered}/{tally.num_planned}",
        f"finished {tally.num_ended - lost}",
        f"kept {tally.num_kept}",
    ]
    parts += [f"refused {tally.num_refused}"] if tally.num_refused else []
    parts += [f"failed {tally.num_failed}"] if tally.num_failed else []
    return " · ".join(parts)


def percent(share: float | None) -> str:
    """Return a share as ``"87 %"``; ``"–"`` for none."""
    return "–" if share is None else f"{100 * share:.0f} %"


def run_table(run: Mapping[str, Any], title: str) -> Table:
    """Return the summary of one run, a row a class and one for all; fits 80 columns."""
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD)
    table.pad_edge = False
    table.collapse_padding = True
    table.add_column("class", no_wrap=True)
    for name in (
        "kept", "share", "TTFT p50", "p95", "gap p99", "pause p99", "refused", "failed",
    ):  # fmt: skip
        table.add_column(name, justify="right", no_wrap=True)
    for name, figures in run["per_class"].items():
        table.add_row(Text(name), *_cells(figures))
    table.add_section()
    table.add_row("all", *_cells(run), style="bold")
    return table


def _cells(figures: Mapping[str, Any]) -> list[str]:
    outcomes = figures["outcomes"]
    return [
        f"{figures['num_attained']} of {figures['num_requests']}",
        percent(figures["attainment"]),
        format_s(figures["ttft_s"]["p50"]),
        format_s(figures["ttft_s"]["p95"]),
        format_s(figures["tbt_s"]["p99"]),
        format_s(figures["pause_s"]["p99"]),
        str(outcomes["refused"]),
        str(outcomes["failed"] + outcomes["timed_out"] + outcomes["aborted"]),
    ]


def goodput_sentence(run: Mapping[str, Any]) -> str:
    """Return one sentence on the rate of kept promises and of tokens."""
    goodput, tokens = run["goodput_rps"] or 0.0, run["output_tokens_per_s"] or 0.0
    return (
        f"Goodput: {goodput:.2f} kept promises a second over {run['duration_s']:.0f} s,"
        f" {tokens:.0f} tokens a second in all."
    )


def readings_sentence(run: Mapping[str, Any]) -> str:
    """Return one sentence on the share of promises kept by other readings of the gaps."""
    found = run["attainment_by_reading"]
    plain, strict, pace = (percent(found[name]) for name in ("plain", "strict", "pace"))
    return (
        f"By other readings of the gaps: {plain} without the longest pause, {strict} if every gap"
        f" counts, {pace} at a pace from the promised first token on."
    )


def lag_sentence(lag: ClientLag) -> str:
    """Return one sentence on how late the client itself was."""
    return (
        f"Client lag: sending p50 {format_s(lag.send_s['p50'])}, p99 {format_s(lag.send_s['p99'])},"
        f" max {format_s(lag.send_s['max'])}; event loop p99 {format_s(lag.loop_s['p99'])},"
        f" max {format_s(lag.loop_s['max'])}."
    )


def counting_sentence(load: LoadResult) -> str | None:
    """Return how tokens were counted where the server did not send their ids."""
    by_usage, by_chunks = (load.counted_by.get(how, 0) for how in ("usage", "chunks"))
    parts = []
    if by_usage:
        parts.append(
            f"of {by_usage} requests by the server's usage, spread over their chunks (tokens of"
            " one chunk share its time)"
        )
    if by_chunks:
        parts.append(
            f"of {by_chunks} requests as one a chunk, for want of a usage: too few where"
            " chunks carry several"
        )
    return f"Tokens were counted {'; '.join(parts)}." if parts else None


def retry_sentence(load: LoadResult) -> str | None:
    """Return how often requests went again, or ``None`` when none did."""
    if not load.num_retries:
        return None
    return (
        f"Retries: {load.num_retries}, each after the wait its refusal told; a request counts"
        " once, from its first arrival."
    )


def failure_sentence(records: Sequence[RequestRecord]) -> str | None:
    """Return the most frequent reason of requests that were not served, or ``None``."""
    details = [r.detail for r in records if r.detail and not r.finished]
    if not details:
        return None
    commonest = max(sorted(set(details)), key=details.count)
    return f"{len(details)} requests were not served; most often: {commonest}"
