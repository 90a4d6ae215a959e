"""The default policy, told what nobody knows in advance: every length, and what a step takes.

It decides as :class:`~headway.policy.decide.Headway` does; only its guesses are replaced by the
truth. Which promises are given up is decided for it: such a request is served as one whose promise
is broken, from the instant it arrives. Whose that should be is searched (:func:`improve`).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from headway.errors import UserError
from headway.latency.model import LatencyModel
from headway.oracle.policy import KnownTime, true_lengths
from headway.oracle.search import Player, SearchResult
from headway.oracle.simulated import SimulatedPlayer
from headway.policy.decide import Headway
from headway.policy.events import Arrived, Event
from headway.policy.kv.forecast import HORIZONS, Floats, Lifetimes
from headway.policy.planner import Planner
from headway.policy.scheduler import Scheduler
from headway.policy.swap_choice import Cheaper
from headway.policy.weigh import ExpectedLengths
from headway.request import Standing

IMPROVE_PLAYS = 60
"""Choices tried after those it starts from; a play of 100 requests takes 0.1 to 0.5 s."""

MAX_WAIT_S = 300.0
"""As long as the preset lets best effort wait, and as it takes victims' KV."""

SWAP_SHARE = 0.7
"""How often a try also gives up someone who is kept, for the time it frees."""

DRAWS_A_PLAY = 4
"""Choices drawn for each that may be played; those played before are drawn again."""

NEARBY = 24
"""Those who came at about the same time: whose time another could have used."""


class ToldLifetimes(Lifetimes):
    """Lifetimes that are known: every output takes all of its bound.

    :class:`ToldScheduler` sees to it that a bound is the true length.
    """

    def learn(self, class_name: str, num_output_tokens: int, is_cut: bool = False) -> None:
        """Nothing is left to learn."""

    def survive(self, class_name: str, so_far: Floats, bound: Floats) -> Floats:
        """See :class:`~headway.policy.kv.forecast.Lifetimes`: 1 up to the bound, then 0."""
        alive: Floats = (so_far[:, None] + HORIZONS[None, :] < bound[:, None]).astype(float)
        return alive

    def of_one(self, class_name: str, so_far: int, bound: int) -> tuple[Floats, float]:
        """See :class:`~headway.policy.kv.forecast.Lifetimes`; the tokens to come are exact."""
        ahead = bound - so_far
        return (ahead > HORIZONS).astype(float), max(float(ahead), 1.0)


class ToldLengths(ExpectedLengths):
    """The default policy's source of lengths, with lifetimes that are known."""

    def __init__(self) -> None:
        self.lifetimes = ToldLifetimes()


class ToldTime(KnownTime):
    """Step times that are told to a policy that is also told whom to give up."""

    @property
    def is_warm(self) -> bool:
        """Return that they are not: then no gap is called dear, and nobody given up for it.

        The prices of :mod:`headway.policy.prices` go by recent claims: where gaps of every length
        are promised they gave up a third and more of what is kept without.
        """
        return False


class ToldScheduler(Scheduler):
    """The default policy that hears of each request how long it will be, and whom to give up.

    Args:
        lengths: Output tokens of each request, by id.
        given_up: Requests whose promise counts as broken when they arrive.
    """

    def __init__(
        self,
        planner: Planner,
        latency: LatencyModel,
        overload: str,
        lengths: Mapping[str, int],
        given_up: Collection[str],
    ) -> None:
        super().__init__("told", planner, latency, overload)
        self._lengths = lengths
        self._given_up = frozenset(given_up)

    def observe(self, event: Event) -> None:
        """Take in what happened; an arrival with the true length in place of the bound."""
        if not isinstance(event, Arrived):
            super().observe(event)
            return
        super().observe(replace(event, max_output_tokens=self._lengths[event.request_id]))
        request = self.live.requests[event.request_id]
        if event.request_id in self._given_up and request.has_claim:
            self.live.change_standing(request, Standing.LOST)
            request.note(event.at_s, "promise given up: others are kept in its place")


