"""What the servers of a fleet say of themselves, as old as it is when a router sees it.

A server's time passes only when somebody looks at it: where nobody does, servers are simulated
one after another, which is quicker. Where refused requests are tried elsewhere the fleet lets time
pass itself, in the order of events.
"""

from __future__ import annotations

import math
import random
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from headway.engines.sim.blocks import num_cached_tokens
from headway.engines.sim.job import Job, TokensKey
from headway.engines.sim.run import SimRun
from headway.engines.virtual import Outcome, VirtualCall
from headway.policy.quote import Quote

COMPARED = 2
"""Servers that are compared for a request by what they were a moment ago (experiments/fleet: of
eight unequal servers one drawn keeps 93.5 %, the better of two 95.7, of four 95.3, of all 86.3).
Larger: more requests go where it was best then; smaller, that is, one: nobody looks."""


class Sight(Protocol):
    """What a router sees of a server: the server itself, or how it was a moment ago."""

    @property
    def unfinished_prompt_tokens(self) -> int:
        """See :class:`~headway.engines.sim.clients.Clients`, like the others."""

    @property
    def num_unfinished(self) -> int: ...  # noqa: D102

    @property
    def kv_load_share(self) -> float: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Sample:
    """How a server was at one instant; ``cached`` are the names of its cached blocks."""

    unfinished_prompt_tokens: int
    num_unfinished: int
    kv_load_share: float
    pressure: float
    cached: Collection[TokensKey]

    @classmethod
    def of(cls, server: SimRun, at_s: float) -> Sample:
        """Return how *server* is at *at_s*, to which its time has passed."""
        return cls(
            server.unfinished_prompt_tokens,
            server.num_unfinished,
            server.kv_load_share,
            server.policy.load(at_s).pressure,
            frozenset(server.machine.pool.cached),
        )


class Signals:
    """The servers of a fleet as a router sees them.

    Args:
        age_s: The servers are sampled every so many seconds, all at one instant, and seen as they
            were then; 0 shows them as they are.
        lets_time_pass: Whether looking at a server lets its time pass to the present; if not, it
            has passed already.
    """

    def __init__(self, servers: Sequence[SimRun], age_s: float, *, lets_time_pass: bool) -> None:
        self.now_s = 0.0
        """The present, which never goes back."""
        self._servers = servers
        self._age_s = age_s
        self._lets_time_pass = lets_time_pass
        self._rng = random.Random(0)
        self._passed_s = -math.inf
        self._samples: Sequence[Sample] = ()
        self._pressures: dict[int, tuple[float, float]] = {}
        self.next_sample_s = 0.0 if age_s else math.inf
        """When the next sample is due."""

    def sample_if_due(self, now_s: float) -> None:
        """Sample the servers if the last sample due until *now_s* is not taken yet."""
        if now_s >= self.next_sample_s:
            tick = now_s // self._age_s
            self._let_pass(tick * self._age_s)
            self._samples = [Sample.of(server, tick * self._age_s) for server in self._servers]
            self.next_sample_s = (tick + 1) * self._age_s

    def compared(self, among: Sequence[int]) -> Sequence[int]:
        """Return which of the servers *among* to compare: all, or where signals are old two."""
        return self.drawn(among) if self._age_s else among

    def drawn(self, among: Sequence[int]) -> Sequence[int]:
        """Return two of the servers *among*, drawn at random, all where they are not more.

        Until it is known what a server was sent, all requests would go to the one that looked best
        before. Two drawn for each request share them out, and mostly avoid the worst (Mitzenmacher,
        "How Useful Is Old Information?", 2000; vllm-router's ``power_of_two``). In the order drawn,
        so that of two alike either may come first.
        """
        return among if len(among) <= COMPARED else self._rng.sample(among, COMPARED)

    def seen(self) -> Sequence[Sight]:
        """Return all servers as they are seen now."""
        if not self._age_s:
            self._let_pass(self.now_s)
            return self._servers
        self.sample_if_due(self.now_s)
        return self._samples

    def pressures(self, among: Iterable[int]) -> list[float]:
        """Return the pressures of servers; see :class:`~headway.policy.quote.ServerLoad`."""
        self.seen()
        if self._age_s:
            return [self._samples[i].pressure for i in among]
        known = self._pressures  # Of this instant: nothing can change them within it.
        for i in among:
            if known.get(i, (-1.0,))[0] != self.now_s:
                known[i] = self.now_s, self._servers[i].policy.load(self.now_s).pressure
        return [known[i][1] for i in among]

    def cached_tokens(self, call: VirtualCall, among: Iterable[int]) -> list[int]:
        """Return how many tokens of the prompt each server finds in its cache."""
        self.seen()
        job = Job(call, Outcome(call))
        if self._age_s:
            caches = [self._samples[i].cached for i in among]
        else:
            caches = [self._servers[i].machine.pool.cached for i in among]
        size = self._servers[0].engine.block_size
        return [num_cached_tokens(cached, job, size) for cached in caches]

    def quotes(self, call: VirtualCall, among: Iterable[int]) -> list[Quote]:
        """Return what each server answers when it is asked now, whatever the age of signals."""
        self.sample_if_due(self.now_s)  # Before time passes beyond it.
        self._let_pass(self.now_s)
        job, (slo, _) = Job(call, Outcome(call)), self._servers[0].slo_of(call)
        return [self._servers[i].quote(job, slo, self.now_s) for i in among]

    def _let_pass(self, at_s: float) -> None:
        if self._lets_time_pass and at_s > self._passed_s:
            self._passed_s = at_s
            for server in self._servers:
                if server.next_event_s <= at_s:
                    server.advance(at_s)
