"""The tightest first token promised of late, for rules that heed every promise."""

from __future__ import annotations

import math
from typing import Any

from headway.policy.known import Known
from headway.request import Request

TIGHT_FOR_S = 60.0
"""Seconds for which the tightest promise speaks of those to come; one as tight begins them anew."""


class TightestRecent:
    """The tightest promise that came, until none as tight has come for :data:`TIGHT_FOR_S`."""

    def __init__(self) -> None:
        self._seen_at_s = -math.inf
        self.value_s = math.inf

    def add(self, promise_s: float | None, at_s: float) -> None:
        """Take in what a newcomer promises, or ``None``."""
        is_stale = at_s - self._seen_at_s > TIGHT_FOR_S
        if promise_s is not None and (promise_s <= self.value_s or is_stale):
            self.value_s = promise_s
            self._seen_at_s = at_s
        elif is_stale:
            self.value_s = math.inf


class Tightest(Known):
    """What is known, where the tightest recent first token counts.

    Args:
        tightest: Shared with the rule that heeds it.
        known: See :class:`~headway.policy.known.Known`.
    """

    def __init__(self, tightest: TightestRecent, *known: Any) -> None:
        super().__init__(*known)
        self._tightest = tightest

    def _judge(self, request: Request, at_s: float) -> None:
        super()._judge(request, at_s)
        self._tightest.add(request.slo.ttft_s if request.has_claim else None, at_s)
