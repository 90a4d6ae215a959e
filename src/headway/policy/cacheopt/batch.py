"""CacheOPT's step: the critical get their minimum of KV first, the rest share what is left.

From arXiv 2503.13773 §3.3, as third parties cite it: a critical request's minimum is its prompt
and B tokens, paid with the global reserve and then by preemption; the others' demand is met as
far as KV is left, counting what donors release that are predicted to finish in time.
"""

from __future__ import annotations

from headway.policy.admit import Gate
from headway.policy.batch import Filled, InOrder
from headway.policy.context import PlanContext
from headway.policy.kv.critical import MINIMUM_TOKENS, Critical
from headway.policy.preempt import Preemptor
from headway.request import Request


class MinimumFirst(InOrder):
    """Fills a step in order; see the module's docstring."""

    def __init__(self, critical: Critical) -> None:
        super().__init__()
        self._critical = critical

    def _make_room(
        self,
        ctx: PlanContext,
        request: Request,
        tokens: int,
        gate: Gate,
        preemptor: Preemptor,
        filled: Filled,
    ) -> bool:
        """Return whether a waiting request gets its KV; the critical draw on the reserve."""
        if not gate.fits(ctx, request):
            return False
        prompt = ctx.new_blocks(request)
        beyond = ctx.blocks(request.num_tokens + MINIMUM_TOKENS)
        beyond -= ctx.blocks(request.num_tokens)
        minimum = min(prompt + beyond, ctx.view.num_total_blocks)
        if not (ctx.is_overdue(request) or self._critical.holds(ctx, request)):
            coming = released_blocks(ctx, MINIMUM_TOKENS) if minimum > prompt else 0
            if prompt > ctx.num_spare_blocks or minimum > ctx.num_spare_blocks + coming:
                return False
            ctx.num_spare_blocks -= prompt
            return True
        ctx.num_spare_blocks += ctx.num_reserve_blocks
        room = self._find(ctx, request, minimum, preemptor, filled)
        if room:
            ctx.num_spare_blocks -= prompt
        # What was not taken is the reserve again before it is anybody's.
        ctx.num_reserve_blocks = min(ctx.num_reserve_blocks, ctx.num_spare_blocks)
        ctx.num_spare_blocks -= ctx.num_reserve_blocks
        return room

    def _find(
        self,
        ctx: PlanContext,
        request: Request,
        needed: int,
        preemptor: Preemptor,
        filled: Filled,
    ) -> bool:
        """Return whether *needed* blocks are there, once victims have left if it must be."""
        if needed <= ctx.num_spare_blocks:
            return True
        steps = int(self._critical.slack_s(ctx, request) / max(ctx.step_s, 1e-6))
        if steps > 0 and needed <= ctx.num_spare_blocks + released_blocks(ctx, steps):
            return False  # Donors finish in time: nobody has to leave.
        victims = self._victims(ctx, request, needed, preemptor, filled)
        self._give_up(ctx, request, victims, filled)
        return bool(victims)


def released_blocks(ctx: PlanContext, num_steps: int) -> int:
    """Return the blocks held by whoever is predicted to finish within *num_steps* steps."""
    names = ctx.ledger.everyone.overdue(ctx.step + num_steps)
    donors = (ctx.live.requests[name] for name in names if name not in ctx.gone)
    return sum(ctx.freed_blocks(r) for r in donors if r.request_id in ctx.live.decoding)
