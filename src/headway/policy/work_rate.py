"""The best rate at which a server got work done lately, and how much of it no claim wanted."""

from __future__ import annotations

import math
from collections import deque

from headway.latency.online import FORGET

NEWEST = 32
"""Requests that ended last, by which the rate is measured. Varied in experiments/constants. Larger:
a young server refuses none of the lost for longer; smaller: a lucky few make the best rate."""


class WorkRate:
    """Engine seconds of finished requests per second.

    Attributes:
        per_s: The best of late; 1, an engine's own rate, until it is measured.
    """

    def __init__(self) -> None:
        self.per_s = 1.0
        self._ended: deque[tuple[float, float, bool]] = deque(maxlen=NEWEST)

    def add(self, at_s: float, work_s: float, is_leftover: bool) -> None:
        """A request ended that took *work_s*, with capacity no claim wanted or not."""
        ended = self._ended
        ended.append((at_s, work_s, is_leftover))
        if self.is_measured and at_s > ended[0][0]:
            rate = sum(work_s for _, work_s, _ in ended) / (at_s - ended[0][0])
            self.per_s = max(rate, FORGET * self.per_s)

    @property
    def is_measured(self) -> bool:
        """Whether enough requests have ended."""
        return len(self._ended) == NEWEST

    @property
    def leftover_share(self) -> float:
        """Share of those that ended last which were started with capacity no claim wanted."""
        return math.fsum(leftover for _, _, leftover in self._ended) / max(len(self._ended), 1)
