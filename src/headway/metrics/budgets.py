"""Error budgets: what share of the promises may break, and how much of that is spent.

Of a group with a target (a class, a tenant) the promises that ended are counted by time: kept and
broken ones, refused requests among the broken. Burn rate and budget are those of the SRE workbook
(Beyer et al. 2018, "Alerting on SLOs"). Pure; the seconds are Unix time where the counts are to
outlive the process.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

MINUTE_S, HOUR_S = 60.0, 3600.0
"""What is counted together: within six hours a minute, since the shortest window has five of
them; beyond an hour, which makes some seven hundred counts of four weeks. A window reaches back
to the beginning of such a span, so it is longer than its name by one of them at most."""

WINDOWS: Mapping[str, tuple[float, float]] = {
    "5m": (300.0, MINUTE_S),
    "1h": (3600.0, MINUTE_S),
    "6h": (21_600.0, MINUTE_S),
    "28d": (28 * 86_400.0, HOUR_S),
}
"""Name → seconds, and what is counted together. Four weeks hold as many weekends wherever they
begin; the other three are the windows of the alerts that page."""

BURN_WINDOWS = ("5m", "1h", "6h")
BUDGET_WINDOW = "28d"

MOST_GROUPS = 50
"""Groups of a kind that are counted, those of which a promise ended last: an operator writes
fewer targets than that, and a client may make up names. Each takes a quarter of a megabyte."""

KINDS = ("class", "tenant")

SCHEMA = 1


class Window:
    """Ended and broken promises of the last seconds, in spans of one length.

    Attributes:
        ended: Promises that ended within the window, as of the last instant it was told.
        broken: Those of them that were not kept.
    """

    __slots__ = ("_num_spans", "_span_s", "_spans", "broken", "ended")

    def __init__(self, window_s: float, span_s: float) -> None:
        self._span_s = span_s
        self._num_spans = round(window_s / span_s)
        self._spans: deque[list[int]] = deque()
        self.ended = self.broken = 0

    def add(self, at_s: float, ended: int, broken: int) -> None:
        """Count promises that ended at an instant; time never goes back, or stands still then."""
        number = math.floor(at_s / self._span_s)
        spans = self._spans
        if spans and number <= spans[-1][0]:
            spans[-1][1] += ended
            spans[-1][2] += broken
        else:
            spans.append([number, ended, broken])
        self.ended += ended
        self.broken += broken
        self.forget(at_s)

    def forget(self, now_s: float) -> None:
        """Leave out what ended before the window."""
        oldest, spans = math.floor(now_s / self._span_s) - self._num_spans, self._spans
        while spans and spans[0][0] < oldest:
            _, ended, broken = spans.popleft()
            self.ended -= ended
            self.broken -= broken

    def rows(self) -> list[list[float]]:
        """Return, for each span in which something ended, its first second and both counts."""
        return [[number * self._span_s, ended, broken] for number, ended, broken in self._spans]


def _windows() -> dict[str, Window]:
    return {name: Window(*spans_s) for name, spans_s in WINDOWS.items()}


@dataclass(slots=True)
class ErrorBudget:
    """Promises of one group; *target* is ``None`` while the operator states none."""

    target: float | None = None
    windows: dict[str, Window] = field(default_factory=_windows)


class ErrorBudgets:
    """The budgets of every group with a target."""

    def __init__(self) -> None:
        self._kinds: dict[str, OrderedDict[str, ErrorBudget]] = {k: OrderedDict() for k in KINDS}

    def aim(self, kind: str, name: str, target: float | None) -> None:
        """A request of a group arrived with *target*: the newest one counts.

        A group whose target was taken back is told no more, but counted on: of several HTTP
        processes one may not have read the new file yet.
        """
        groups = self._kinds[kind]
        budget = groups.get(name)
        if budget is None:
            if target is None:
                return
            if len(groups) >= MOST_GROUPS:
                groups.popitem(last=False)
            budget = groups[name] = ErrorBudget()
        budget.target = target

    def ended(self, kind: str, name: str, at_s: float, *, is_kept: bool) -> None:
        """A promise of a group ended; nothing where it never had a target."""
        groups = self._kinds[kind]
        budget = groups.get(name)
        if budget is None:
            return
        groups.move_to_end(name)
        for window in budget.windows.values():
            window.add(at_s, 1, int(not is_kept))

    def snapshot(self, now_s: float) -> dict[str, dict[str, Any]]:
        """Return kind → name → ``target``, and ``[ended, broken]`` by window, as JSON's types."""
        told: dict[str, dict[str, Any]] = {}
        for kind, groups in self._kinds.items():
            told[kind] = {}
            for name, budget in groups.items():
                for window in budget.windows.values():
                    window.forget(now_s)
                if budget.target is not None:
                    counts = {n: [w.ended, w.broken] for n, w in budget.windows.items()}
                    told[kind][name] = {"target": budget.target, "windows": counts}
        return told

    # -- what outlives the process ----------------------------------------------------------

    def state(self, now_s: float) -> dict[str, Any]:
        """Return everything as JSON's types, for :meth:`restore`."""
        self.snapshot(now_s)
        return {
            "schema": SCHEMA,
            "groups": [
                {
                    "kind": kind,
                    "name": name,
                    "target": budget.target,
                    "minutes": budget.windows["6h"].rows(),
                    "hours": budget.windows["28d"].rows(),
                }
                for kind, groups in self._kinds.items()
                for name, budget in groups.items()
            ],
        }

    def restore(self, state: Any, now_s: float) -> None:
        """Take in what :meth:`state` returned, perhaps long ago; before anything is counted.

        What lies in the future, since the clock was wrong then or is now, counts as now.

        Raises:
            ValueError: It is no such state; then nothing is taken in.
        """
        kinds: dict[str, OrderedDict[str, ErrorBudget]] = {kind: OrderedDict() for kind in KINDS}
        try:
            if state["schema"] != SCHEMA:
                raise ValueError(f"its schema is {state['schema']!r:.40}, not {SCHEMA}")
            for row in state["groups"]:
                target = row["target"]
                if target is not None and not 0.0 < target < 1.0:
                    raise ValueError(f"{target!r:.40} is no target")
                budget = kinds[row["kind"]][str(row["name"])] = ErrorBudget(target)
                for name, window in budget.windows.items():
                    rows = row["hours" if name == BUDGET_WINDOW else "minutes"]
                    _fill(window, rows, now_s)
        except (KeyError, TypeError, AttributeError, OverflowError) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from None
        for kind, groups in kinds.items():
            while len(groups) > MOST_GROUPS:
                groups.popitem(last=False)
            self._kinds[kind] = groups


