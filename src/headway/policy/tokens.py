"""What new tokens do to a request: its counts, its gaps, its promise."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from headway.policy.live_requests import LiveRequests
from headway.request import Request, Standing, State


class TokenEffects(NamedTuple):
    """What the tokens of one step did.

    Attributes:
        lost: Requests whose promise they broke.
        lagging: Decodes that got none.
        has_drafts: Whether a stream gained more than one token.
    """

    lost: list[Request]
    lagging: list[Request]
    has_drafts: bool


def take_step(live: LiveRequests, num_new_tokens: Mapping[str, int], at_s: float) -> TokenEffects:
    """Count the tokens that a step emitted, per request."""
    requests, decoding, gaps_s = live.requests, live.decoding, live.claim_gaps
    tightest_s = gaps_s.keys()[0] if gaps_s else math.inf
    lost: list[Request] = []
    num_emitting = context_tokens = 0
    for request_id, num_tokens in num_new_tokens.items():
        request = decoding.get(request_id)
        if request is not None:
            num_emitting += 1
            context_tokens += num_tokens
            last_s = request.last_token_at_s
            if last_s is not None and at_s - last_s <= tightest_s:  # Nearly every token.
                request.num_output_tokens += num_tokens
                request.last_token_at_s = at_s
                continue
        else:
            request = requests.get(request_id)
            if request is None:
                continue
        if take_tokens(request, num_tokens, at_s):
            lost.append(request)
    live.sum_decode_context_tokens += context_tokens
    lagging: list[Request] = []
    if num_emitting < len(decoding):
        lagging = [
            r
            for r in decoding.values()
            if r.last_token_at_s is not None and r.last_token_at_s < at_s
        ]
    return TokenEffects(lost, lagging, context_tokens > num_emitting)


def take_tokens(request: Request, num_tokens: int, at_s: float) -> bool:
    """Count new tokens of a request; return whether they broke its promise."""
    request.num_output_tokens += num_tokens
    if request.state is State.PREEMPTED:  # It was in flight, and is to be computed again too.
        request.prefill_target_tokens = request.num_tokens
    last_s = request.last_token_at_s
    request.last_token_at_s = at_s
    slo, is_promised = request.slo, request.standing is Standing.PROMISED
    if last_s is None:
        request.first_token_at_s = at_s
        is_late = slo.ttft_s is not None and at_s - request.arrived_at_s > slo.ttft_s
        return is_promised and is_late
    if not is_promised:
        return False
    is_late_gap = slo.tbt_s is not None and at_s - last_s > slo.tbt_s
    if is_late_gap:
        request.num_late_gaps += 1
    too_many = is_late_gap and request.num_late_gaps > request.late_gaps_allowed()
    return too_many or at_s - last_s > slo.longest_pause_s or _is_too_slow(request, at_s)


def _is_too_slow(request: Request, at_s: float) -> bool:
    """Return whether no length that is allowed brings the mean time per token down again."""
    if request.slo.tpot_s is None or request.first_token_at_s is None:
        return False
    most_s = request.slo.tpot_s * max(request.max_output_tokens - 1, 1)
    return at_s - request.first_token_at_s > most_s
