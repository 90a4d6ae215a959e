"""The longest of the last steps, in constant time a step."""

from __future__ import annotations

from collections import deque


class LongestRecent:
    """The largest of the last *window* values.

    Kept are only values larger than all that came after them; the first of them is the largest.
    Each value comes and goes once.
    """

    def __init__(self, window: int = 256) -> None:
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
