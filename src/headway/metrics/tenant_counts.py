"""What each tenant asked for and got, in memory that does not grow with the number of tenants.

Those with the most requests are told by name, all others together. Requests are ranked by
space-saving counters (Metwally, Agrawal and El Abbadi 2005, "Efficient computation of frequent and
top-k elements in data streams", section 3). Differs: a newcomer is told by name only after more
requests of its own, since it was last ranked, than somebody who is told has, so that a crowd of
passers-by does not make a new time series each; and who is told keeps its counter.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, heapreplace
from typing import Any

from headway.metrics.tally import OUTCOMES

MOST_TOLD = 50
"""Tenants told by name: as many lines as a person reads, and as a metric may have labels."""

MOST_RANKED = 1000
"""Others that are ranked, in a quarter of a megabyte: of the requests of all who are not told by
name, whoever sends one in a thousand is found, however many tenants there are."""

OTHERS, NOBODY = "others", "none"
"""Who is not told by name; requests without a tenant. Tenants that are called so count there."""


@dataclass(slots=True, eq=False)
class TenantTally:
    """What became of the requests of one tenant while it was told by name.

    Attributes:
        outcomes: Requests that ended, by :data:`~headway.metrics.tally.OUTCOMES`.
        promised: Of those, the ones with a promise; ``attained`` kept it.
        prompt_tokens: Of the requests that ended and had been started.
        engine_s: Its share of the steps' seconds; see :meth:`TenantCounts.done`.
        num_in_step: Its decodes that get a token every step, now.
        heir: Who is counted in its place since others are told by name.
    """

    outcomes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(OUTCOMES, 0))
    promised: int = 0
    attained: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    engine_s: float = 0.0
    num_in_step: int = 0
    heir: TenantTally | None = None

    @property
    def counted(self) -> TenantTally:
        """The tally that counts what happens to its requests now."""
        return self.heir or self

    def ended(
        self, outcome: str, prompt_tokens: int, output_tokens: int, is_kept: bool | None
    ) -> None:
        """One of its requests ended; *is_kept* is ``None`` where nothing was promised."""
        counted = self.counted
        counted.outcomes[outcome] += 1
        counted.promised += is_kept is not None
        counted.attained += bool(is_kept)
        counted.prompt_tokens += prompt_tokens
        counted.output_tokens += output_tokens

    def snapshot(self) -> dict[str, Any]:
        """Return what only grows, as JSON's types."""
        return {
            "outcomes": dict(self.outcomes),
            "promised": self.promised,
            "attained": self.attained,
            "prompt_tokens": self.prompt_tokens,
            "output_tokens": self.output_tokens,
            "engine_s": self.engine_s,
        }


@dataclass(slots=True)
class Rank:
    """Requests of a tenant: ``own`` since it is ranked, at most ``before`` before that."""

    before: int
    own: int = 0

    @property
    def total(self) -> int:
        """Its requests, or more."""
        return self.before + self.own


