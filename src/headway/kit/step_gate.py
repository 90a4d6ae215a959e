"""Streams start only while the steps to come stay within the gaps already promised."""

from __future__ import annotations

from itertools import islice

from headway.latency.model import StepShape
from headway.policy.admit import Gate
from headway.policy.draft import Draft
from headway.request import LATE_GAPS_FORGIVEN, Request

STREAMS_SHARE = 0.8
"""Of the tightest gap, what decodes alone may take; prompts need the rest."""


class AllOf(Gate):
    """Several gates in a row."""

    def __init__(self, *gates: Gate) -> None:
        self._gates = gates

    def fits(self, draft: Draft, request: Request) -> bool:
        """Return whether every gate is open."""
        return all(gate.fits(draft, request) for gate in self._gates)

    def begin(self, draft: Draft) -> None:
        """Tell every gate."""
        for gate in self._gates:
            gate.begin(draft)

    def admitted(self, draft: Draft, request: Request) -> None:
        """Tell every gate."""
        for gate in self._gates:
            gate.admitted(draft, request)


class StepGate(Gate):
    """Start a stream only if the steps to come stay within the gaps already promised.

    Every stream makes every later step longer. Streams without a promised gap can sit steps
    out, so only those with one count against each other; a best-effort stream starts when a
    step with *everybody* still fits.

    A dear gap (:mod:`headway.policy.prices`) keeps nobody out. Decodes alone may take
    :data:`STREAMS_SHARE` of the tightest gap; prompts need the rest.
    """

    def fits(self, draft: Draft, request: Request) -> bool:
        """Return whether the decode step with one more stream stays within the gaps."""
        live = draft.given.live
        gaps_s = list(islice(live.claim_gaps.irange(draft.given.price.least_gap_s), 1))
        gap_s = request.promised_gap_s
        if request.has_claim and gap_s is not None and not draft.given.price.is_dear(request):
            gaps_s.append(gap_s)
        if not gaps_s or draft.given.is_overdue(request):
            return True
        if not request.has_claim:
            num_streams = live.num_running + 1
        elif gap_s is None:
            return True
        else:
            starting = sum(
                r.has_claim and r.promised_gap_s is not None for r in live.prefilling.values()
            )
            others = sum(live.claim_gaps.values()) + starting
            if others == 0:
                return True  # No gap but its own is at stake, and waiting makes that no longer.
            num_streams = others + 1
        context = live.sum_decode_context_tokens * num_streams // max(len(live.decoding), 1)
        step_s = draft.given.latency.predict_s(StepShape(0, 0, num_streams, context))
        upper_s = step_s * draft.given.latency.margin(False, LATE_GAPS_FORGIVEN)
        return bool(upper_s <= STREAMS_SHARE * min(gaps_s))
