"""CacheOPT's step: the critical get their minimum of KV first, the rest share what is left.

From arXiv 2503.13773 §3.3, as third parties cite it: a critical request's minimum is its prompt
and B tokens, paid with the global reserve and then by preemption; the others' demand is met as
far as KV is left, counting what donors release that are predicted to finish in time.
"""

from __future__ import annotations

from headway.kit.ledger import KvLedger
from headway.papers.cacheopt.critical import MINIMUM_TOKENS, Critical, Reserve
from headway.policy.admit import Gate
from headway.policy.batch import InOrder, StepFill
from headway.policy.draft import Draft
from headway.policy.preempt import Preemptor
from headway.request import Request


class MinimumFirst(InOrder):
    """Fills a step in order; pays a critical request's minimum by reserve, then preemption."""

    def __init__(self, ledger: KvLedger, critical: Critical, reserve: Reserve) -> None:
        super().__init__()
        self._ledger = ledger
        self._critical = critical
        self._reserve = reserve

    def _make_room(
        self,
        draft: Draft,
        request: Request,
        tokens: int,
        gate: Gate,
        preemptor: Preemptor,
        filled: StepFill,
    ) -> bool:
        """Return whether a waiting request gets its KV; the critical draw on the reserve."""
        if not gate.fits(draft, request):
            return False
        prompt = draft.new_blocks(request)
        beyond = draft.given.layout.blocks(request.num_tokens + MINIMUM_TOKENS)
        beyond -= draft.given.layout.blocks(request.num_tokens)
        minimum = min(prompt + beyond, draft.given.view.num_total_blocks)
        if not (draft.given.is_overdue(request) or self._critical.holds(draft, request)):
            coming = self._released_blocks(draft, MINIMUM_TOKENS) if minimum > prompt else 0
            if prompt > draft.num_spare_blocks or minimum > draft.num_spare_blocks + coming:
                return False
            draft.num_spare_blocks -= prompt
            return True
        reserve = self._reserve
        draft.num_spare_blocks += reserve.num_blocks_left
        room = self._find(draft, request, minimum, preemptor, filled)
        if room:
            draft.num_spare_blocks -= prompt
        # What was not taken is the reserve again before it is anybody's.
        reserve.num_blocks_left = min(reserve.num_blocks_left, draft.num_spare_blocks)
        draft.num_spare_blocks -= reserve.num_blocks_left
        return room

    def _find(
        self,
        draft: Draft,
        request: Request,
        needed: int,
        preemptor: Preemptor,
        filled: StepFill,
    ) -> bool:
        """Return whether *needed* blocks are there, once victims have left if it must be."""
        if needed <= draft.num_spare_blocks:
            return True
        steps = int(self._critical.slack_s(draft, request) / max(draft.given.step_s, 1e-6))
        if steps > 0 and needed <= draft.num_spare_blocks + self._released_blocks(draft, steps):
            return False  # Donors finish in time: nobody has to leave.
        victims = self._victims(draft, request, needed, preemptor, filled)
        self._give_up(draft, request, victims, filled)
        return bool(victims)

    def _released_blocks(self, draft: Draft, num_steps: int) -> int:
        """Return the blocks held by whoever is predicted to finish within *num_steps* steps."""
        given, live = draft.given, draft.given.live
        names = self._ledger.overdue(given.step + num_steps)
        donors = (live.requests[name] for name in names if name not in draft.gone)
        return sum(given.freed_blocks(r) for r in donors if r.request_id in live.decoding)
