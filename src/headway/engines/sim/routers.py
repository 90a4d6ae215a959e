"""Who of several servers gets a request; one short rule each.

Ties go to the first of the servers. What a router sees of them may be old (``signals.py``).
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from headway.engines.sim.signals import Signals
from headway.engines.virtual import VirtualCall

GUESSED_OUTPUT_TOKENS = 256
"""What an unfinished request counts beside its prompt, since nobody knows its output's length."""

PRESSURE_GUARD = 2.0
"""How much more pressure than the least a server may have that is chosen for what it has cached
(experiments/fleet: with 1 agents keep 98.8 % of unequal servers, with 2 and 4 99.6; turns lose 8
points with 4). Larger: a popular prefix makes one server slow; smaller: prompts are computed on
servers that have not seen them."""

MATCHED_SHARE = 0.5
"""The share of a prompt that a server must have cached to be chosen for it (experiments/fleet:
agents keep 89 to 98 % with a quarter, 99.6 to 100 with half and with three quarters). Larger:
prompts are computed again that a server has most of; smaller: everybody goes to the server that
first computed a common head."""

MOST_ASKED = 8
"""Servers that are asked for a quote of one request: each answer costs its server about what a plan
costs (experiments/fleet: four do as well, two keep 0.4 points less where servers are unequal).
Larger: more questions than plans; smaller: a yes may be missed."""


class Router(Protocol):
    """Chooses a server for each request, knowing what a gateway could know."""

    def choose(self, call: VirtualCall, signals: Signals, among: Sequence[int]) -> int:
        """Return which of the servers *among*, in rising order, gets *call*, which is here now."""


class RoundRobin(Router):
    """One after another."""

    def __init__(self) -> None:
        self._next = 0

    def choose(self, call: VirtualCall, signals: Signals, among: Sequence[int]) -> int:
        """Return the next index, wrapping round."""
        chosen = among[bisect_left(among, self._next) % len(among)]
        self._next = chosen + 1
        return chosen


class LeastWork(Router):
    """The server with the least work unfinished: prompts, and a guess for each output.

    Unfinished prompts count whole, as a gateway sees them.

    Args:
        output_tokens: What an unfinished request counts beside its prompt.
    """

    def __init__(self, output_tokens: int = GUESSED_OUTPUT_TOKENS) -> None:
        self._output_tokens = output_tokens

    def choose(self, call: VirtualCall, signals: Signals, among: Sequence[int]) -> int:
        """Return the first of the least loaded."""
        among = signals.compared(among)
        return _least(among, self.work_tokens(signals, among))

    def work_tokens(self, signals: Signals, among: Sequence[int]) -> list[int]:
        """Return the tokens that each server has not finished."""
        guess, seen = self._output_tokens, signals.seen()
        chosen = map(seen.__getitem__, among)
        return [one.unfinished_prompt_tokens + guess * one.num_unfinished for one in chosen]


class LeastKv(Router):
    """The server with the most KV to spare, what queued prompts will take counted as taken."""

    def choose(self, call: VirtualCall, signals: Signals, among: Sequence[int]) -> int:
        """Return the first of those with the smallest share of their KV taken."""
        among, seen = signals.compared(among), signals.seen()
        return _least(among, [seen[i].kv_load_share for i in among])


class LeastPressure(Router):
    """The server with less pressure, as it says itself, of two drawn at random.

    Of two with as much, that with less work. A server knows of a request when its next step is
    planned, so that what it says is always a little old.
    """

    def __init__(self) -> None:
        self._work = LeastWork()

    def choose(self, call: VirtualCall, signals: Signals, among: Sequence[int]) -> int:
        """Return the one of two with less pressure."""
        among = signals.drawn(among)
        pressures = signals.pressures(among)
        work = self._work.work_tokens(signals, among)
        return _least(among, list(zip(pressures, work, strict=True)))


class LongestPrefix(Router):
    """The server that has most of the prompt cached, of those not much busier than the others.

    Of several, and where no such server has half of it, as :class:`LeastPressure`. Cache-aware
    routing as in SGLang's router (``--cache-threshold``, ``--balance-abs-threshold``). Differs:
    the caches themselves are asked, not a guess of what they hold, and load is the server's own
    pressure, not a count of its requests.
    """

    def __init__(self) -> None:
        self._pressure = LeastPressure()

    def choose(self, call: VirtualCall, signals: Signals, among: Sequence[int]) -> int:
        """Return the one with the longest prefix within the guard."""
        pressures = signals.pressures(among)
        most = min(pressures) + PRESSURE_GUARD
        free = [i for i, pressure in zip(among, pressures, strict=True) if pressure <= most]
        cached = signals.cached_tokens(call, free)
        longest = max(cached)
        if longest < MATCHED_SHARE * call.num_prompt_tokens:
            return self._pressure.choose(call, signals, among)
        best = [i for i, tokens in zip(free, cached, strict=True) if tokens == longest]
        return self._pressure.choose(call, signals, best)


class BestQuote(Router):
    """The server that quotes the promise with the most time to spare.

    Each is asked about this very request, now; of many :data:`MOST_ASKED`, drawn at random. Where
    nobody says yes, and where several have as much to spare, as :class:`LeastPressure`.
    """

    def __init__(self) -> None:
        self._pressure = LeastPressure()
        self._rng = random.Random(0)

    def choose(self, call: VirtualCall, signals: Signals, among: Sequence[int]) -> int:
        """Return the one that says yes with the most slack."""
        asked = among if len(among) <= MOST_ASKED else self._rng.sample(among, MOST_ASKED)
        quotes = dict(zip(asked, signals.quotes(call, asked), strict=True))
        able = {i: quote.slack_s for i, quote in quotes.items() if quote.feasible}
        most_s = max(able.values(), default=0.0)
        best = [i for i, slack_s in able.items() if slack_s == most_s]
        return best[0] if len(best) == 1 else self._pressure.choose(call, signals, best or among)


ROUTERS: dict[str, Callable[[], Router]] = {
    "round-robin": RoundRobin,
    "least-work": LeastWork,
    "least-kv": LeastKv,
    "pressure": LeastPressure,
    "prefix": LongestPrefix,
    "quote": BestQuote,
}
"""Routers by the names that a user gives them."""


def _least(among: Sequence[int], keys: Sequence[Any]) -> int:
    """Return the first of *among* with the least key."""
    return among[keys.index(min(keys))]
