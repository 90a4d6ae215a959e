"""Who gives KV back when there is not enough."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from headway.policy.context import OVERDUE_SHARE, PlanContext
from headway.request import Request


class Preemptor(Protocol):
    """Orders the running requests from the most dispensable."""

    def for_running(self, ctx: PlanContext) -> Iterator[Request]:
        """Yield victims so that the others can take their next token."""

    def for_claim(self, ctx: PlanContext, claim: Request) -> Iterator[Request]:
        """Yield victims whose KV a waiting claim may take over."""


class Nobody(Preemptor):
    """For an engine that takes nobody's KV: a plan that counted on it would start nobody."""

    def for_running(self, ctx: PlanContext) -> Iterator[Request]:
        """Yield nobody."""
        yield from ()

    def for_claim(self, ctx: PlanContext, claim: Request) -> Iterator[Request]:
        """Yield nobody."""
        yield from ()


NOBODY = Nobody()


class Youngest(Preemptor):
    """The request that started last, as stock vLLM does; nobody yields to a newcomer."""

    def for_running(self, ctx: PlanContext) -> Iterator[Request]:
        """Yield running requests, last started first."""
        yield from reversed(list(ctx.live.prefilling.values()))
        yield from reversed(list(ctx.live.decoding.values()))

    def for_claim(self, ctx: PlanContext, claim: Request) -> Iterator[Request]:
        """Yield nobody."""
        yield from ()


class BestEffortFirst(Preemptor):
    """Whoever has no live promise, youngest first; then the claim with the latest due time.

    A best-effort request that arrived too long ago is spared, so that it ends at all.
    """

    def _is_dispensable(self, ctx: PlanContext, request: Request) -> bool:
        if request.has_claim and request.request_id not in ctx.set_aside:
            return False
        return ctx.now_s - request.arrived_at_s < OVERDUE_SHARE * ctx.max_wait_s

    def for_claim(self, ctx: PlanContext, claim: Request) -> Iterator[Request]:
        """Yield best-effort requests, the youngest first; for the overdue, claims after them.

        The overdue never drive each other out: all would compute their prompts, and none end.
        """
        if ctx.is_overdue(claim):
            yield from (
                r for r in self.for_running(ctx) if self._is_dispensable(ctx, r) or r.has_claim
            )
            return
        if ctx.live.num_unclaimed_decodes == 0 and not ctx.live.prefilling:
            return
        dispensable = [r for r in ctx.live.running() if self._is_dispensable(ctx, r)]
        dispensable.sort(key=lambda r: -r.order)
        yield from dispensable

    def for_running(self, ctx: PlanContext) -> Iterator[Request]:
        """Yield best-effort requests, then claims: unstarted streams before running ones."""
        running = list(ctx.live.running())
        dispensable = [r for r in running if self._is_dispensable(ctx, r)]
        dispensable.sort(key=lambda r: -r.order)
        yield from dispensable
        seen = {r.request_id for r in dispensable}
        claims = [r for r in running if r.request_id not in seen]
        # A prompt in progress loses no gap; a stream that can spare one no promise; then the
        # loosest gap; then the youngest.
        claims.sort(
            key=lambda r: (
                r.first_token_at_s is not None,
                not r.can_spare_a_gap(),
                not r.has_earned_a_gap(),
                -(r.slo.tbt_s if r.slo.tbt_s is not None else 1e9),
                -r.order,
            )
        )
        yield from claims
