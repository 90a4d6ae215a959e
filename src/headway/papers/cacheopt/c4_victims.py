"""CacheOPT's order of victims, by buckets (arXiv 2503.13773 §3.4, as third parties cite it).

The loosest promised gap first, then the most output still to come, then the least KV held. Both
are compared in buckets, so that the next criterion has a say. Bucket widths are not known to us;
a request without a promise counts as infinitely patient. Before all of them go guests that
stand in their owner's way.

The paper knows no lost promise: a late request keeps its rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from headway.papers.cacheopt.c2_book import LendingBook
from headway.papers.cacheopt.critical import Critical
from headway.policy.draft import Draft
from headway.policy.preempt import Preemptor
from headway.policy.swap_choice import recompute_s
from headway.request import Request


class Buckets(Preemptor):
    """Whose KV goes first: the loosest gap, then the most output to come, then the least KV held.

    Args:
        book: Tells which guests are in their owner's way; ``None`` where nobody lends.
        critical: Who may be paid with a victim's KV; ``None`` pays no newcomer so.
        gap_bucket_s: Width of a bucket of promised gaps.
        remaining_bucket_tokens: Width of a bucket of predicted remaining output.
        look_ahead_steps: Guests are in the way this many steps before their owner needs the room.
    """

    def __init__(
        self,
        book: LendingBook | None = None,
        critical: Critical | None = None,
        gap_bucket_s: float = 0.05,
        remaining_bucket_tokens: int = 64,
        look_ahead_steps: int = 2,
    ) -> None:
        self._book = book
        self._critical = critical
        self._gap_bucket_s = gap_bucket_s
        self._remaining_bucket_tokens = remaining_bucket_tokens
        self._look_ahead_steps = look_ahead_steps

    def for_running(self, draft: Draft) -> Iterator[Request]:
        """Yield guests in the way, then everybody by the buckets; the overdue last."""
        first: set[str] = set()
        if self._book is not None:
            for name in self._book.in_the_way(draft.given.step + self._look_ahead_steps):
                if name in draft.given.live.requests and name not in draft.gone:
                    first.add(name)
                    yield draft.given.live.requests[name]
        rest = [r for r in draft.given.live.running() if r.request_id not in first]
        yield from sorted(rest, key=lambda r: (draft.given.is_overdue(r), *self._rank(r)))

    def for_claim(self, draft: Draft, claim: Request) -> Iterator[Request]:
        """Yield who can afford it, for an overdue request or a critical one still on time.

        Nobody is paid with a stream whose gap is promised, since nobody can tell that room
        comes back within a gap, nor with what would be critical once its KV had to be computed
        again; and a promise that starting now would not keep is worth no victim.
        """
        if self._critical is None:
            return
        on_time = 0.0 <= self._critical.slack_s(draft, claim) < draft.given.max_step_s
        if not (draft.given.is_overdue(claim) or on_time):
            return
        for victim in sorted(draft.given.live.running(), key=self._rank):
            if not draft.given.is_overdue(victim) and self._can_afford(
                draft, self._critical, victim
            ):
                yield victim

    def _can_afford(self, draft: Draft, critical: Critical, victim: Request) -> bool:
        if not victim.has_claim and not victim.slo.is_promise:
            return True
        if victim.slo.tbt_s is not None:
            return False
        slack_s = critical.slack_s(draft, victim, even_if_lost=True)
        return slack_s - recompute_s(draft, victim) >= 2.0 * draft.given.max_step_s

    def _rank(self, request: Request) -> tuple[float, int, int, int]:
        gap_s = request.slo.tbt_s
        gap = -math.inf if gap_s is None else -(gap_s // self._gap_bucket_s)
        remaining = max(request.predicted_output_tokens - request.num_output_tokens, 0)
        bucket = -(remaining // self._remaining_bucket_tokens)
        return gap, bucket, request.kv_tokens, -request.order
