"""The set of victims that frees enough KV at the least expected loss of goodput.

A victim loses its promise, if it cannot spare the wait any more, and the server loses the
seconds of computing (or copying) its KV again, in which it could have served somebody else. Which
victims together free enough blocks at the least total loss is a small covering knapsack, solved
exactly: an order, however good, takes a large victim where two small ones were cheaper.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from headway.papers.cacheopt.critical import Critical
from headway.policy.context import PlanContext
from headway.policy.preempt import Preemptor
from headway.policy.swap_choice import copyable_blocks, recompute_s, swap_s
from headway.request import Request

TIE = 1e-9
"""Loss of any victim at all, so that no set is larger than it must be."""


def least_loss(freed_blocks: Sequence[int], losses: Sequence[float], num_needed: int) -> list[int]:
    """Return indices of the set that frees *num_needed* blocks at the least total loss.

    Dynamic programming over blocks still needed, exact: O(n * num_needed) array operations.

    Args:
        freed_blocks: At least 0 each.
        losses: At least 0 each, same length.

    Returns:
        Indices ascending; empty when nothing is needed or all together are too few.
    """
    if num_needed <= 0 or sum(freed_blocks) < num_needed:
        return []
    best = np.full(num_needed + 1, math.inf)
    best[0] = 0.0
    needs = np.arange(num_needed + 1)
    taken = np.zeros((len(losses), num_needed + 1), dtype=bool)
    for i, (blocks, loss) in enumerate(zip(freed_blocks, losses, strict=True)):
        with_it = best[np.maximum(needs - blocks, 0)] + loss + TIE
        taken[i] = with_it < best
        best = np.minimum(best, with_it)
    chosen: list[int] = []
    need = num_needed
    for i in range(len(losses) - 1, -1, -1):
        if need > 0 and taken[i, need]:
            chosen.append(i)
            need = max(need - freed_blocks[i], 0)
    return chosen[::-1]


class CheapestSet(Preemptor):
    """Choose victims together, by what losing them costs.

    Args:
        critical: Tells the slack of each.
    """

    def __init__(self, critical: Critical) -> None:
        self._critical = critical

    def for_running(self, ctx: PlanContext) -> Iterator[Request]:
        """Yield the set for ``ctx.num_short_blocks``, then the rest by loss a block."""
        yield from self._choose(ctx, list(ctx.live.running()))

    def for_claim(self, ctx: PlanContext, claim: Request) -> Iterator[Request]:
        """Yield a set that costs less than *claim* is worth, or nobody.

        For the overdue anybody who is not overdue may go.
        """
        overdue = ctx.is_overdue(claim)
        members = [
            r for r in ctx.live.running() if r.request_id not in ctx.busy and not ctx.is_overdue(r)
        ]
        chosen = self._set(ctx, members)
        if overdue or sum(self.loss(ctx, r) for r in chosen) < claim.slo.weight:
            yield from chosen

    def loss(self, ctx: PlanContext, victim: Request) -> float:
        """Return the expected promises lost by preempting *victim*, weighted."""
        again_s = recompute_s(ctx, victim)
        if copyable_blocks(ctx, victim):
            again_s = min(again_s, swap_s(ctx, victim))
        return self._own_loss(ctx, victim, again_s) + again_s / self._claim_s(ctx)

    def _own_loss(self, ctx: PlanContext, victim: Request, again_s: float) -> float:
        """Return its weight if it cannot wait for a step and its KV; less the more it can."""
        if not victim.has_claim:
            return 0.0
        wait_s = again_s + ctx.max_step_s
        if victim.first_token_at_s is not None and victim.slo.jct_s is None:
            spare = victim.late_gaps_allowed() - victim.num_late_gaps
            slack_s = self._critical.slack_s(ctx, victim)
            return victim.slo.weight / (1 + max(spare, 0)) if slack_s < wait_s else 0.0
        slack_s = self._critical.slack_s(ctx, victim)
        return victim.slo.weight * min(wait_s / max(slack_s, 1e-9), 1.0)

    @staticmethod
    def _claim_s(ctx: PlanContext) -> float:
        """Return the prefill seconds of a typical claim: what one more promise costs."""
        chunk = ctx.shape.with_chunk(max(int(ctx.claim_tokens), 1), 0)
        return max(ctx.latency.predict_s(chunk) - ctx.latency.predict_s(ctx.shape), 1e-6)

    def _choose(self, ctx: PlanContext, members: list[Request]) -> Iterator[Request]:
        members = [r for r in members if r.request_id not in ctx.gone]
        chosen = self._set(ctx, members)
        yield from chosen
        names = {r.request_id for r in chosen}
        rest = [r for r in members if r.request_id not in names]
        yield from sorted(
            rest, key=lambda r: (self.loss(ctx, r) / max(ctx.freed_blocks(r), 1), -r.order)
        )

    def _set(self, ctx: PlanContext, members: list[Request]) -> list[Request]:
        freed = [ctx.freed_blocks(r) for r in members]
        losses = [self.loss(ctx, r) for r in members]
        return [members[i] for i in least_loss(freed, losses, ctx.num_short_blocks)]
