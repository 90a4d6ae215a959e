"""What recent values weigh, and the longest of the last steps, in constant time a step."""

from __future__ import annotations

from collections import deque

from headway.latency.conformal import WINDOW_STEPS

NEWEST_WEIGHT = 0.05
"""Weight of the newest step in the mean step and in the tokens that streams of a class gain, and of
the newest claim in a typical one: about the last twenty count (experiments/constants). Larger: one
odd value moves the mean; smaller: a change is seen late."""


class LongestRecent:
    """The largest of the last values, of as many as the step time's errors are remembered.

    Kept are only values larger than all that came after them; the first of them is the largest.
    Each value comes and goes once.
    """

    def __init__(self, window: int = WINDOW_STEPS) -> None:
        self._window = window
        self._num_seen = 0
        self._kept: deque[tuple[int, float]] = deque()

    def add(self, value: float) -> None:
        """Take the next value in."""
        self._num_seen += 1
        while self._kept and self._kept[-1][1] <= value:
            self._kept.pop()
        self._kept.append((self._num_seen, value))
        if self._kept[0][0] <= self._num_seen - self._window:
            self._kept.popleft()

    def largest(self, default: float) -> float:
        """Return the largest value; *default* before the first."""
        return self._kept[0][1] if self._kept else default
