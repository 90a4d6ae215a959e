"""The paper's oracle: arrivals and lengths are known, and orders are searched (AccelGen, A4).

A local search over who is served and in which order. It is judged by a player: the fast
:class:`~.fast_model.StepModel` for hundreds of orders, or a simulator. What comes out is a good
schedule, not the best: :func:`~.bound.bound` says how much better one could be, and the oracle
serves by it only where no other way keeps more (:mod:`headway.study.on_oracle`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from headway.errors import UserError
from headway.workloads.schema import WorkloadRequest

DEFAULT_PLAYS = 300
"""Orders tried; a play of 300 requests takes some 50 ms."""

SWAP_SHARE, MOVE_SHARE = 0.4, 0.2
"""How often a try also gives up someone who is served, or only moves one within the order."""


class Player(Protocol):
    """Plays orders of the same requests; the same order always comes out the same."""

    @property
    def requests(self) -> Sequence[WorkloadRequest]:
        """The requests; everywhere else they are known by their index here."""

    def due_at_s(self, index: int) -> float:
        """Return when the first token of a request is due at the latest."""

    def work_s(self, index: int) -> float:
        """Return roughly the engine seconds a request takes."""

    def play(self, order: Sequence[int]) -> set[int]:
        """Return whose promise is kept when *order* is served first to last."""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """The best order found.

    Attributes:
        rank: Place of each request that is served for its promise, by id; 0 comes first.
        dropped: Ids of those whose promise is given up.
        attainment: Share of all requests kept, by the player.
        num_plays: Orders tried.
    """

    rank: Mapping[str, int]
    dropped: frozenset[str]
    attainment: float
    num_plays: int


@dataclass(slots=True)
class Best:
    """The best order so far, as it was played, and whose promise it kept."""

    player: Player
    order: Sequence[int] = ()
    kept: frozenset[int] = frozenset()
    num_plays: int = 0

    def try_(self, order: Sequence[int]) -> None:
        """Play *order* and keep it when it is no worse."""
        kept = self.player.play(order)
        self.num_plays += 1
        if len(kept) >= len(self.kept):
            self.order, self.kept = tuple(order), frozenset(kept)

    def members(self) -> list[int]:
        """Return whose promise is kept, in order; those kept without a rank come last."""
        ranked = [i for i in self.order if i in self.kept]
        return ranked + sorted(self.kept.difference(ranked))


def search(
    player: Player,
    *,
    seed: int = 0,
    max_plays: int = DEFAULT_PLAYS,
    start: SearchResult | None = None,
) -> SearchResult:
    """Return the order that keeps the most promises among those tried.

    Starts from *start* and a few known rules, then changes one thing at a time and keeps what
    is no worse. The same arguments give the same result.

    Args:
        max_plays: Bounds the time.
        start: An order found before, perhaps by another player.

    Raises:
        UserError: There is no request, or nothing may be tried.
    """
    if not player.requests:
        raise UserError("A search needs at least one request.")
    if max_plays < 1:
        raise UserError(f"max_plays must be at least 1, not {max_plays!r}.")
    names = [request.id for request in player.requests]
    rng = np.random.default_rng([seed, 0x0AC1])
    best = Best(player)
    if start is not None:
        index = {name: i for i, name in enumerate(names)}
        best.try_([index[name] for name in sorted(start.rank, key=start.rank.__getitem__)])
    _try_rules(best, max_plays)
    while best.num_plays < max_plays and len(best.kept) < len(names):
        best.try_(_neighbour(best.members(), player, rng))
    rank = {names[index]: at for at, index in enumerate(best.order)}
    dropped = frozenset(name for name in names if name not in rank)
    return SearchResult(rank, dropped, len(best.kept) / len(names), best.num_plays)


def _try_rules(best: Best, max_plays: int) -> None:
    """Try the known rules.

    Each is played twice: once with everybody, once without those it lost, whose work was in vain.
    """
    player = best.player
    count = len(player.requests)
    rules = (
        lambda i: (player.due_at_s(i), i),
        lambda i: (player.work_s(i), i),
        lambda i: (player.due_at_s(i) + player.work_s(i), i),
        lambda i: (player.requests[i].arrived_at_s, i),
    )
    for rule in rules:
        alone = Best(player)
        order = sorted(range(count), key=rule)
        for _ in range(2):
            if best.num_plays == max_plays or len(best.kept) == count:
                return
            alone.try_(order)
            best.num_plays += 1
            order = alone.members()
        if len(alone.kept) > len(best.kept):
            best.order, best.kept = alone.order, alone.kept


def _neighbour(order: list[int], player: Player, rng: np.random.Generator) -> list[int]:
    """Return the order with someone new in it, near where due times would have it.

    Sometimes another is given up for it, one whose time it could have used; sometimes a member
    only moves.
    """
    tried = list(order)
    inside = set(order)
    outside = [i for i in range(len(player.requests)) if i not in inside]
    new = int(rng.choice(outside))
    if tried and rng.random() < MOVE_SHARE:
        tried.insert(int(rng.integers(len(tried))), tried.pop(int(rng.integers(len(tried)))))
    if tried and rng.random() < SWAP_SHARE:
        at_s = player.requests[new].arrived_at_s
        distances_s = [abs(player.requests[i].arrived_at_s - at_s) for i in tried]
        nearest = np.argsort(distances_s, kind="stable")[:16]
        tried.pop(int(rng.choice(nearest)))
    due_s = player.due_at_s(new)
    at = sum(player.due_at_s(i) <= due_s for i in tried) if due_s < math.inf else len(tried)
    spread = max(len(tried) // 20, 2)
    at = min(max(at + int(rng.integers(-spread, spread + 1)), 0), len(tried))
    tried.insert(at, new)
    return tried
