"""The longest of the last steps, in constant time a step, and the tightest of recent promises."""

from __future__ import annotations

import math
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


class TightestRecent:
    """The tightest of the promises that came within some seconds of the last that was as tight.

    Args:
        seconds: After so long a looser one takes its place.
    """

    def __init__(self, seconds: float = 60.0) -> None:
        self._seconds = seconds
        self._seen_at_s = -math.inf
        self.value_s = math.inf

    def add(self, promise_s: float | None, at_s: float) -> None:
        """A request came that promises this, or nothing."""
        is_stale = at_s - self._seen_at_s > self._seconds
        if promise_s is not None and (promise_s <= self.value_s or is_stale):
            self.value_s = promise_s
            self._seen_at_s = at_s
        elif is_stale:
            self.value_s = math.inf
