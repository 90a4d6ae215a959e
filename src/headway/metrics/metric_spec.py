"""What one metric is: its name, its words, and how it is read from a scheduler's message."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Json = Mapping[str, Any]
Kind = Literal["counter", "gauge", "histogram"]
Samples = Iterator[tuple[tuple[str, ...], Any]]
"""Values of the labels (without ``engine``), and a number or a histogram's snapshot."""


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric: what ``/metrics`` says of it, and how to read it from a message.

    Attributes:
        name: As in a query; a counter's ends in ``_total``.
        labels: Names of the labels besides ``engine``.
        read: Yields its samples from a message of :meth:`SchedulerCounts.snapshot`.
        bounds: Upper bounds of a histogram's buckets.
    """

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...]
    read: Callable[[Json], Samples]
    bounds: Sequence[float] = ()