class ToldPlayer(SimulatedPlayer):
    """Plays the told policy: all who are not in an order are given up. It orders by itself."""

    def scheduler(self, found: SearchResult) -> Scheduler:
        """Return a policy core, new, that gives up whom *found* does not rank."""
        one = self.instance
        planner = Headway(MAX_WAIT_S, Cheaper(), ToldLengths())
        lengths = true_lengths(one.requests)
        return ToldScheduler(planner, ToldTime(one.step_s), one.overload, lengths, found.dropped)


@dataclass(slots=True)
class BestChoice:
    """The best choice so far of whom to serve: the most kept, and of as many the least work.

    Less work leaves time that one more could use, so a search that only counts would stand still.
    """

    player: Player
    work_s: Sequence[float]
    served: frozenset[int] = frozenset()
    kept: frozenset[int] = frozenset()
    tried: set[frozenset[int]] = field(default_factory=set)

    def try_(self, served: frozenset[int]) -> None:
        """Play a choice that was not played before, and keep it when it is no worse."""
        if served in self.tried:
            return
        self.tried.add(served)
        kept = frozenset(self.player.play(sorted(served)))
        if self._worth(kept) >= self._worth(self.kept):
            self.served, self.kept = served, kept

    def _worth(self, kept: frozenset[int]) -> tuple[int, float]:
        return len(kept), -math.fsum(self.work_s[i] for i in kept)


def improve(
    player: Player,
    starts: Iterable[Iterable[int]],
    *,
    seed: int = 0,
    max_plays: int = IMPROVE_PLAYS,
    most: int | None = None,
) -> SearchResult:
    """Return the best choice of requests to serve, by a local search from the best of *starts*.

    For a player that orders by itself: an order is a choice, sorted. The same arguments give the
    same result.

    Args:
        starts: Choices, by index; all of them are played.
        max_plays: Plays after those.
        most: Stops where so many are kept; by default everybody.

    Raises:
        UserError: There is no request.
    """
    names = [request.id for request in player.requests]
    if not names:
        raise UserError("A search needs at least one request.")
    most = len(names) if most is None else most
    rng = np.random.default_rng([seed, 0x701D])
    best = BestChoice(player, [player.work_s(i) for i in range(len(names))])
    for start in starts:
        if len(best.kept) < most:
            best.try_(frozenset(start))
    last = len(best.tried) + max_plays
    for _ in range(DRAWS_A_PLAY * max_plays):  # Of few requests all choices may have been tried.
        if len(best.tried) >= last or len(best.kept) >= min(most, len(names)):
            break
        best.try_(_another(best, rng))
    rank = {names[index]: at for at, index in enumerate(sorted(best.served))}
    dropped = frozenset(names).difference(rank)
    return SearchResult(rank, dropped, len(best.kept) / len(names), len(best.tried))


def _another(best: BestChoice, rng: np.random.Generator) -> frozenset[int]:
    """Return those kept and one more, rather a short one; often in place of a longer one."""
    work_s, requests = best.work_s, best.player.requests
    outside = [i for i in range(len(requests)) if i not in best.kept]
    new = int(rng.choice(outside, p=_shares([1.0 / work_s[i] for i in outside])))
    served = best.kept | {new}
    if rng.random() < SWAP_SHARE:
        at_s = requests[new].arrived_at_s
        by_distance = sorted(best.kept, key=lambda i: (abs(requests[i].arrived_at_s - at_s), i))
        longer = [i for i in by_distance[:NEARBY] if work_s[i] > work_s[new]]
        if longer:
            shares = _shares([work_s[i] - work_s[new] for i in longer])
            served -= {int(rng.choice(longer, p=shares))}
    return served


def _shares(weights: Sequence[float]) -> Floats:
    """Return weights that sum to one."""
    return np.array(weights) / math.fsum(weights)
