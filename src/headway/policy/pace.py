"""How fast steps come: those in flight, how long the recent ones took, when the next begins."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from headway.latency.model import LatencyModel, StepShape
from headway.policy.recent import NEWEST_WEIGHT, LongestRecent


@dataclass(slots=True)
class InFlight:
    """A step the engine has begun: its shape, when, and what it was predicted to take."""

    shape: StepShape
    at_s: float
    predicted_s: float
    follows: bool


class Pace:
    """The clockwork of the steps. A step is timed from the end of the one before it, if it follows.

    Attributes:
        step: Steps begun so far.
        step_s: Recent mean duration of a step; a decode's, as predicted, before any ended.
        in_flight: Steps begun and not ended, the oldest first.
    """

    def __init__(self, latency: LatencyModel) -> None:
        self.step = 0
        self.step_s = latency.predict_s(StepShape(0, 0, 1, 0))
        self.in_flight: deque[InFlight] = deque()
        self._idle = True
        self._last_done_s = -math.inf
        self._longest = LongestRecent()

    @property
    def max_step_s(self) -> float:
        """The longest recent step; 0 before the first."""
        return self._longest.largest(0.0)

    def begun(self, shape: StepShape, at_s: float, predicted_s: float) -> None:
        """A step with work in it is in flight."""
        follows = bool(self.in_flight) or (not self._idle and self._last_done_s > -math.inf)
        self._idle = False
        self.in_flight.append(InFlight(shape, at_s, predicted_s, follows))
        self.step += 1

    def done(self, at_s: float) -> tuple[StepShape, float] | None:
        """The oldest step ended; return its shape and its seconds, ``None`` if none was begun."""
        ended = None
        if self.in_flight:
            step = self.in_flight.popleft()
            duration_s = at_s - (self._last_done_s if step.follows else step.at_s)
            self.step_s += NEWEST_WEIGHT * (duration_s - self.step_s)
            self._longest.add(duration_s)
            ended = step.shape, duration_s
        self._last_done_s = at_s
        return ended

    def stop(self) -> None:
        """The engine computes nothing now: what begins after those in flight follows on nothing."""
        self._idle = True

    def begins_at_s(self, now_s: float) -> float:
        """Return when the next step begins, predicted while others are in flight."""
        is_first = (self._idle and not self.in_flight) or self._last_done_s == -math.inf
        begins_s = now_s if is_first else self._last_done_s
        for step in self.in_flight:
            begins_s = max(begins_s, step.at_s) + step.predicted_s
        return begins_s