def _fill(window: Window, rows: Iterable[Any], now_s: float) -> None:
    """Count what was written; see :meth:`ErrorBudgets.restore` for errors."""
    last_s = -math.inf
    for at_s, ended, broken in rows:
        counts = (ended, broken)
        if not all(type(count) is int for count in counts) or not 0 <= broken <= ended:
            raise ValueError(f"{counts!r:.60} are no counts of promises")
        if not last_s <= at_s < math.inf:
            raise ValueError("its spans are not in order")
        last_s = at_s
        window.add(min(at_s, now_s), ended, broken)
    window.forget(now_s)


# -- what readers make of the counts ------------------------------------------------------------


def burn_rate(ended: int, broken: int, target: float) -> float:
    """Return how fast the budget is spent: 1 is as fast as it comes, 0 where nothing ended."""
    return broken / ended / (1.0 - target) if ended else 0.0


def budget_left(ended: int, broken: int, target: float) -> float:
    """Return the share of the budget that is left: 1 before anything ended; negative overdrawn."""
    return 1.0 - burn_rate(ended, broken, target)


def counts_of(told: Mapping[str, Any], window: str, age_s: float = 0.0) -> tuple[int, int]:
    """Return ended and broken promises of one group's entry in a snapshot.

    Args:
        age_s: How old the snapshot is. An idle scheduler sends none, and nothing ends there: of a
            window that has passed since the last one, nothing is left.
    """
    if age_s >= WINDOWS[window][0]:
        return 0, 0
    ended, broken = told["windows"][window]
    return int(ended), int(broken)


def together(told: Iterable[tuple[Mapping[str, Any], float]]) -> dict[str, Any] | None:
    """Return one group's budget over several schedulers; ``None`` where no entry is given.

    Args:
        told: The group's entry in each scheduler's snapshot and the snapshot's age in seconds,
            the newest last: its target counts.

    Returns:
        ``target``, ``budget_left``, and ``burn_rate`` by window.
    """
    entries = list(told)
    if not entries:
        return None
    target = float(entries[-1][0]["target"])
    sums: dict[str, tuple[int, int]] = {}
    for name in WINDOWS:
        counts = [counts_of(one, name, age_s) for one, age_s in entries]
        sums[name] = sum(ended for ended, _ in counts), sum(broken for _, broken in counts)
    return {
        "target": target,
        "budget_left": budget_left(*sums[BUDGET_WINDOW], target),
        "burn_rate": {name: burn_rate(*sums[name], target) for name in BURN_WINDOWS},
    }
