"""Admission by the lending book: a reservation, or a loan."""

from __future__ import annotations

from headway.policy.admit import Gate
from headway.policy.context import PlanContext
from headway.policy.kv.critical import Critical
from headway.request import Request


class Lending(Gate):
    """Start whoever has room in the ledger; needs a policy whose parts keep a lending book.

    CacheOPT's pairwise rule: a reservation of its own, or room in an owner's.

    Args:
        critical: Whose requests start on their minimum, whatever the books say; they are
            booked in full, so nobody else starts until the books balance again.
    """

    def __init__(self, critical: Critical | None = None) -> None:
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
        return ctx.ledger.has_reservation_for(request, ctx.step)

    def admitted(self, ctx: PlanContext, request: Request) -> None:
        """Pencil *request* in for the rest of the plan."""
        ctx.ledger.pencil(request, ctx.step)
