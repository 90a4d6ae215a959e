"""Who fills what is left of a step, in tokens and in KV blocks at once (AccelGen's A3).

Three rules for the same question, to be compared: the paper's nearest demand, the dot product
of multi-resource packing (Tetris, SIGCOMM 2014), and the best subset there is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

MOST_EXACT = 12
"""Demands the exact rule looks at; the subsets of more would cost milliseconds a step."""


class Amount(NamedTuple):
    """Tokens of a step and blocks of KV: what there is, what is left, what is asked for."""

    num_tokens: int
    num_blocks: int

    def covers(self, other: Amount) -> bool:
        """Return whether *other* fits."""
        return self.num_tokens >= other.num_tokens and self.num_blocks >= other.num_blocks


class Packer(Protocol):
    """Chooses among candidates."""

    def pick(self, demands: Sequence[Amount], left: Amount, capacity: Amount) -> list[int]:
        """Return the indices to take now, none when nothing fits.

        Args:
            demands: What each candidate asks for, in order of importance: earlier wins ties.
            left: What is left of the step.
            capacity: What a step and the cache have in all; both axes are measured in it.
        """


def distance(demand: Amount, left: Amount, capacity: Amount) -> float:
    """Return the Euclidean distance between demand and left-over, as shares of the capacity."""
    return math.hypot(
        (left.num_tokens - demand.num_tokens) / max(capacity.num_tokens, 1),
        (left.num_blocks - demand.num_blocks) / max(capacity.num_blocks, 1),
    )


class Nearest(Packer):
    """The one whose demand is nearest to what is left (the paper's rule)."""

    def pick(self, demands: Sequence[Amount], left: Amount, capacity: Amount) -> list[int]:
        """See :class:`Packer`."""
        fitting = [i for i, demand in enumerate(demands) if left.covers(demand)]
        return [min(fitting, key=lambda i: distance(demands[i], left, capacity))] if fitting else []


class Aligned(Packer):
    """The one with the largest dot product of demand and left-over."""

    def pick(self, demands: Sequence[Amount], left: Amount, capacity: Amount) -> list[int]:
        """See :class:`Packer`."""
        by_tokens = left.num_tokens / max(capacity.num_tokens, 1) ** 2
        by_blocks = left.num_blocks / max(capacity.num_blocks, 1) ** 2
        fitting = [i for i, demand in enumerate(demands) if left.covers(demand)]
        if not fitting:
            return []
        return [
            max(
                fitting,
                key=lambda i: demands[i].num_tokens * by_tokens + demands[i].num_blocks * by_blocks,
            )
        ]


class BestSubset(Packer):
    """The subset whose sum is nearest to what is left, among the first :data:`MOST_EXACT`.

    Sums that several subsets reach are kept once, so equal demands cost little.
    """

    def pick(self, demands: Sequence[Amount], left: Amount, capacity: Amount) -> list[int]:
        """See :class:`Packer`."""
        reached: dict[Amount, tuple[int, ...]] = {Amount(0, 0): ()}
        for index, demand in enumerate(demands[:MOST_EXACT]):
            for total, members in list(reached.items()):
                more = Amount(
                    total.num_tokens + demand.num_tokens, total.num_blocks + demand.num_blocks
                )
                if left.covers(more):
                    reached.setdefault(more, (*members, index))
        return list(reached[min(reached, key=lambda total: distance(total, left, capacity))])


PACKERS: dict[str, type[Packer]] = {"nearest": Nearest, "aligned": Aligned, "exact": BestSubset}
