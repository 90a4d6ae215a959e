"""Counts of a running server, cheap enough for the scheduler's own process.

Everything here only grows, so that a lost message costs a reader nothing: the next one holds
all that the lost one held. Spans in seconds.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from headway.metrics.causes import CAUSES
from headway.request import NATURAL_ENDS
from headway.slo import Slo
from headway.slo_rules import PROMISES, SPANS

TTFT_BOUNDS_S = (
    0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
)  # fmt: skip
GAP_BOUNDS_S = (
    0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0,
)  # fmt: skip
PAUSE_BOUNDS_S = (
    0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 5.0, 10.0, 30.0, 60.0,
)  # fmt: skip
STEP_BOUNDS_S = GAP_BOUNDS_S
PLAN_BOUNDS_S = (
    2e-5, 5e-5, 1e-4, 2e-4, 3.5e-4, 5e-4, 7.5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2.5e-2, 0.1,
)  # fmt: skip
RATIO_BOUNDS = (0.5, 0.7, 0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2, 1.3, 1.5, 2.0, 4.0)

OUTCOMES = ("finished", "refused", "rejected", "aborted", "failed")
"""How a request can end: ``rejected`` could never have been served, ``failed`` is an error of
the engine, ``aborted`` means that the client hung up."""

"""What of a promise time can break: ``ttft``, ``tbt``, ``pause``, ``tpot``, ``jct``."""

MAX_CLASSES = 64
"""Classes told apart; further ones are counted together as :data:`OTHER_CLASS`."""

OTHER_CLASS = "other"


def outcome_of(reason: str) -> str:
    """Return which of :data:`OUTCOMES` the end of a request is."""
    if reason in NATURAL_ENDS:
        return "finished"
    return reason if reason in ("refused", "rejected", "aborted") else "failed"


class Histogram:
    """How often a value fell below each bound; the last count is for those beyond all."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)
        self.total = 0.0

    def add(self, value: float, times: int = 1) -> None:
        """Count *value*, *times* times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.total += value * times

    def snapshot(self) -> dict[str, Any]:
        """Return counts per bucket (not cumulative) and the sum of all values."""
        return {"counts": list(self.counts), "sum": self.total}


def quantile(bounds: Sequence[float], counts: Sequence[float], q: float) -> float | None:
    """Return the *q* quantile of a histogram, straight within a bucket; ``None`` when empty.

    Beyond the last bound the answer is that bound: the true value is larger.
    """
    rank = q * sum(counts)
    if rank <= 0:
        return None
    seen = 0.0
    for index, count in enumerate(counts):
        if count and seen + count >= rank:
            if index >= len(bounds):
                break
            low = bounds[index - 1] if index else 0.0
            return low + (bounds[index] - low) * (rank - seen) / count
        seen += count
    return bounds[-1]


@dataclass(slots=True)
class ClassTally:
    """What became of the requests of one class.

    Attributes:
        offered: Requests that arrived.
        outcomes: Requests that ended, by :data:`OUTCOMES`.
        promised: Of those that ended, the ones with a promise; ``attained`` kept it.
        late: Requests whose broken promise has seconds; ``late_s`` by cause.
        output_tokens: Tokens of the requests that ended; ``attained_tokens`` of the kept ones.
        broke: Requests by what of their promise time broke, of :data:`PROMISES`; one that broke
            several is in each.
        pause: The longest gap of each answer that ended.
        promise: The least span promised under this name so far, by the fields of a promise;
            ``promise_most`` the most. They differ where requests bring their own.
    """

    offered: int = 0
    promised: int = 0
    attained: int = 0
    late: int = 0
    output_tokens: int = 0
    attained_tokens: int = 0
    outcomes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    late_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(CAUSES, 0.0))
    broke: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PROMISES, 0))
    ttft: Histogram = field(default_factory=lambda: Histogram(TTFT_BOUNDS_S))
    gap: Histogram = field(default_factory=lambda: Histogram(GAP_BOUNDS_S))
    pause: Histogram = field(default_factory=lambda: Histogram(PAUSE_BOUNDS_S))
    promise: dict[str, float] = field(default_factory=dict)
    promise_most: dict[str, float] = field(default_factory=dict)

    def saw(self, slo: Slo) -> None:
        """Take in what a request of this class was promised."""
        given = promise_of(slo)
        self.promise = _by_span(min, self.promise, given)
        self.promise_most = _by_span(max, self.promise_most, given)

    def snapshot(self) -> dict[str, Any]:
        """Return everything as JSON's types."""
        return {
            "offered": self.offered,
            "promised": self.promised,
            "attained": self.attained,
            "late": self.late,
            "output_tokens": self.output_tokens,
            "attained_tokens": self.attained_tokens,
            "outcomes": dict(self.outcomes),
            "late_s": dict(self.late_s),
            "broke": dict(self.broke),
            "ttft": self.ttft.snapshot(),
            "gap": self.gap.snapshot(),
            "pause": self.pause.snapshot(),
            "promise": dict(self.promise),
            "promise_most": dict(self.promise_most),
        }


def promise_of(slo: Slo) -> dict[str, float]:
    """Return what was promised, in seconds, the pause that a gap brings along too; nothing else."""
    given = {name: getattr(slo, name) for name in SPANS} | {"pause_s": slo.longest_pause_s}
    return {name: s for name, s in given.items() if s is not None and s < math.inf}


class Tallies:
    """The tally of every class, made on first use."""

    def __init__(self) -> None:
        self.by_class: dict[str, ClassTally] = {}

    def of(self, class_name: str) -> ClassTally:
        """Return the tally of a class."""
        tally = self.by_class.get(class_name)
        if tally is None:
            if len(self.by_class) >= MAX_CLASSES:
                class_name = OTHER_CLASS
            tally = self.by_class.setdefault(class_name, ClassTally())
        return tally


def combine(one: Any, other: Any, sign: int = 1) -> Any:
    """Return two snapshots of the same shape added (or, with -1, subtracted) leaf by leaf.

    Keys of either are kept, a missing leaf counts as 0; what is no number is taken from *one*.
    Of promises the least and the most are kept.
    """
    if isinstance(one, Mapping):
        if not isinstance(other, Mapping):
            return one
        return {
            key: (
                _by_span(_PICKS[key], one.get(key) or {}, other.get(key) or {})
                if key in _PICKS
                else combine(one.get(key, _nothing_like(other.get(key))), other.get(key), sign)
            )
            for key in {**one, **other}
        }
    if isinstance(one, list):
        if not isinstance(other, list):
            return one
        return [a + sign * b for a, b in zip(one, other, strict=True)]
    if isinstance(one, int | float) and isinstance(other, int | float):
        return one + sign * other
    return one


_PICKS = {"promise": min, "promise_most": max}


def _by_span(
    pick: Callable[[float, float], float], one: Mapping[str, float], other: Mapping[str, float]
) -> dict[str, float]:
    """Return the spans of either promise, by *pick* where both have one."""
    return {
        name: pick(one.get(name, other.get(name, 0.0)), other.get(name, one.get(name, 0.0)))
        for name in {**one, **other}
    }


def _nothing_like(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {}
    if isinstance(value, list):
        return [0] * len(value)
    return 0 if isinstance(value, int | float) else value
