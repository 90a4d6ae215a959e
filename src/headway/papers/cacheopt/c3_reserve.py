"""The global reserve: blocks set aside for everyone, against wrong predictions."""

from __future__ import annotations

import math
from collections import deque
from typing import Protocol

from sortedcontainers import SortedList

from headway.policy.context import PlanContext

MOST_SHARE = 0.125
"""Of the whole cache; a larger reserve costs more than the wrong predictions it pays for."""


class Reserve(Protocol):
    """How many blocks are kept from everybody but the critical."""

    def num_blocks(self, ctx: PlanContext) -> int:
        """Return the reserve of this plan, at most :data:`MOST_SHARE` of the cache."""


class NoReserve(Reserve):
    """Every block is for whoever comes."""

    def num_blocks(self, ctx: PlanContext) -> int:
        """Return 0."""
        return 0


class FixedReserve(Reserve):
    """Always as many blocks (CacheOPT's reserve; 8 is what is known of it)."""

    def __init__(self, num_blocks: int = 8) -> None:
        self._num_blocks = num_blocks

    def num_blocks(self, ctx: PlanContext) -> int:
        """Return the number, less in a tiny cache."""
        return min(self._num_blocks, int(MOST_SHARE * ctx.view.num_total_blocks))


class MeasuredReserve(Reserve):
    """As many blocks as predictions were wrong by, together, in most recent plans.

    Of what each running request holds beyond its first reservation the sum is taken over all of
    them: errors of many requests partly cancel in time, and their sum is what the reserve has
    to pay for.

    Args:
        quantile: Of the sums; in this share of the plans the reserve would have been enough.
        window: Plans remembered.
    """

    def __init__(self, quantile: float = 0.95, window: int = 512) -> None:
        self._quantile = quantile
        self._recent: deque[int] = deque(maxlen=window)
        self._sorted: SortedList = SortedList()

    def num_blocks(self, ctx: PlanContext) -> int:
        """Take the present sum in and return the quantile."""
        self.learn(ctx.ledger.overrun_tokens(ctx.step))
        rank = min(math.ceil(self._quantile * len(self._sorted)), len(self._sorted))
        return min(
            ctx.blocks(self._sorted[max(rank, 1) - 1]),
            int(MOST_SHARE * ctx.view.num_total_blocks),
        )

    def learn(self, overrun_tokens: int) -> None:
        """Remember one plan's sum."""
        if len(self._recent) == self._recent.maxlen:
            self._sorted.remove(self._recent[0])
        self._recent.append(overrun_tokens)
        self._sorted.add(overrun_tokens)
