"""Admission by the ledger: a reservation, a loan, or the usage curve."""

from __future__ import annotations

from typing import Literal

from headway.errors import InvariantError
from headway.papers.cacheopt.critical import Critical
from headway.policy.admit import Gate
from headway.policy.context import PlanContext
from headway.request import Request

Rule = Literal["pairwise", "curve", "union"]


class Lending(Gate):
    """Start whoever has room in the ledger; needs a policy whose parts keep a lending book.

    ``pairwise`` is CacheOPT's rule: a reservation of its own, or room in an owner's. ``curve``
    asks whether the peak of everybody's predicted usage stays within the cache less the reserve.
    ``union`` accepts what either accepts. Neither contains the other: the curve sees room that
    several owners leave together, the book does not charge half a block a request for what may
    not fill it. While the book is overdrawn, because somebody was let in by the curve alone or
    outgrew its reservation, a reservation is no longer a promise of room, and the union asks the
    curve only.

    Args:
        critical: Whose requests start on their minimum, whatever the books say; they are
            booked in full, so nobody else starts until the books balance again.
    """

    def __init__(self, rule: Rule = "pairwise", critical: Critical | None = None) -> None:
        self._rule = rule
        self._critical = critical

    def fits(self, ctx: PlanContext, request: Request) -> bool:
        """Return whether the ledger has room; an empty server takes anybody."""
        book = ctx.ledger.lending
        if book is not None:
            book.resize(ctx.capacity_tokens, book.reserve_tokens)
        if len(ctx.ledger.everyone) == 0 or ctx.is_overdue(request):
            return True
        if self._critical is not None and self._critical.holds(ctx, request):
            return True
        if self._rule == "pairwise":
            return ctx.ledger.has_reservation_for(request, ctx.step)
        if self._fits_curve(ctx, request):
            return True
        return self._rule == "union" and self._fits_sound_book(ctx, request)

    def admitted(self, ctx: PlanContext, request: Request) -> None:
        """Pencil *request* in for the rest of the plan."""
        ctx.ledger.pencil(request, ctx.step)

    @staticmethod
    def _fits_curve(ctx: PlanContext, request: Request) -> bool:
        book = ctx.ledger.lending
        reserve = book.reserve_tokens if book is not None else 0
        peak = ctx.ledger.peak_with_tokens(request, ctx.step, claims_only=False)
        return peak <= ctx.capacity_tokens - reserve

    @staticmethod
    def _fits_sound_book(ctx: PlanContext, request: Request) -> bool:
        book = ctx.ledger.lending
        if book is None:
            raise InvariantError("the union of both rules needs a lending book")
        return book.free_tokens >= 0 and ctx.ledger.has_reservation_for(request, ctx.step)
