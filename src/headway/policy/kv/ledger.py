"""The KV ledger: which running request will hold how much, and until when.

Blocks themselves belong to the engine, which alone knows what is shared or cached; the view
reports how many are free. The ledger keeps the *future*: one usage curve of the requests
whose promise is alive, one of everybody. A request with a claim is admitted against the
first, because whoever has no claim can be asked to leave.
"""

from __future__ import annotations

from collections.abc import Mapping

from headway.errors import InvariantError
from headway.policy.kv.curve import UsageCurve
from headway.request import Request, State


class KvLedger:
    """Books of the running requests. ``step`` counts steps since the start."""

    def __init__(self) -> None:
        self.everyone = UsageCurve()
        self.claims = UsageCurve()

    def enter(self, request: Request, step: int) -> None:
        """Book a running request (again): what it holds and when it should finish."""
        remaining = max(request.predicted_output_tokens - request.num_output_tokens, 1)
        held = max(request.prefill_target_tokens, request.kv_tokens)
        self.everyone.put(request.request_id, held, step, step + remaining)
        if request.has_claim:
            self.claims.put(request.request_id, held, step, step + remaining)
        else:
            self.claims.discard(request.request_id)

    def leave(self, request_id: str) -> None:
        """Strike a request off: it finished or lost its KV."""
        self.everyone.discard(request_id)
        self.claims.discard(request_id)

    def peak_with_tokens(
        self, request: Request, step: int, block_size_tokens: int, *, claims_only: bool
    ) -> float:
        """Return the highest future usage, in tokens, if *request* were admitted now."""
        curve = self.claims if claims_only else self.everyone
        remaining = max(request.predicted_output_tokens - request.num_output_tokens, 1)
        return curve.peak_with(request.num_tokens, step, step + remaining, block_size_tokens / 2)

    def validate(self, running: Mapping[str, Request]) -> None:
        """Recompute the books from the running requests.

        Raises:
            InvariantError: A running request is not booked, a booked one does not run, or
                a request is booked in the wrong curve.
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
