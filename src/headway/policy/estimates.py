"""What is estimated of a request when it comes: whether it is possible, its work, its due time."""

from __future__ import annotations

import math

from headway.latency.model import LatencyModel, StepShape
from headway.policy.live_requests import LiveRequests
from headway.request import Request

CERTAIN = 0.7
"""Share of a prediction that a promise must fall short of to be called hopeless: an estimate of
shapes never seen may be that much too long (tests/unit/test_overload.py). Larger: promises are
given up that could be kept; smaller: hopeless ones compete until they are late."""

LEAST_BESIDE = 8
"""Streams among which a decode step is shared in an estimate of work, where fewer run now. With as
many as there are a short overload refuses who could wait (tests/conformance/test_promises.py).
Larger: a quiet server's work seems less, and too much waits; smaller: more of the lost are refused.
"""


def is_hopeless(request: Request, latency: LatencyModel) -> bool:
    """Return whether the machine is too slow for this promise whatever the load.

    A guess calls nothing hopeless: steps must have shown it.
    """
    if not latency.num_mixed_steps:
        return False
    slo, num_tokens = request.slo, request.num_prompt_tokens
    tbt_s = request.promised_gap_s
    prompt_s = CERTAIN * alone_s(request, latency)
    step_s = CERTAIN * latency.predict_s(StepShape(0, 0, 1, num_tokens))
    return (
        (slo.ttft_s is not None and prompt_s > slo.ttft_s)
        or (tbt_s is not None and step_s > tbt_s)
        or (slo.jct_s is not None and prompt_s > slo.jct_s)
    )


def alone_s(request: Request, latency: LatencyModel) -> float:
    """Return the seconds an idle engine needs for a request's first token."""
    prompt = StepShape().with_chunk(request.remaining_prefill_tokens, request.num_ready_tokens)
    return latency.predict_s(prompt)


def work_s(request: Request, latency: LatencyModel, live: LiveRequests) -> float:
    """Return the engine's seconds a request takes: its prompt, and its share of steps."""
    beside = max(len(live.decoding), LEAST_BESIDE)
    decodes = StepShape(0, 0, beside, live.sum_decode_context_tokens)
    decode_s = latency.predict_s(decodes)
    chunk = decodes.with_chunk(
        max(request.num_prompt_tokens - request.num_ready_tokens, 0), request.num_ready_tokens
    )
    prompt_s = latency.predict_s(chunk) - decode_s
    num_steps = request.predicted_output_tokens / request.tokens_a_step
    return prompt_s + num_steps * decode_s / beside


def due_at_s(request: Request, step_s: float) -> float:
    """Return when the next token of a waiting request is due by its promise."""
    slo, due_s = request.slo, math.inf
    if request.first_token_at_s is None:
        if slo.ttft_s is not None:
            due_s = request.arrived_at_s + slo.ttft_s
    elif request.last_token_at_s is not None:
        due_s = request.last_token_at_s + slo.longest_pause_s
        if slo.tbt_s is not None and not request.can_spare_a_gap():
            due_s = min(due_s, request.last_token_at_s + slo.tbt_s)
        if slo.tpot_s is not None:
            due_s = min(due_s, request.first_token_at_s + slo.tpot_s * request.num_output_tokens)
    if slo.jct_s is not None:
        decode_s = request.steps_left * step_s
        due_s = min(due_s, request.arrived_at_s + slo.jct_s - decode_s)
    return due_s
