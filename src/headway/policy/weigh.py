"""Admission by what each error costs now: a newsvendor's decision, with no quantile to choose.

Admitting one request too many costs preemptions: the victims' promises, where they cannot spare a
late gap, and the prefill that is done twice. Making a request wait costs its own promise, the more
surely the longer room is away and the less slack it has. Both are counted in promises, from what
the core knows anyway; whoever is cheaper wins.
"""

from __future__ import annotations

import math

from headway.policy.admit import Gate, PrefillTime, prefill_time
from headway.policy.chunk import Chunker
from headway.policy.draft import Draft
from headway.policy.kv.forecast import Forecast, Lifetimes
from headway.policy.predict import Predictor, within
from headway.request import Request

NO_PREEMPTION = 0.02
"""Expected preemptions that count as none: best effort may start, and a plan reports no risk
(experiments/constants). Larger: best effort costs promises their KV; smaller: it waits beside free
KV."""

COMES_BACK_TIMES = 2.0
"""Times as much room as before that best effort must leave after each preemption: at the unit mixed
keeps 0.988 instead of 0.983, arXiv 0.986 instead of 0.977 (LOG.md, *Where a fixed chunk was
better*). Larger: it waits longer; smaller: its prompt is computed for nothing."""


Gone = frozenset[str] | None
"""Whose KV does not count against a newcomer, for they lose theirs to it: besides best effort
the tenants who yield to its own. ``None`` where everybody's counts."""


def _counts(request: Request, gone: Gone) -> bool:
    return gone is None or (request.has_claim and request.slo.tenant not in gone)


class ExpectedLengths(Predictor):
    """Expected lengths, from :class:`~headway.policy.kv.forecast.Lifetimes` that it feeds."""

    def __init__(self) -> None:
        self.lifetimes = Lifetimes()

    def predict(self, request: Request) -> int:
        """Return tokens generated so far and the mean of what is to come, within the bound."""
        remaining = self.lifetimes.mean_remaining(
            request.slo.class_name, request.num_output_tokens, request.max_output_tokens
        )
        return within(request, request.num_output_tokens + int(remaining))

    def learn(self, request: Request) -> None:
        """Remember the length of a finished request; one that met its bound was cut there."""
        cut = request.num_output_tokens >= request.max_output_tokens
        self.lifetimes.learn(request.slo.class_name, request.num_output_tokens, cut)

    def learn_cut(self, request: Request) -> None:
        """Remember that it would have been longer."""
        self.lifetimes.learn(request.slo.class_name, request.num_output_tokens, is_cut=True)


class Weighed(Gate):
    """Admit when the promises that waiting would cost outweigh those that overflow would."""

    def __init__(self, lengths: ExpectedLengths, chunker: Chunker) -> None:
        self._lifetimes = lengths.lifetimes
        self._chunker = chunker
        self._forecasts: dict[Gone, Forecast] = {}
        self._num_spare: int | None = None
        self._prefill: PrefillTime | None = None

    def begin(self, draft: Draft) -> None:
        """Forget what was foreseen for the last plan."""
        self._forecasts.clear()
        self._num_spare = self._prefill = None

    def fits(self, draft: Draft, request: Request) -> bool:
        """Return whether *request* may start.

        An empty server takes anybody, and whoever has waited too long is not weighed any more.
        """
        given = draft.given
        if given.is_overdue(request) or (given.live.num_running == 0 and not draft.busy):
            return True
        if self._prefill is None:
            self._prefill = prefill_time(draft, self._chunker)
        first = draft.comes_first(request)
        forecast = self._of(draft, given.tenants.yielding(request.slo.tenant) if first else None)
        capacity = float(given.room_tokens)
        total = draft.victims[request.request_id] = forecast.victims_with(request, capacity)
        preemptions = max(total - forecast.victims(capacity), 0.0)
        if not first:
            return preemptions <= NO_PREEMPTION and self._may_come_back(draft, request)
        again = draft.per_token * forecast.victim_tokens
        overflow_cost = preemptions * (self._victim_loss(draft, total) + again)
        waiting_cost = self._waiting_cost(draft, request, forecast, self._prefill)
        if overflow_cost > waiting_cost:
            return False
        if preemptions > NO_PREEMPTION:
            draft.risks[request.request_id] = (
                f"first token due: {preemptions:.1f} preemptions are expected of it and cost"
                f" {overflow_cost:.2f} promises, waiting {waiting_cost:.2f}"
            )
        return True

    @staticmethod
    def _may_come_back(draft: Draft, request: Request) -> bool:
        """Return whether best effort that lost its KV n times leaves room for 2^n claims.

        With less it would lose it to the next claims, and its prompt be computed for nothing.
        """
        if not request.num_preemptions:
            return True
        own = draft.given.layout.held_tokens(request.num_tokens)
        spare = draft.given.layout.tokens(draft.num_spare_blocks) - own
        wanted = COMES_BACK_TIMES ** min(request.num_preemptions, 32) * draft.given.claim_tokens
        return spare >= min(wanted, draft.given.capacity_tokens - 2 * own)

    def admitted(self, draft: Draft, request: Request) -> None:
        """Count *request* in for the rest of the plan."""
        for gone, forecast in self._forecasts.items():
            if _counts(request, gone):
                forecast.add([request])

    def _of(self, draft: Draft, gone: Gone) -> Forecast:
        if gone not in self._forecasts:
            forecast = self._forecasts[gone] = Forecast(self._lifetimes, draft.given.layout)
            running = (r for r in draft.given.live.running() if r.request_id not in draft.gone)
            forecast.add(r for r in running if _counts(r, gone))
        return self._forecasts[gone]

    def _victim_loss(self, draft: Draft, num_preemptions: float) -> float:
        """Return the promises one more preemption breaks: none while somebody can spare a gap."""
        if self._num_spare is None:
            self._num_spare = sum(
                not request.has_claim or request.has_earned_a_gap()
                for request in draft.given.live.decoding.values()
            )
        short = num_preemptions - self._num_spare
        return min(short / max(num_preemptions, 1e-9), 1.0) if short > 0.0 else 0.0

    def _waiting_cost(
        self, draft: Draft, request: Request, forecast: Forecast, prefill: PrefillTime
    ) -> float:
        """Return the chance that *request* breaks its promise if it waits for room."""
        growth = self._lifetimes.mean_remaining(
            request.slo.class_name, request.num_output_tokens, request.max_output_tokens
        )
        held = draft.given.layout.held_tokens(request.num_tokens)
        steps = forecast.steps_until(held + growth / 2, float(draft.given.room_tokens))
        room_s = steps * draft.given.step_s / request.tokens_a_step
        slack_s = request.due_at_s - draft.given.ref_s - prefill.work_s(request)
        if slack_s <= 0 or room_s == math.inf:
            return draft.given.worth(request)
        return draft.given.worth(request) * min(room_s / slack_s, 1.0)
