"""What a newcomer could be promised now, and how busy the server is: asked, never planned by.

Nothing here changes what is known: plans are the same whether anybody asks or not. Both answers go
by the feasibility test of the plans (:mod:`headway.policy.admit`), at the speed the server has
when pressed, and by the KV that everybody is predicted to hold.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sortedcontainers import SortedKeyList

from headway.latency.model import StepShape
from headway.policy.admit import DueWork, PrefillTime, claim_work, largest_feasible, prefill_time
from headway.policy.chunk import SlackChunk
from headway.policy.draft import Draft
from headway.policy.estimates import due_at_s, is_hopeless
from headway.policy.inputs import Inputs
from headway.policy.known import Known
from headway.policy.live_requests import LiveRequests
from headway.policy.planner import inputs_of
from headway.policy.prices import GapPrices
from headway.policy.swap_choice import AlwaysRecompute
from headway.policy.view import EngineView
from headway.request import LATE_GAPS_FORGIVEN, Request
from headway.slo import Slo

UNHURRIED_S = 10.0
"""Prefill seconds without a live promise that count as a full server: they have no due time, and
clients wait for them all the same. No run of its value. Larger: routers see late that requests
without a promise wait; smaller: best effort keeps claims away."""

MOST_LOOKED_AT = 64
"""The most waiting requests of a queue that a load is computed from: a sample spread over the
queue. With 256 running and 1,000 waiting it takes 0.4 ms instead of 2.9 (LOG.md, *Fleets*). Larger:
twice a second a step waits longer for it; smaller: the sample differs from the queue."""

MOST_PRESSURE = 100.0
"""The largest pressure reported: readers need a bound, and when no step has room for a prompt there
would be none (tests/unit/test_quote.py). Larger: graphs show nothing else; smaller: routers no
longer tell full servers apart."""

MOST_BACKLOG_S = 86_400.0
"""The largest backlog reported: a day (tests/unit/test_quote.py). Larger: graphs show nothing else;
smaller: a long queue is reported too short."""

NEWCOMER = "?"
"""The name of who is asked about; no request has it while this is decided."""


@dataclass(frozen=True, slots=True)
class Quote:
    """Whether a promise could be kept.

    Attributes:
        feasible: Whether the newcomer fits beside everybody who fits now, none of them given up.
        slack_s: The least time to spare, of the newcomer and of those due after it; negative by
            how late it would be. ``inf`` for who asks for no promise.
    """

    feasible: bool
    slack_s: float


@dataclass(frozen=True, slots=True)
class ServerLoad:
    """How busy a server is.

    Attributes:
        pressure: What a typical claim would find that came now: the share of the time until its
            first token is due, or until any later claim's is, that prompt work due by then takes,
            its own included; or, if that is more, the share of the KV cache that everybody is
            predicted to hold. 0 on an idle server, above 1 where not all fit.
        prefill_backlog_s: Seconds that the prompts take which wait or are in progress.
        kv_share: Share of the KV cache in use, by the last plan.
    """

    pressure: float
    prefill_backlog_s: float
    kv_share: float


class _AsDecided:
    """The price of gaps as the last plan left it."""

    def __init__(self, price: GapPrices) -> None:
        self.least_gap_s = price.least_gap_s
        self.is_dear = price.is_dear
        self._bound_s = price.bound_s

    def limit_s(self, given: Inputs, shape: StepShape) -> float:
        return self._bound_s(given)


class _GoesOn(SlackChunk):
    """Steps that take some prompt, however little gaps leave: sooner or later they must."""

    def largest(
        self, draft: Draft, shape: StepShape, prefix: int, most: int, must_go_on: bool = False
    ) -> int:
        return super().largest(draft, shape, prefix, most, must_go_on=True)


@dataclass(frozen=True, slots=True)
class _Asked:
    """What both answers go by: a draft that is thrown away, and the speed of prompts in it."""

    draft: Draft
    prefill: PrefillTime

    @classmethod
    def of(cls, known: Known, view: EngineView, now_s: float) -> _Asked:
        given = replace(inputs_of(known, view, now_s), price=_AsDecided(known.price))
        draft = Draft(given, AlwaysRecompute(), pressure=1.0)
        return cls(draft, prefill_time(draft, _GoesOn()))

    def due_s(self, request: Request) -> float:
        """Return the seconds until a newcomer's first token must be under way."""
        return request.due_at_s - self.draft.given.ref_s - self.prefill.step_s / 2


def load_of(known: Known, view: EngineView | None, now_s: float) -> ServerLoad:
    """Return how busy the server is; nothing is known before the first plan.

    Args:
        view: What the last plan was shown.
    """
    if view is None or not known.live.requests:
        return ServerLoad(0.0, 0.0, 0.0)
    asked, live = _Asked.of(known, view, now_s), known.live
    given, prefill = asked.draft.given, asked.prefill
    claims, each = _spread(live.claims)
    others, each_other = _spread(live.others)
    waiting = {r.request_id for r in claims}
    work = [
        (max(job.due_s, 0.0), job.work_s * (each if job.key in waiting else 1.0))
        for job in claim_work(given, prefill, claims)
    ]
    unhurried_s = sum(map(prefill.work_s, others)) * each_other
    unhurried_s += sum(prefill.work_s(r) for r in live.prefilling.values() if not r.has_claim)
    backlog_s = unhurried_s + sum(work_s for _, work_s in work)
    own, own_s = known.claim_tokens, 0.0
    if own:
        own_s = own * (prefill.token_s + prefill.pair_s * own / 2)
    patience_s = known.price.typical_ttft_s or UNHURRIED_S
    work += [(patience_s, own_s), (UNHURRIED_S, unhurried_s)]
    total_s = pressure = 0.0
    for due_s, work_s in sorted(work):
        total_s += work_s
        if due_s >= patience_s:
            pressure = max(pressure, total_s / due_s)
    fullest = max((held for _, held in kv_ahead(live, claims, each)), default=0.0)
    return ServerLoad(
        min(max(pressure, fullest / max(given.room_tokens, 1)), MOST_PRESSURE),
        min(backlog_s, MOST_BACKLOG_S),
        given.held_share if live.num_running else 0.0,
    )


