"""The KV ledger: which running request will hold how much, and until when.

Blocks themselves belong to the engine, which alone knows what is shared or cached; the view
reports how many are free. The ledger keeps the *future*: one usage curve of the requests
whose promise is alive, and one of everybody. A request with a claim is admitted against the first
curve, because whoever has no claim can be asked to leave.
"""

from __future__ import annotations

from collections.abc import Mapping

from headway.errors import InvariantError
from headway.kit.usage_curve import UsageCurve
from headway.kv_layout import KvLayout
from headway.policy.finishes import Finishes
from headway.request import Request


class KvLedger(Finishes):
    """Books of the running requests. ``step`` counts steps since the start."""

    def __init__(self) -> None:
        super().__init__()
        self.everyone = UsageCurve()
        self.claims = UsageCurve()
        self.layout = KvLayout(16)
        """The engine's, as of the last plan: what bounded groups keep is booked too."""
        self._pencilled: list[str] = []

    def enter(self, request: Request, step: int) -> None:
        """Book a running request (again): what it holds and when it should finish."""
        super().enter(request, step)
        held = max(request.prefill_target_tokens, request.kv_tokens)
        self._book(request, self.with_aside(held, request), step)

    def leave(self, request_id: str) -> None:
        """Strike a request off: it finished or lost its KV."""
        super().leave(request_id)
        self.everyone.discard(request_id)
        self.claims.discard(request_id)

    def resize(self, capacity_tokens: int, reserve_tokens: int) -> None:
        """Hear what the cache holds and how much of it is set aside; the curves need not know."""

    def pencil(self, request: Request, step: int) -> None:
        """Book a request that a plan under way admits, so that the next one is told of it."""
        self._book(request, self.with_aside(request.num_tokens, request), step)
        self._pencilled.append(request.request_id)

    def rub_out(self) -> None:
        """Strike what was pencilled: the plan is made, the engine will say what became of it."""
        while self._pencilled:  # The last first: it may be a guest of one before it.
            self.leave(self._pencilled.pop())

    def peak_with_tokens(self, request: Request, step: int, *, claims_only: bool) -> float:
        """Return the highest future usage, in tokens, if *request* were admitted now."""
        curve = self.claims if claims_only else self.everyone
        own = self.with_aside(request.num_tokens, request) - request.num_held_tokens
        finish = step + request.remaining_output_tokens
        return curve.peak_with(own, step, finish, self.layout.block_size_tokens / 2)

    def with_aside(self, num_tokens: int, request: Request) -> int:
        """Return so many tokens and what bounded groups will hold of the request at its end."""
        return num_tokens + self.layout.aside_tokens(num_tokens + request.remaining_output_tokens)

    def _book(self, request: Request, held_tokens: int, step: int) -> None:
        name, finish = request.request_id, step + request.remaining_output_tokens
        self.everyone.put(name, held_tokens, step, finish)
        if request.has_claim:
            self.claims.put(name, held_tokens, step, finish)
        else:
            self.claims.discard(name)

    def validate(self, running: Mapping[str, Request]) -> None:
        """Recompute the books from the running requests.

        Raises:
            InvariantError: A running request is not booked, a booked one does not run, or
                a request is booked in the wrong curve.
        """
        super().validate(running)
        for request_id, request in running.items():
            if request_id not in self.everyone:
                raise InvariantError(f"{request!r} runs but is not in the ledger")
            if (request_id in self.claims) is not request.has_claim:
                raise InvariantError(f"{request!r} is booked in the wrong curve")
        if len(self.everyone) != len(running):
            raise InvariantError(f"{len(self.everyone)} requests are booked but {len(running)} run")
        num_claims = sum(r.has_claim for r in running.values())
        if len(self.claims) != num_claims:
            raise InvariantError(f"{len(self.claims)} claims are booked but {num_claims} run")
