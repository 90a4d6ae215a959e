"""What promises were told against what was kept of them, by decile of the chance told.

Who is in, and what counts as kept, :mod:`headway.metrics.chance` says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

DECILES = 10
"""Into which chances fall, to compare with what is kept of them; there is nothing to choose."""

ENOUGH = 100
"""Requests from which a decile is judged: their share is within some 10 points of what it would
be of more (two standard errors, at a half)."""


def decile_of(chance: float) -> int:
    """Return the decile a chance is in, the highest one closed."""
    return min(int(chance * DECILES), DECILES - 1)


class DecileRow(NamedTuple):
    """Requests whose chances were in one decile: the mean told, the share kept, how many."""

    told: float
    kept: float
    num: int


class Calibration:
    """Sums by decile: of requests, of those kept, of the chances told. They only grow."""

    def __init__(self) -> None:
        self.num, self.kept, self.told = [0] * DECILES, [0] * DECILES, [0.0] * DECILES

    def add(self, chance: float, is_kept: bool) -> None:
        """Count a request that was told a chance."""
        decile = decile_of(chance)
        self.num[decile] += 1
        self.kept[decile] += is_kept
        self.told[decile] += chance

    def snapshot(self) -> dict[str, list[Any]]:
        """Return the sums as JSON's types."""
        return {"num": list(self.num), "kept": list(self.kept), "told": list(self.told)}


def rows_of(sums: Mapping[str, Sequence[float]]) -> list[DecileRow]:
    """Return the deciles of a snapshot that somebody is in, lowest first."""
    return [
        DecileRow(told / num, kept / num, int(num))
        for num, kept, told in zip(sums["num"], sums["kept"], sums["told"], strict=True)
        if num
    ]


def whole_of(sums: Mapping[str, Sequence[float]]) -> DecileRow:
    """Return all deciles of a snapshot as one; of nobody, zeros."""
    num, kept, told = (sum(sums[name]) for name in ("num", "kept", "told"))
    return DecileRow(told / num if num else 0.0, kept / num if num else 0.0, int(num))


def error_of(rows: Sequence[DecileRow]) -> float | None:
    """Return the largest distance of told and kept where there are enough requests to tell."""
    return max((abs(row.told - row.kept) for row in rows if row.num >= ENOUGH), default=None)


# -- samples of /metrics, from a message of a scheduler's counts --------------------------------

Samples = Iterator[tuple[tuple[str, ...], Any]]


def by_decile(key: str) -> Callable[[Mapping[str, Any]], Samples]:
    """Read one sum: a sample a decile, named by its lower edge."""
    return lambda message: (
        ((f"{decile / DECILES:g}",), value)
        for decile, value in enumerate(message["counts"].get("chances", {}).get(key, ()))
    )


def error_in(message: Mapping[str, Any]) -> Samples:
    """Read :func:`error_of`, once there is one."""
    sums = message["counts"].get("chances")
    error = error_of(rows_of(sums)) if sums else None
    if error is not None:
        yield (), error
