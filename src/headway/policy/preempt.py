"""Who gives KV back when there is not enough."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

from headway.policy.draft import Draft
from headway.policy.inputs import OVERDUE_SHARE
from headway.request import Request


class Preemptor(Protocol):
    """Orders the running requests from the most dispensable."""

    def for_running(self, draft: Draft) -> Iterator[Request]:
        """Yield victims so that the others can take their next token."""

    def for_claim(self, draft: Draft, claim: Request) -> Iterator[Request]:
        """Yield victims whose KV a waiting claim may take over; by default nobody yields."""
        yield from ()


class Nobody(Preemptor):
    """For an engine that takes nobody's KV: a plan that counted on it would start nobody."""

    def for_running(self, draft: Draft) -> Iterator[Request]:
        """Yield nobody."""
        yield from ()


NOBODY = Nobody()


class BestEffortFirst(Preemptor):
    """Whoever has no live promise, youngest first; then the claim with the latest due time.

    A best-effort request that arrived too long ago is spared, so that it ends at all.
    """

    def _is_dispensable(self, draft: Draft, request: Request) -> bool:
        if request.has_claim and request.request_id not in draft.set_aside:
            return False
        if draft.given.is_fair(request):
            return False
        return draft.given.now_s - request.arrived_at_s < OVERDUE_SHARE * draft.given.max_wait_s

    def for_claim(self, draft: Draft, claim: Request) -> Iterator[Request]:
        """Yield best-effort requests, the youngest first; for the overdue, claims after them.

        The overdue never drive each other out: all would compute their prompts, and none end.
        """
        if draft.given.is_overdue(claim):
            yield from (
                r for r in self.for_running(draft) if self._is_dispensable(draft, r) or r.has_claim
            )
            return
        given, heavy = draft.given, draft.given.tenants.yielding(claim.slo.tenant)
        if not heavy and given.live.num_unclaimed_decodes == 0 and not given.live.prefilling:
            return
        running = list(given.live.running())
        dispensable = [r for r in running if self._is_dispensable(draft, r)]
        dispensable.sort(key=lambda r: -r.order)
        yield from dispensable
        if heavy:
            seen = {r.request_id for r in dispensable}
            theirs = [r for r in running if r.slo.tenant in heavy and r.request_id not in seen]
            theirs.sort(key=lambda r: -r.order)
            yield from theirs

    def for_running(self, draft: Draft) -> Iterator[Request]:
        """Yield best-effort requests, then claims: unstarted streams before running ones."""
        running = list(draft.given.live.running())
        dispensable = [r for r in running if self._is_dispensable(draft, r)]
        dispensable.sort(key=lambda r: -r.order)
        yield from dispensable
        seen = {r.request_id for r in dispensable}
        claims = [r for r in running if r.request_id not in seen]
        # A prompt in progress loses no gap; a stream that can spare one no promise, if it is back
        # before its pause is too long; then the loosest gap; then the youngest.
        claims.sort(
            key=lambda r: (
                r.slo.tenant not in draft.given.heavy,
                r.first_token_at_s is not None,
                not r.can_spare_a_gap(),
                not r.has_earned_a_gap(),
                -(math.inf if r.promised_gap_s is None else r.promised_gap_s),
                -r.order,
            )
        )
        yield from claims
