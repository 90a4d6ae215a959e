"""Saying no in time: who is refused, and when to come back."""

from __future__ import annotations

import math

from headway.policy.admit import prefill_speed
from headway.policy.chunk import Chunker
from headway.policy.context import OVERDUE_SHARE, PlanContext
from headway.policy.plan import Refuse
from headway.policy.tracker import Tracker
from headway.request import Standing, State

LATE_SHARE = 0.2
"""Share of the capacity that a lasting overload may spend on promises already lost."""

MAX_RETRY_AFTER_S = 600.0
"""No client is told to stay away longer than this."""


def refusals(core: Tracker, ctx: PlanContext, chunker: Chunker) -> tuple[Refuse, ...]:
    """Refuse waiting requests whose promise does not fit, before any token of theirs."""
    speed, _ = prefill_speed(ctx, chunker)
    staying = (r for r in core.live.claims if r.request_id not in ctx.set_aside)
    backlog_s = sum(r.remaining_prefill_tokens for r in staying) / speed
    retry_s = min(max(backlog_s, core.step_s), MAX_RETRY_AFTER_S)
    aside = (r for r in core.live.claims if r.request_id in ctx.set_aside)
    lost = (r for r in core.live.others if r.standing is Standing.LOST)
    return tuple(
        Refuse(r.request_id, retry_s, "The promise asked for cannot be kept now.")
        for r in (*aside, *lost)
        if r.state is State.WAITING and r.request_id not in ctx.gone
    )


def overflow(core: Tracker, ctx: PlanContext) -> tuple[Refuse, ...]:
    """Refuse the newest lost requests that could not be served within the longest wait.

    Until they are overdue the lost get the capacity no claim wants; then they go first,
    which may take :data:`LATE_SHARE` of it. Both at the rates the server has shown.
    Without this bound a lasting overload would leave no promise kept once the first
    request is overdue. Who asked for no promise is never refused.
    """
    live, longest_s = core.live, core.parts.max_wait_s
    if longest_s == math.inf or not live.others:
        return ()
    leftover_share = sum(leftover for _, _, leftover in core.ended) / max(len(core.ended), 1)
    share = min(leftover_share + LATE_SHARE, OVERDUE_SHARE)
    excess_s = live.others_work_s - share * longest_s * core.work_per_s
    if excess_s <= 0:
        return ()
    retry_s = min(live.others_work_s / core.work_per_s, MAX_RETRY_AFTER_S)
    refuse: list[Refuse] = []
    for request in reversed(live.others):
        if excess_s <= 0:
            break
        if request.request_id in ctx.gone:
            continue
        if request.standing is Standing.LOST and request.state is State.WAITING:
            excess_s -= request.work_s
            why = "The server is overloaded beyond its longest wait."
            refuse.append(Refuse(request.request_id, retry_s, why))
    return tuple(refuse)
