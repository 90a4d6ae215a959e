"""The KV ledger: which running request will hold how much, and until when.

Blocks themselves belong to the engine, which alone knows what is shared or cached; the view
reports how many are free. The ledger keeps the *future*: one usage curve of the requests
whose promise is alive, one of everybody, and, for policies that lend, who runs in whose
reservation. A request with a claim is admitted against the first curve, because whoever has no
claim can be asked to leave.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from headway.errors import InvariantError
from headway.policy.kv.curve import UsageCurve
from headway.policy.kv.layout import KvLayout
from headway.policy.kv.lending import LendingBook
from headway.request import Request, State


class KvLedger:
    """Books of the running requests. ``step`` counts steps since the start.

    Args:
        lending: Kept beside the curves when given.
    """

    def __init__(self, lending: LendingBook | None = None) -> None:
        self.everyone = UsageCurve()
        self.claims = UsageCurve()
        self.lending = lending
        self.layout = KvLayout(16)
        """The engine's, as of the last plan: what bounded groups keep is booked too."""
        self.found_tokens: dict[str, int] = {}
        """Tokens a live request found in a prefix cache when it first started."""
        self._pencilled: list[str] = []

    def enter(self, request: Request, step: int) -> None:
        """Book a running request (again): what it holds and when it should finish."""
        held = self._with_aside(max(request.prefill_target_tokens, request.kv_tokens), request)
        self._book(request, held, step)

    def leave(self, request_id: str) -> None:
        """Strike a request off: it finished or lost its KV."""
        self.everyone.discard(request_id)
        self.claims.discard(request_id)
        if self.lending is not None:
            self.lending.leave(request_id)

    def forget(self, request_id: str) -> None:
        """A request ended: nothing of it is needed any more."""
        self.found_tokens.pop(request_id, None)

    def pencil(self, request: Request, step: int) -> None:
        """Book a request that a plan under way admits, so that the next one is told of it."""
        self._book(request, self._with_aside(request.num_tokens, request), step)
        self._pencilled.append(request.request_id)

    def rub_out(self) -> None:
        """Strike what was pencilled: the plan is made, the engine will say what became of it."""
        while self._pencilled:  # The last first: it may be a guest of one before it.
            self.leave(self._pencilled.pop())

    def peak_with_tokens(self, request: Request, step: int, *, claims_only: bool) -> float:
        """Return the highest future usage, in tokens, if *request* were admitted now."""
        curve = self.claims if claims_only else self.everyone
        remaining = _remaining(request)
        own = self._with_aside(request.num_tokens, request) - request.num_held_tokens
        return curve.peak_with(own, step, step + remaining, self.layout.block_size_tokens / 2)

    def has_reservation_for(self, request: Request, step: int) -> bool:
        """Return whether the lending book has room for *request*; see its rules."""
        if self.lending is None:
            return True
        return self.lending.has_room(request.num_tokens, step, step + _remaining(request))

    def _with_aside(self, num_tokens: int, request: Request) -> int:
        """Return so many tokens and what bounded groups will hold of the request at its end."""
        return num_tokens + self.layout.aside_tokens(num_tokens + _remaining(request))

    def _book(self, request: Request, held_tokens: int, step: int) -> None:
        name, finish = request.request_id, step + _remaining(request)
        self.everyone.put(name, held_tokens, step, finish)
        if request.has_claim:
            self.claims.put(name, held_tokens, step, finish)
        else:
            self.claims.discard(name)
        if self.lending is None:
            return
        if name in self.lending:
            self.lending.move(name, held_tokens, step, finish)
        else:
            self.lending.enter(name, held_tokens, step, finish)

    def validate(self, running: Mapping[str, Request]) -> None:
        """Recompute the books from the running requests.

        Raises:
            InvariantError: A running request is not booked, a booked one does not run, or
                a request is booked in the wrong curve, or the books disagree.
        """
        for request_id, request in running.items():
            if request.state is not State.RUNNING:
                raise InvariantError(f"{request!r} is booked as running; {request.tell()}")
            if request_id not in self.everyone:
                raise InvariantError(f"{request!r} runs but is not in the ledger")
            if (request_id in self.claims) is not request.has_claim:
                raise InvariantError(f"{request!r} is booked in the wrong curve")
        if len(self.everyone) != len(running):
            raise InvariantError(f"{len(self.everyone)} requests are booked but {len(running)} run")
        num_claims = sum(r.has_claim for r in running.values())
        if len(self.claims) != num_claims:
            raise InvariantError(f"{len(self.claims)} claims are booked but {num_claims} run")
        if self.lending is not None:
            self._validate_lending(self.lending, running)

    def _validate_lending(self, book: LendingBook, running: Iterable[str]) -> None:
        book.validate()
        if len(book) != len(self.everyone):
            raise InvariantError(f"{len(book)} requests are in the lending book")
        for key in running:
            resident = book[key]
            if (resident.offset, resident.finish) != self.everyone.entry(key):
                raise InvariantError(f"{key} is booked differently in curve and lending book")


def _remaining(request: Request) -> int:
    return max(request.predicted_output_tokens - request.num_output_tokens, 1)
