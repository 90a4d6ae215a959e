"""Saying no in time: who is refused, and when to come back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import takewhile

from headway.policy.appointments import LEAD_S
from headway.policy.batch import is_unconfirmed
from headway.policy.draft import Draft
from headway.policy.estimates import alone_s, is_hopeless
from headway.policy.inputs import OVERDUE_SHARE
from headway.policy.known import Known
from headway.policy.plan import Refuse
from headway.request import Request, Standing, State

CANNOT = "The promise asked for cannot be kept now."
HOPELESS = "Not even an idle server could keep the promise asked for."


def refusals(known: Known, draft: Draft) -> tuple[Refuse, ...]:
    """Refuse waiting requests whose promise does not fit, before any token of theirs.

    The guess of a cold server may be wrong, and refusing by it would keep it from learning better:
    nobody who may still be on time is refused before the step time is warm, and nobody ever for a
    prompt longer than all that was computed so far.
    """
    is_warm = draft.given.latency.is_warm
    aside = (r for r in known.live.claims if r.request_id in draft.set_aside and is_warm)
    now_s = draft.given.now_s
    lost = (
        r
        for r in known.live.others
        if r.standing is Standing.LOST and (is_warm or r.is_past_due(now_s))
    )
    refused = [
        r
        for r in (*aside, *lost)
        if r.state is State.WAITING
        and r.request_id not in draft.gone
        and r.remaining_prefill_tokens <= known.num_learned_prompt_tokens
    ]
    live = known.live
    is_untaught = live.num_running == 0 or (not live.prefilling and is_unconfirmed(draft))
    num_claims = sum(r.has_claim for r in refused)
    nobody_stays = (
        num_claims == len(live.claims) if live.claims else len(refused) == len(live.others)
    )
    if refused and is_untaught and nobody_stays:
        # Only serving can correct an estimate that was wrong, so an engine that computes no
        # prompt, idle or long busy with decodes, serves somebody, a claim if there is one, but
        # for those whom the clock alone, which is never wrong, has made too late.
        spared = next((r for r in refused if not r.is_past_due(now_s)), None)
        if spared is not None:
            refused.remove(spared)
    return _answers(known, draft, refused, CANNOT, HOPELESS)


def overflow(known: Known, draft: Draft) -> tuple[Refuse, ...]:
    """Refuse lost requests that could not be served before they are overdue, the newest first.

    Those of tenants who give way before the others'.

    Until then the lost get the capacity no claim wants; the overdue go first, who may take such a
    share of it as a longest wait has left then. Both at the rates the server has shown. Without
    this bound a lasting overload would leave no promise kept once the first request is overdue.
    Their work is an estimate; where it was too small, whoever still waits when the longest wait
    ends is told so then. Who asked for no promise is never refused.
    """
    live, longest_s = known.live, known.max_wait_s
    if longest_s == math.inf or not live.others:
        return ()
    # On an idle server the oldest waits for nobody, however long it may take.
    spared = live.others[0] if live.num_running == 0 else None

    def may_go(request: Request) -> bool:
        is_lost = request.standing is Standing.LOST and request.state is State.WAITING
        return is_lost and request is not spared and request.request_id not in draft.gone

    # Beyond the steps in flight and the next no token can come in time. One stall among the recent
    # steps must not shorten everybody's wait by more than the last part of it.
    num_steps = draft.given.view.num_steps_in_flight + 2
    ahead_s = min(num_steps * draft.given.max_step_s, (1.0 - OVERDUE_SHARE) * longest_s)
    over_s = draft.given.now_s + ahead_s - longest_s
    ending = takewhile(lambda r: r.arrived_at_s <= over_s, live.others)
    refused = {r.request_id: r for r in ending if may_go(r)}
    share = min(known.work_rate.leftover_share + 1.0 - OVERDUE_SHARE, OVERDUE_SHARE)
    before_overdue_s = OVERDUE_SHARE * longest_s
    if not known.work_rate.is_measured:
        share = math.inf  # Nobody is refused by a rate that was not measured.
    excess_s = live.others_work_s - share * before_overdue_s * known.work_rate.per_s
    excess_s -= sum(request.work_s for request in refused.values())
    newest: Iterable[Request] = reversed(live.others)
    if excess_s > 0 and (heavy := draft.given.heavy):
        newest = sorted(newest, key=lambda r: r.slo.tenant not in heavy)
    for request in newest:
        if excess_s <= 0:
            break
        if may_go(request) and request.request_id not in refused:
            excess_s -= request.work_s
            refused[request.request_id] = request
    why = "The server is overloaded beyond its longest wait."
    return _answers(known, draft, list(refused.values()), why, why)


def _answers(
    known: Known, draft: Draft, refused: Sequence[Request], why: str, hopeless: str
) -> tuple[Refuse, ...]:
    """Return the refusals, each with an appointment behind those given before it."""
    if not refused:
        return ()
    staying = (r for r in known.live.claims if r.request_id not in draft.set_aside)
    # An appointment lasts: before answers have ended it goes by no guess of their lengths.
    knows_lengths = known.work_rate.knows_lengths

    def taken_s(request: Request) -> float:
        return request.work_s if knows_lengths else alone_s(request, known.latency)

    backlog_s = sum(map(taken_s, staying))
    answers: list[Refuse] = []
    for request in refused:
        if is_hopeless(request, known.latency):
            # No appointment; but the estimate may be a young one, so it may ask again.
            answers.append(Refuse(request.request_id, LEAD_S, hopeless))
            continue
        # What it takes later has nothing to do with the room that the streams of now leave.
        work_s = max(taken_s(request), draft.given.step_s)
        wait_s = known.appointments.book(request, work_s, backlog_s, draft.given.now_s)
        answers.append(Refuse(request.request_id, wait_s, why))
    return tuple(answers)
