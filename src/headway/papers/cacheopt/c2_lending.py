"""C2: who has room in the books may start, be it a reservation of its own or a loan.

See :mod:`headway.papers.cacheopt.c2_book` for the rule of a loan.
"""

from __future__ import annotations

from collections.abc import Mapping

from headway.errors import InvariantError
from headway.kit.ledger import KvLedger
from headway.papers.cacheopt.c2_book import LendingBook
from headway.papers.cacheopt.critical import Critical
from headway.policy.admit import Gate
from headway.policy.draft import Draft
from headway.request import Request


class LendingLedger(KvLedger):
    """A ledger that also knows who runs in whose reservation."""

    def __init__(self, book: LendingBook) -> None:
        super().__init__()
        self.book = book

    def resize(self, capacity_tokens: int, reserve_tokens: int) -> None:
        """Tell the book."""
        self.book.resize(capacity_tokens, reserve_tokens)

    def leave(self, request_id: str) -> None:
        """Strike a request off in the book too."""
        super().leave(request_id)
        self.book.leave(request_id)

    def has_reservation_for(self, request: Request, step: int) -> bool:
        """Return whether the book has room for *request*; see its rules."""
        return self.book.has_room(request.num_tokens, step, step + request.remaining_output_tokens)

    def _book(self, request: Request, held_tokens: int, step: int) -> None:
        super()._book(request, held_tokens, step)
        put = self.book.move if request.request_id in self.book else self.book.enter
        put(request.request_id, held_tokens, step, step + request.remaining_output_tokens)

    def validate(self, running: Mapping[str, Request]) -> None:
        """Compare the book with the curves too.

        Raises:
            InvariantError: They disagree, or one is off by itself.
        """
        super().validate(running)
        self.book.validate()
        if len(self.book) != len(self.everyone):
            raise InvariantError(f"{len(self.book)} requests are in the lending book")
        for key in running:
            resident = self.book[key]
            if (resident.offset, resident.finish) != self.everyone.entry(key):
                raise InvariantError(f"{key} is booked differently in curve and lending book")


class Lending(Gate):
    """CacheOPT's pairwise rule: a reservation of its own, or room in an owner's.

    Args:
        critical: Whose requests start on their minimum, whatever the books say; they are
            booked in full, so nobody else starts until the books balance again.
    """

    def __init__(self, ledger: LendingLedger, critical: Critical | None = None) -> None:
        self._ledger = ledger
        self._critical = critical

    def fits(self, draft: Draft, request: Request) -> bool:
        """Return whether the ledger has room; an empty server takes anybody."""
        book = self._ledger.book
        book.resize(draft.given.capacity_tokens, book.reserve_tokens)
        if len(self._ledger.everyone) == 0 or draft.given.is_overdue(request):
            return True
        if self._critical is not None and self._critical.holds(draft, request):
            return True
        return self._ledger.has_reservation_for(request, draft.given.step)

    def admitted(self, draft: Draft, request: Request) -> None:
        """Pencil *request* in for the rest of the plan."""
        self._ledger.pencil(request, draft.given.step)
