"""What a user may say of a trace file, and what is told of how it was read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from headway.workloads.schema import WorkloadRequest
from headway.workloads.trace_formats import OWN

MOST_IGNORED = 8
"""Columns that were not read and are named in one line; JSON has all of them."""


def skips(num_skipped: Mapping[str, int]) -> list[str]:
    """Return how many rows were left out and why, one reason at a time."""
    return [
        f"{size} row{'s' * (size > 1)} {why} skipped" for why, size in sorted(num_skipped.items())
    ]


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """What the user says of a file; what is not said is recognised as ever.

    Attributes:
        time_unit: A key of ``UNITS_S``.
        hash_tokens: Tokens that one hash stands for.
        sort: Rows may be out of order.
        columns: Pairs of a role (``ROLES``) and the column's name, or ``none``.
        any_rate: Do not question the rate.
    """

    time_unit: str | None = None
    hash_tokens: int | None = None
    sort: bool = False
    columns: tuple[tuple[str, str], ...] = ()
    any_rate: bool = False


@dataclass(slots=True)
class Reading:
    """The requests of a file, and how it was read.

    Attributes:
        columns: Name by role; a role that the file lacks is absent.
        unit: Of the times (``DATE`` for dates); ``None`` without times.
        inferred: What the file does not say itself, in words.
        num_skipped: Rows that are no requests, by reason.
    """

    requests: list[WorkloadRequest]
    format: str
    columns: Mapping[str, str]
    unit: str | None = None
    hash_tokens: int | None = None
    is_sorted: bool = False
    inferred: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    num_skipped: Counter[str] = field(default_factory=Counter)

    @property
    def is_plain(self) -> bool:
        """Whether the file says all of it itself and nothing was left out."""
        return self.format == OWN.name and not (self.inferred or self.num_skipped)

    def sentence(self) -> str:
        """Return how the file was read, in one line."""
        parts = [f"Read as {self.format}", *self.inferred]
        if self.ignored:
            more = ", …" if len(self.ignored) > MOST_IGNORED else ""
            parts.append(f"not read: {', '.join(self.ignored[:MOST_IGNORED])}{more}")
        return "; ".join((*parts, *skips(self.num_skipped))) + "."

    def facts(self) -> dict[str, Any]:
        """Return the same, ready for JSON."""
        return {
            "format": self.format,
            "columns": dict(self.columns),
            "time_unit": self.unit,
            "hash_tokens": self.hash_tokens,
            "sorted": self.is_sorted,
            "inferred": list(self.inferred),
            "ignored_columns": list(self.ignored),
            "num_skipped": dict(self.num_skipped),
        }
