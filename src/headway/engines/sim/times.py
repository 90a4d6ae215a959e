"""When tokens came out: every instant, compactly, or what is worth knowing of them.

A hundred thousand requests of 200 tokens are 160 MB as arrays of doubles and would be six
gigabytes as lists of Python floats; as summaries they are a few dozen.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable

Times = array  # of doubles, typecode "d"

BINS_PER_OCTAVE = 8
FIRST_OCTAVE, LAST_OCTAVE = -14, 10
"""Gaps from 61 microseconds to 17 minutes; what lies beyond lands in the outermost bins."""


class GapHistogram:
    """Gaps in fixed logarithmic bins, 9 % wide. Histograms of replicas add up."""

    def __init__(self) -> None:
        self.counts = [0] * (BINS_PER_OCTAVE * (LAST_OCTAVE - FIRST_OCTAVE))

    def add(self, gap_s: float) -> None:
        """Count one gap."""
        if gap_s <= 0.0:
            self.counts[0] += 1
            return
        index = int((math.log2(gap_s) - FIRST_OCTAVE) * BINS_PER_OCTAVE)
        self.counts[min(max(index, 0), len(self.counts) - 1)] += 1

    def merge(self, other: GapHistogram) -> None:
        """Add the gaps of *other*."""
        self.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]

    def quantile_s(self, share: float) -> float:
        """Return the upper edge of the bin that *share* of the gaps do not exceed; 0 if none."""
        rank, seen = math.ceil(share * sum(self.counts)), 0
        for index, count in enumerate(self.counts):
            seen += count
            if count and seen >= rank:
                return float(2.0 ** (FIRST_OCTAVE + (index + 1) / BINS_PER_OCTAVE))
        return 0.0


class GapSummary:
    """What is kept of one request's token times when not every instant is.

    Attributes:
        first_s, last_s: First and last emission; ``nan`` without a token.
        num_late: Gaps above *promise_s*; 0 when nothing was promised.
    """

    __slots__ = (
        "_histogram",
        "first_s",
        "last_s",
        "max_gap_s",
        "num_late",
        "num_tokens",
        "promise_s",
    )

    def __init__(self, promise_s: float | None, histogram: GapHistogram) -> None:
        self.promise_s = math.inf if promise_s is None else promise_s
        self._histogram = histogram
        self.first_s = self.last_s = math.nan
        self.max_gap_s = 0.0
        self.num_late = 0
        self.num_tokens = 0

    def append(self, at_s: float) -> None:
        """Take one emission in."""
        if self.num_tokens:
            gap_s = at_s - self.last_s
            self._histogram.add(gap_s)
            self.max_gap_s = max(self.max_gap_s, gap_s)
            self.num_late += gap_s > self.promise_s
        else:
            self.first_s = at_s
        self.last_s = at_s
        self.num_tokens += 1

    def extend(self, many: Iterable[float]) -> None:
        """Take several emissions in."""
        for at_s in many:
            self.append(at_s)