def _spread(queue: SortedKeyList) -> tuple[list[Request], float]:
    """Return requests from all over a queue, and how many each stands for."""
    chosen = list(queue[:: max(len(queue) // MOST_LOOKED_AT, 1)])
    return chosen, len(queue) / max(len(chosen), 1)


def quote_of(
    known: Known,
    view: EngineView | None,
    num_prompt_tokens: int,
    known_prefix: int,
    slo: Slo,
    now_s: float,
) -> Quote:
    """Return whether a request that came now could be promised *slo*.

    Args:
        view: What the last plan was shown; before it nobody is in the way.
        known_prefix: Tokens of the prompt whose KV is in the server's cache.
    """
    if not slo.is_promise:
        return Quote(True, math.inf)
    most = view.layout.tokens(view.num_total_blocks) if view is not None else num_prompt_tokens
    request = Request(NEWCOMER, slo, now_s, num_prompt_tokens, max(most - num_prompt_tokens, 1))
    request.num_found_tokens = min(known_prefix, num_prompt_tokens - 1)
    request.predicted_output_tokens = known.lengths.predict(request)
    request.due_at_s = due_at_s(request, known.pace.step_s)
    request.order = len(known.live)
    if view is None:
        return Quote(not is_hopeless(request, known.latency), request.due_at_s - now_s)
    asked = _Asked.of(known, view, now_s)
    slack_s, feasible = _prefill_slack(asked, request)
    given = asked.draft.given
    spare_s = asked.due_s(request) - _kv_wait_s(given, request) - asked.prefill.work_s(request)
    gap_s, shape = request.promised_gap_s, given.live.decodes
    if gap_s is not None:
        context_tokens = shape.sum_context_tokens + num_prompt_tokens
        step_s = given.latency.predict_s(StepShape(0, 0, shape.num_decodes + 1, context_tokens))
        step_s *= given.latency.margin(False, LATE_GAPS_FORGIVEN)
        if step_s > gap_s or given.price.is_dear(request):
            return Quote(False, min(slack_s, spare_s, gap_s - step_s, 0.0))
    slack_s = min(slack_s, spare_s)
    return Quote(feasible and slack_s >= 0.0 and not is_hopeless(request, known.latency), slack_s)


def _prefill_slack(asked: _Asked, request: Request) -> tuple[float, bool]:
    """Return the least time to spare with a newcomer, and whether it pushes nobody out."""
    given, prefill = asked.draft.given, asked.prefill
    jobs = claim_work(given, prefill)
    turns = [(r.order, prefill.work_s(r)) for r in given.fair]
    own = DueWork(
        NEWCOMER,
        asked.due_s(request),
        prefill.work_s(request),
        given.worth(request),
        request.slo.tenant in given.heavy,
        request.order,
    )
    before, _ = largest_feasible(jobs, turns)
    after, _ = largest_feasible([*jobs, own], turns)
    total_s, slack_s = sum(work_s for _, work_s in turns), math.inf
    kept = [job for job in jobs if job.key not in before]
    for job in sorted([*kept, own], key=lambda j: (j.due_s, j.key)):
        total_s += job.work_s
        if job.due_s >= own.due_s:
            slack_s = min(slack_s, job.due_s - total_s)
    return slack_s, after == before


def _kv_wait_s(given: Inputs, request: Request) -> float:
    """Return the seconds until the cache has room for all that *request* is predicted to hold."""
    own = request.num_tokens + request.remaining_output_tokens - request.num_found_tokens
    room, wait_steps = given.room_tokens - own, 0.0
    if room < 0:
        return math.inf
    for steps, held in kv_ahead(given.live, given.live.claims):
        if held > room:
            wait_steps = steps
    return wait_steps * given.step_s


def kv_ahead(
    live: LiveRequests, claims: Sequence[Request], each: float = 1.0
) -> list[tuple[float, float]]:
    """Return the KV tokens held when each of those ends who run or have a claim, and in what steps.

    Everybody gains tokens until it ends, by prediction, so that the cache is fullest at an end.

    Args:
        claims: Those that wait.
        each: How many each of them stands for.
    """
    ends = [(r.steps_left, 1.0, r.num_tokens, r.tokens_a_step) for r in live.running()]
    ends += [(r.steps_left, each, r.num_tokens, r.tokens_a_step) for r in claims]
    ahead: list[tuple[float, float]] = []
    held = gain = 0.0
    for steps, times, num_tokens, tokens_a_step in sorted(ends, reverse=True):
        held += times * num_tokens
        gain += times * tokens_a_step
        ahead.append((steps, held + gain * steps))
    return ahead[::-1]
