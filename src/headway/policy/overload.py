"""Saying no in time: who is refused, and when to come back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import islice

from headway.policy.admit import prefill_speed
from headway.policy.appointments import LEAD_S
from headway.policy.chunk import Chunker
from headway.policy.context import OVERDUE_SHARE, PlanContext
from headway.policy.plan import Refuse
from headway.policy.tracker import Tracker
from headway.request import Request, Standing, State

LATE_SHARE = 0.2
"""Share of the capacity that a lasting overload may spend on promises already lost."""

PLANNED_SHARE = 0.8
"""Share of the longest wait that is planned full: the work of a request is an estimate."""

HOPELESS = "Not even an idle server could keep the promise asked for."


def refusals(core: Tracker, ctx: PlanContext, chunker: Chunker) -> tuple[Refuse, ...]:
    """Refuse waiting requests whose promise does not fit, before any token of theirs.

    Nobody is refused for a prompt longer than all that was computed so far: the guess of a cold
    server may be wrong, and refusing by it would keep it from learning better.
    """
    aside = (r for r in core.live.claims if r.request_id in ctx.set_aside)
    lost = (r for r in core.live.others if r.standing is Standing.LOST)
    refused = [
        r
        for r in (*aside, *lost)
        if r.state is State.WAITING
        and r.request_id not in ctx.gone
        and r.num_prompt_tokens <= core.num_learned_prompt_tokens
    ]
    return _answers(core, ctx, chunker, refused, "The promise asked for cannot be kept now.")


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
    excess_s = live.others_work_s - PLANNED_SHARE * share * longest_s * core.work_per_s
    if excess_s <= 0:
        return ()
    refused: list[Request] = []
    # On an idle server the oldest waits for nobody, however long it may take.
    num_refusable = len(live.others) - (live.num_running == 0)
    for request in islice(reversed(live.others), num_refusable):
        if excess_s <= 0:
            break
        if request.request_id in ctx.gone:
            continue
        if request.standing is Standing.LOST and request.state is State.WAITING:
            excess_s -= request.work_s
            refused.append(request)
    why = "The server is overloaded beyond its longest wait."
    return _answers(core, ctx, core.parts.chunker, refused, why)


def _answers(
    core: Tracker, ctx: PlanContext, chunker: Chunker, refused: Sequence[Request], why: str
) -> tuple[Refuse, ...]:
    """Return the refusals, each with an appointment behind those given before it."""
    if not refused:
        return ()
    speed, _ = prefill_speed(ctx, chunker)
    staying = (r for r in core.live.claims if r.request_id not in ctx.set_aside)
    backlog_s = sum(r.remaining_prefill_tokens for r in staying) / speed
    answers: list[Refuse] = []
    for request in refused:
        if core.is_hopeless(request):
            # No appointment; but the estimate may be a young one, so it may ask again.
            answers.append(Refuse(request.request_id, LEAD_S, HOPELESS))
            continue
        work_s = request.num_prompt_tokens / speed
        wait_s = core.appointments.book(request, work_s, backlog_s, ctx.now_s)
        answers.append(Refuse(request.request_id, wait_s, why))
    return tuple(answers)
