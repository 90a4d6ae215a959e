"""Which streams sit a step out, keeping their KV, so that it stays within the promised gaps."""

from __future__ import annotations

import math

from headway.latency.model import StepShape
from headway.policy.chunk import Chunker
from headway.policy.draft import Draft
from headway.request import LATE_GAPS_FORGIVEN, Request

PRESSED_DECODE_SHARE = 0.6
"""Share of the step that decodes may take while prompts of claims wait for the rest. No run of its
value; the rule won nothing in LOG.md's first table, and matters where decodes come near the gap.
Larger: prompts get little of a step; smaller: patient streams stand still for longer."""

PATIENT_TIMES = 2.0
"""Times the seconds predicted of a stream's rest that it must have left to sit a step out. No run.
Larger: steps stay long beside patient streams; smaller: they miss their promised end."""


def hold(draft: Draft, chunker: Chunker) -> tuple[str, ...]:
    """Let streams without a promised gap sit out while they make the step too long.

    Returns:
        Their ids; ``draft.shape`` is left with the decodes that do run.
    """
    given = draft.given
    live, latency = given.live, given.latency
    if not live.claim_gaps:
        return ()
    pressed = bool(live.claims) or any(r.has_claim for r in live.prefilling.values())
    share = PRESSED_DECODE_SHARE if pressed else 1.0
    most_s = share * chunker.step_limit_s(draft) / latency.margin(False, LATE_GAPS_FORGIVEN)
    shape = draft.shape
    if latency.predict_s(shape) <= most_s:
        return ()
    held: list[str] = []
    for request in _loose(draft):
        held.append(request.request_id)
        context = shape.sum_context_tokens - request.num_tokens
        shape = StepShape(0, 0, shape.num_decodes - 1, context)
        if latency.predict_s(shape) <= most_s:
            break
    draft.shape = shape
    return tuple(held)


def _loose(draft: Draft) -> list[Request]:
    """Return decodes that can wait a step, the most patient first."""
    given = draft.given
    loose: list[tuple[float, int, Request]] = []
    for request in given.live.decoding.values():
        if not request.has_claim:
            if not given.is_overdue(request):
                loose.append((-math.inf, -request.order, request))
        elif request.promised_gap_s is None and request.slo.jct_s is not None:
            left_s = request.arrived_at_s + request.slo.jct_s - given.now_s
            spare_s = left_s - PATIENT_TIMES * request.steps_left * given.step_s
            if spare_s > 0:
                loose.append((-spare_s, -request.order, request))
    return [request for *_, request in sorted(loose, key=lambda item: item[:2])]
