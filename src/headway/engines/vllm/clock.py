"""The driver's clock; the harness puts a virtual one in its place."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # The HTTP edge, which needs no engine, reads OLDEST_S here.
    from vllm.v1.request import Request

OLDEST_S = 60.0
"""A request is not believed to be older: the two clocks may have been set apart."""


class WallClock:
    """Monotonic seconds."""

    def now_s(self) -> float:
        """Return now."""
        return time.monotonic()

    def arrived_at_s(self, request: Request) -> float:
        """Return when the server received *request*, on this clock."""
        age_s = min(max(time.time() - request.arrival_time, 0.0), OLDEST_S)
        return time.monotonic() - age_s
