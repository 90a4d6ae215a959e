"""``xllm``: in the style of xLLM's mixed scheduler, urgency by remaining time.

After the source of jd-opensource/xllm (``scheduler/mix_scheduler.cpp``, ``priority_comparator``:
``urgency_density``): one queue of prompts and decodes, urgent ones first by weight per second,
then by remaining time; the batch is filled while a latency model says the step stays within
the least remaining time; the lowest rank gives KV back. Differs: the step is predicted as
a whole, not as a sum of requests; the promise is per request where xLLM's weights are for TTFT
and TPOT apart; a prompt in progress is never evicted.
"""

from __future__ import annotations

import math

from headway.kit.lengths import SlidingHistogram
from headway.latency.model import StepShape
from headway.policy.draft import Draft
from headway.request import Request
from headway.rivals.ranked import RankedPlanner, Ranking

LEAST_GAP_SHARE = 0.65
"""Share of the tightest gap a step may always take (xLLM's constant)."""

LEAST_PARTIAL_TOKENS = 51
"""A prompt is not cut to 50 tokens or fewer (xLLM's constant)."""


def remaining_s(request: Request, now_s: float, num_ahead: int = 0) -> float:
    """Return seconds until the next token is due, counted from the first token's real time.

    Tokens that came early earn slack, but a first token before its due time earns none.
    """
    slo, emitted = request.slo, request.num_output_tokens + num_ahead
    due_s = math.inf if slo.ttft_s is None else request.arrived_at_s + slo.ttft_s
    if emitted and request.first_token_at_s is not None:
        start_s = min(due_s, request.first_token_at_s)
        due_s = math.inf if slo.tbt_s is None else start_s + emitted * slo.tbt_s
    if slo.jct_s is not None:
        due_s = min(due_s, request.arrived_at_s + slo.jct_s)
    return due_s - now_s


class Urgency(Ranking):
    """Ranks every live request, decodes too, once a plan: the urgent by weight per second first."""

    def __init__(self) -> None:
        self._is_new = True
        self._order: list[Request] = []
        self._limit_s = math.inf

    def begin(self, draft: Draft) -> None:
        """Forget the last plan."""
        self._is_new = True

    def order(self, draft: Draft) -> list[Request]:
        """Return the urgent by weight per second, then the others by remaining time."""
        self._refresh(draft)
        return self._order

    def limit_s(self, draft: Draft) -> float:
        """Return the seconds the step may take; ``inf`` while nobody has a deadline."""
        self._refresh(draft)
        return self._limit_s

    def displaces(self, draft: Draft, newcomer: Request, resident: Request) -> bool:
        """Return whether *resident* decodes: a prompt in progress is not thrown away.

        So everyone who starts emits at least a token before it can be evicted again.
        """
        return resident.request_id in draft.given.live.decoding

    def _refresh(self, draft: Draft) -> None:
        if not self._is_new:
            return
        self._is_new = False
        live, predict_s = draft.given.live, draft.given.latency.predict_s
        overhead_s = predict_s(StepShape())
        ahead = draft.given.view.num_steps_in_flight
        tightest_s = least_s = math.inf
        queue_s = 0.0
        left: list[tuple[Request, float, float]] = []
        for request in (r for r in live.requests.values() if not r.hindrance):
            decodes = request.request_id in live.decoding
            own = _alone(request, decodes)
            alone_s = max(predict_s(own) - overhead_s, 1e-9)
            left_s = remaining_s(request, draft.given.ref_s, ahead if decodes else 0)
            queue_s += alone_s
            if request.slo.tbt_s is not None:
                tightest_s = min(tightest_s, request.slo.tbt_s)
            if left_s >= alone_s + overhead_s:
                least_s = min(least_s, left_s)
            left.append((request, alone_s, left_s))
        self._limit_s = step_limit_s(least_s, tightest_s)
        urgent_below_s = urgent_s(queue_s, self._limit_s, overhead_s)
        ranked = [(_rank(r, s, t, urgent_below_s), r) for r, s, t in left]
        ranked.sort(key=lambda item: item[0])
        self._order = [request for _, request in ranked]


def step_limit_s(least_s: float, tightest_gap_s: float) -> float:
    """Return the step's budget: the least remaining time, but never below the gaps' share."""
    if tightest_gap_s == math.inf:
        return least_s
    least_share_s = LEAST_GAP_SHARE * tightest_gap_s
    return least_share_s if least_s == math.inf else max(least_s, least_share_s)


def urgent_s(queue_s: float, limit_s: float, overhead_s: float) -> float:
    """Return how long the whole queue takes in steps of *limit_s*, the overhead paid in each."""
    if limit_s == math.inf:
        return queue_s
    return queue_s * limit_s / (limit_s - overhead_s) if limit_s > overhead_s else math.inf


def _alone(request: Request, decodes: bool) -> StepShape:
    if decodes:
        return StepShape(0, 0, 1, request.num_tokens)
    return StepShape().with_chunk(request.remaining_prefill_tokens, request.num_computed_tokens)


def _rank(
    request: Request, alone_s: float, left_s: float, urgent_below_s: float
) -> tuple[bool, float, int]:
    is_urgent = left_s < urgent_below_s and left_s < math.inf
    by = -request.slo.weight / alone_s if is_urgent else left_s
    return (not is_urgent, by, request.order)


def planner() -> RankedPlanner:
    """One order over prompts and decodes, by urgency; no options."""
    lengths = SlidingHistogram()
    return RankedPlanner(Urgency(), lengths, least_partial_tokens=LEAST_PARTIAL_TOKENS)
