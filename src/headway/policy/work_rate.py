"""The best rate at which a server got work done under load, and how much no claim wanted."""

from __future__ import annotations

import math
from collections import deque

from headway.latency.online import FORGET

NEWEST = 32
"""Requests that ended last, by which the rate is measured. Varied in experiments/constants. Larger:
a young server refuses none of the lost for longer; smaller: a lucky few make the best rate."""


class WorkRate:
    """Engine seconds of finished requests per second, while requests waited.

    While none waits, the rate is what the clients ask for and not what the server can do.

    Attributes:
        per_s: The best of late; 1, an engine's own rate, until it is measured.
        num_ended: Requests that ended, under load or not.
    """

    def __init__(self) -> None:
        self.per_s = 1.0
        self.num_ended = 0
        self._ended: deque[tuple[float, float, bool]] = deque(maxlen=NEWEST)

    def add(self, at_s: float, work_s: float, is_leftover: bool, num_waiting: int) -> None:
        """A request ended that took *work_s*, with capacity no claim wanted or not."""
        self.num_ended += 1
        ended = self._ended
        if not num_waiting:
            ended.clear()
            return
        ended.append((at_s, work_s, is_leftover))
        if self.is_measured and at_s > ended[0][0]:
            rate = sum(work_s for _, work_s, _ in ended) / (at_s - ended[0][0])
            self.per_s = max(rate, FORGET * self.per_s)

    @property
    def is_measured(self) -> bool:
        """Whether enough requests have ended since the last time that none waited."""
        return len(self._ended) == NEWEST

    @property
    def knows_lengths(self) -> bool:
        """Whether enough requests have ended to know how long outputs are."""
        return self.num_ended >= NEWEST

    @property
    def leftover_share(self) -> float:
        """Share of those that ended last which were started with capacity no claim wanted."""
        return math.fsum(leftover for _, _, leftover in self._ended) / max(len(self._ended), 1)
