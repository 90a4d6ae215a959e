"""What recent values weigh, and the longest of the last steps, in constant time a step."""

from __future__ import annotations

from collections import deque

NEWEST_WEIGHT = 0.05
"""Weight of the newest step in the mean step, and of the newest claim in a typical one: about the
last twenty count. No run. Larger: one odd value moves the mean; smaller: a change is seen late."""

LONGEST_OF_STEPS = 256
"""Newest steps of which the longest counts. No run. Larger: a hiccup is remembered for minutes, and
waits end early; smaller: the next hiccup is not reckoned with."""


class LongestRecent:
    """The largest of the last :data:`LONGEST_OF_STEPS` values, or of *window*.

    Kept are only values larger than all that came after them; the first of them is the largest.
    Each value comes and goes once.
    """

    def __init__(self, window: int = LONGEST_OF_STEPS) -> None:
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
