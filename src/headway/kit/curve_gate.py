"""Admission by the peak of the usage curve (Past-Future, arXiv 2507.10150)."""

from __future__ import annotations

from headway.kit.ledger import KvLedger
from headway.policy.admit import Gate
from headway.policy.draft import Draft
from headway.request import Request


class CurveGate(Gate):
    """Admit when the peak of the predicted usage stays within the cache.

    A request whose promise is alive is measured against the others with a claim only:
    best-effort residents are preempted when they stand in its way. Who was admitted earlier in the
    same plan is not in the curve: counted, a burst waits longer and fewer promises are kept.

    Args:
        reserve_share: Share of the cache kept free of predictions.
    """

    def __init__(self, ledger: KvLedger, reserve_share: float = 0.02) -> None:
        self._ledger = ledger
        self._reserve_share = reserve_share

    def fits(self, draft: Draft, request: Request) -> bool:
        """Return whether the peak with *request* stays below capacity minus the reserve."""
        capacity = draft.given.room_tokens * (1.0 - self._reserve_share)
        if len(self._ledger.everyone) == 0:  # Nobody runs.
            return True
        peak = self._ledger.peak_with_tokens(
            request, draft.given.step, claims_only=draft.comes_first(request)
        )
        return peak <= capacity