class TenantCounts:
    """The tally of every tenant that is told; empty until a request names one."""

    def __init__(self) -> None:
        self.by_name: dict[str, TenantTally] = {}
        self._told: dict[str, int] = {}  # Requests of those told by name, since they are ranked.
        self._least_told = 0
        self._ranks: dict[str, Rank] = {}  # Of those who are not.
        self._heap: list[tuple[int, str]] = []
        self._prompts: dict[str, TenantTally] = {}
        self._steps: deque[tuple[float, int, int, Sequence[tuple[TenantTally, int]]]] = deque()
        self._last_done_s = -math.inf

    # -- requests -----------------------------------------------------------------------------

    def arrived(self, tenant: str) -> TenantTally | None:
        """Count a request's arrival; return who counts it, nobody before any names a tenant."""
        if not tenant and not self.by_name:
            return None
        if tenant in ("", NOBODY, OTHERS):
            return self._reserved(tenant or NOBODY)
        if tenant in self._told:
            self._told[tenant] += 1
            return self.by_name[tenant]
        own = self._rank(tenant)
        if len(self._told) >= MOST_TOLD:
            if own > self._least_told:  # It only grows, so this is at most what it is now.
                self._least_told = min(self._told.values())
            if own <= self._least_told:
                return self._reserved(OTHERS)
        del self._ranks[tenant]
        if len(self._told) >= MOST_TOLD:
            self._drop(min(self._told, key=self._told.__getitem__))
        self._told[tenant] = own
        return self._reserved(tenant)

    def _reserved(self, name: str) -> TenantTally:
        return self.by_name.setdefault(name, TenantTally())

    def _rank(self, tenant: str, num: int = 1) -> int:
        """Count *num* requests of somebody not told; return how many since it is ranked."""
        ranks = self._ranks
        rank = ranks.get(tenant)
        if rank is None:
            before = self._make_room() if len(ranks) >= MOST_RANKED else 0
            rank = ranks[tenant] = Rank(before)
            heappush(self._heap, (before, tenant))
        rank.own += num
        return rank.own

    def _make_room(self) -> int:
        """Let the one with the fewest requests go; return how many these were at most.

        Totals in the heap are as of when they were put there, and some names have been told since.
        """
        heap, ranks = self._heap, self._ranks
        if len(heap) > 2 * MOST_RANKED:
            heap[:] = [(rank.total, name) for name, rank in ranks.items()]
            heapify(heap)
        while True:
            total, name = heap[0]
            rank = ranks.get(name)
            if rank is None:
                heappop(heap)
            elif rank.total > total:
                heapreplace(heap, (rank.total, name))
            else:
                heappop(heap)
                del ranks[name]
                return total

    def _drop(self, name: str) -> None:
        """Tell a tenant by name no more; what it has running is the others' from now on.

        Its counts go with its name: were they added to the others', these would seem to have sent
        all of them at once.
        """
        gone, others = self.by_name.pop(name), self._reserved(OTHERS)
        others.num_in_step += gone.num_in_step
        gone.heir = others
        self._rank(name, self._told.pop(name))

    # -- steps ----------------------------------------------------------------------------------

    def started(self, request_id: str, tally: TenantTally | None) -> None:
        """A request began to compute, or goes on after it had lost its place."""
        if tally is not None:
            self._prompts[request_id] = tally

    def stopped(self, request_ids: Collection[str]) -> None:
        """Requests got a token or ended: no prompt of theirs is computed."""
        for request_id in [i for i in self._prompts if i in request_ids]:
            del self._prompts[request_id]

    def scheduled(self, at_s: float, tokens: Mapping[str, int], num_tokens: int) -> None:
        """A step was begun that computes *tokens* of each request, *num_tokens* in all."""
        prompts = [(tally, tokens[i]) for i, tally in self._prompts.items() if i in tokens]
        self._steps.append((at_s, num_tokens, len(tokens), prompts))

    def done(self, at_s: float, emitted: Collection[str]) -> None:
        """The oldest step ended: share its seconds out by tokens. Before anybody falls in step.

        Prompts are counted to the token. Of the other tokens every decode has the same number: a
        loop over all decodes would cost more than all else that is counted in a step. So whose
        drafts were longer (speculative decoding) does not show, nor the one token with which a
        decode comes back that was out of step.
        """
        begins_s, num_tokens, num_requests, prompts = self._steps.popleft()
        token_s = (at_s - max(begins_s, self._last_done_s)) / num_tokens
        self._last_done_s = at_s
        if not self.by_name:
            return
        for tally, num in prompts:
            tally.counted.engine_s += token_s * num
        num_decodes = num_requests - len(prompts)
        if num_decodes:
            decode_s = token_s * (num_tokens - sum(num for _, num in prompts)) / num_decodes
            for tally in self.by_name.values():
                tally.engine_s += decode_s * tally.num_in_step
        self.stopped(emitted)

    # -- what is told -----------------------------------------------------------------------------

    def snapshot(self) -> dict[str, Any]:
        """Return the tally of everybody who is told, by name."""
        return {name: tally.snapshot() for name, tally in self.by_name.items()}
