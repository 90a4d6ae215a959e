"""What the times of a trace mean: dates, or numbers in a unit that somebody must know."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from headway.errors import UserError
from headway.workloads.schema import number

UNITS_S = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "ns": 1e-9}
NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
DATE = "date"
"""In place of a unit: the column holds dates, such as 2023-11-16 18:15:46.68."""

_SUFFIX = re.compile(r"_(s|ms|us|ns)$")

EPOCH_S = (9e8, 2.6e9)
"""Seconds since 1970 from 1998 to 2052: numbers that large are clock times, in one unit only."""

LEAST_RPS, SURE_RPS = 0.02, 0.1
"""Requests per second. A unit is taken for the times' own if it gives SURE_RPS or more and the
next larger unit less than LEAST_RPS; in between, both are possible. In public traces whose unit
the column does not say: Mooncake's has 3.9 a second (read as seconds 0.004), LLMServingSim's 10
(0.01). Whoever serves more than 20 a second or fewer than six a minute is asked."""


@dataclass(slots=True)
class Stamps:
    """Reads one column of times, all of a kind: the first value decides whether they are dates.

    Attributes:
        unit: A key of ``UNITS_S``, ``DATE``, or ``None`` for whatever the first value is.
    """

    column: str
    unit: str | None
    _are_dates: bool | None = field(default=None)
    _has_naive: bool = field(default=False)
    _has_offset: bool = field(default=False)

    def __post_init__(self) -> None:
        if self.unit is not None:
            self._are_dates = self.unit == DATE

    def value(self, where: str, given: Any) -> float:
        """Return a time as a number in the column's unit; dates as seconds since 1970.

        Raises:
            UserError: It is none, or a date among numbers.
        """
        if self._are_dates is None:
            self._are_dates = _is_text(given)
            self.unit = DATE if self._are_dates else None
        if self._are_dates:
            return self._date_s(where, given)
        if _is_text(given) and _date(given) is not None:
            unit = f" of {NAMES[self.unit]}" if self.unit else ""
            raise UserError(
                f"{where}: {self.column} holds a date, {given!r:.60}, where a number{unit} is"
                " expected."
            )
        return number(where, self.column, given, minimum=0.0)

    def _date_s(self, where: str, given: Any) -> float:
        at = _date(given)
        if at is None:
            raise UserError(
                f"{where}: {self.column} must look like 2023-11-16 18:15:46.68, not {given!r:.60}."
            )
        if at.tzinfo is None:
            self._has_naive = True
            at = at.replace(tzinfo=UTC)
        elif at.utcoffset():
            self._has_offset = True
        if self._has_naive and self._has_offset:
            raise UserError(
                f"{where}: {self.column} has times with an offset from UTC and times without one;"
                " which zone the others are in is not said."
            )
        return at.timestamp()


def _is_text(given: Any) -> bool:
    if not isinstance(given, str):
        return False
    try:
        float(given)
    except ValueError:
        return True
    return False


def _date(given: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(given.strip()) if isinstance(given, str) else None
    except ValueError:
        return None


def unit_of(column: str, times: tuple[float, float], num_rows: int) -> tuple[str, str]:
    """Return the unit that numbers are in, and the reason in a few words.

    Args:
        times: The least and the greatest.

    Raises:
        UserError: Two units are possible; the sentence has both rates.
    """
    said = _SUFFIX.search(column)
    if said is not None:
        return said[1], "the column's name says so"
    least, greatest = times
    for unit, unit_s in UNITS_S.items():
        if EPOCH_S[0] <= least * unit_s <= EPOCH_S[1] and least >= EPOCH_S[0]:
            return unit, f"the values are {NAMES[unit]} since 1970"
    if num_rows < 2 or greatest <= least:
        return "s", "all are at one instant"
    span = f"{num_rows} values span {greatest - least:.6g}"
    rates = {name: (num_rows - 1) / ((greatest - least) * s) for name, s in UNITS_S.items()}
    units = list(UNITS_S)
    best = next((unit for unit in units if rates[unit] >= LEAST_RPS), units[-1])
    if rates[best] >= SURE_RPS or best == units[-1]:
        return best, span
    other = units[units.index(best) + 1]
    raise UserError(
        f"the column {column!r} may be in {NAMES[best]} ({rates[best]:.3g} requests/s) or in"
        f" {NAMES[other]} ({rates[other]:.3g} requests/s): say --time-unit {best} or"
        f" --time-unit {other}."
    )
