"""Which gaps are worth their price: what tight ones win by short steps, and cost the others.

A tight gap is kept by short steps only; short steps compute fewer prompt tokens a second and leave
room for fewer streams. Both sides are promises, so they compare: for each bound of the step, the
share of recent claims whose gaps it keeps, times the share of all claims that the machine can then
take on. A promised gap shorter than the best bound is *dear*: it is set aside, as a promise that
does not fit is, until it is worth its price. The tightest of the others bounds every step.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headway.latency.model import StepShape
from headway.policy.inputs import Inputs
from headway.request import LATE_GAPS_FORGIVEN, Request

RECENT_CLAIMS = 128
"""Newest claims that speak for those to come (experiments/price). Larger: with 256 a change of load
is seen late; smaller: with 64 traffic looks like overload now and then, and promises flap."""

DECIDE_EVERY = 8
"""Steps from one decision to the next: claims come more slowly than steps, and a decision takes
some 0.3 ms (LOG.md, *Half the constants*). Larger: traffic is seen late; smaller: plans take
longer."""

LEAST_CHUNK_TOKENS = 64
"""Prompt tokens of the shortest step that makes progress (experiments/constants). Larger: steps
that must go on break more gaps; smaller: a prompt that must go on takes more steps."""

EQUALLY_GOOD = 1e-3
"""Share below which two bounds, or what they are worth, are the same, and the longer is taken: both
are sums (experiments/constants). Larger: steps longer than best; smaller: they change with every
claim."""

Vector = npt.NDArray[np.float64]


class Claim(NamedTuple):
    """What one recent claim asked for. Times in seconds, ``inf`` where nothing was asked."""

    at_s: float
    ttft_s: float
    gap_s: float
    weight: float
    num_prompt_tokens: int
    num_output_steps: float


def lost_share(load: Vector, room: Vector) -> Vector:
    """Return the share of arrivals that a server turns away whose queue has so many places.

    The M/M/1/K queue (Gross & Harris, Fundamentals of Queueing Theory, §2.5): (1 - r) r^K /
    (1 - r^(K+1)). Whoever could not be served in time does not queue, so the places are the
    requests that can be served while one waits. Smooth from an idle server to overload.

    Args:
        load: Work that arrives in a second, in seconds of the server; above 1 in overload.
        room: Places, a real number of at least 0.
    """
    log = np.log(np.maximum(load, 1e-9))
    log = np.where(np.abs(log) < 1e-6, 1e-6, log)  # At r = 1 the limit, 1 / (K + 1).
    powers = np.clip(log * (room + 1.0), -700.0, 700.0)
    share: Vector = np.clip(np.expm1(-log) / np.expm1(-powers), 0.0, 1.0)
    return share


class GapPrices:
    """Keeps what recent claims asked for, and which of their gaps cost the others too much.

    Attributes:
        pressure: How much of the prefill claims take, as feasibility found in the last plan.
        least_gap_s: The tightest gap worth its price when last decided; 0 before.
    """

    def __init__(self) -> None:
        self.pressure = 0.0
        self.least_gap_s = 0.0
        self._claims: deque[Claim] = deque(maxlen=RECENT_CLAIMS)
        self._payers: deque[tuple[str, float]] = deque(maxlen=RECENT_CLAIMS)
        """Of each claim its tenant, and the tenant's share."""
        self._decided_at_step = 0

    def learn(self, request: Request, at_s: float, worth: float) -> None:
        """Take in a claim that has just come, and its weight; its length must be predicted."""
        slo, num_tokens = request.slo, max(request.remaining_prefill_tokens, 1)
        ttft_s, gap_s = slo.ttft_s or math.inf, request.promised_gap_s or math.inf
        claim = Claim(at_s, ttft_s, gap_s, worth, num_tokens, request.steps_left)
        self._claims.append(claim)
        self._payers.append((slo.tenant, slo.share))

    @property
    def typical_ttft_s(self) -> float | None:
        """Mean seconds that recent claims left for their first tokens; ``None`` if none said."""
        spans_s = [claim.ttft_s for claim in self._claims if claim.ttft_s < math.inf]
        return sum(spans_s) / len(spans_s) if spans_s else None

    def _voices(self) -> list[Claim]:
        """Return the claims that count: of no tenant more than its share of them, the newest.

        Or one who asks for far more than there is would decide alone which gaps are dear.
        """
        shares = dict(self._payers)
        if len(shares) < 2:
            return list(self._claims)
        each = len(self._claims) / sum(shares.values())
        left = {tenant: math.ceil(share * each) for tenant, share in shares.items()}
        voices = []
        for claim, (tenant, _) in zip(reversed(self._claims), reversed(self._payers), strict=True):
            if left[tenant] > 0:
                left[tenant] -= 1
                voices.append(claim)
        return voices[::-1]

    def limit_s(self, given: Inputs, shape: StepShape) -> float:
        """Return the seconds that a step with these decodes may last: the tightest gap not dear.

        First tokens to come bound no step: a prompt in progress would be slowed for certain, and
        there is no more than a chance that somebody profits (docs/decisions/0008). And until the
        step time is warm no gap is dear: a guess decides nothing (docs/decisions/0011).
        """
        is_due = given.step - self._decided_at_step >= DECIDE_EVERY
        if is_due and self._claims and given.latency.is_warm:
            self._decided_at_step = given.step
            self._decide(given, shape)
        return self.bound_s(given)

    def bound_s(self, given: Inputs) -> float:
        """Return :meth:`limit_s` as it was last decided."""
        return next(given.live.claim_gaps.irange(self.least_gap_s), math.inf)

    def is_dear(self, request: Request) -> bool:
        """Return whether this promised gap would cost the others more than it is worth."""
        tbt_s = request.promised_gap_s
        return tbt_s is not None and tbt_s < self.least_gap_s

    def _decide(self, given: Inputs, shape: StepShape) -> None:
        """Find the bound of the step with the most promises kept."""
        at_s, ttft_s, gap_s, weight, prompt, output = np.array(self._voices()).T
        machine = _StepCapacity(given, shape, _bounds(given, shape, gap_s))
        lengths = machine.lengths
        rate = (len(at_s) - 1) / max(given.now_s - self._claims[0].at_s, given.step_s)
        # As much work may wait as what is promised for it leaves time.
        patience_s = float(np.average(np.minimum(ttft_s, given.max_wait_s), weights=prompt))
        keeps_gap = gap_s[:, None] >= lengths
        tightest_s = np.where(keeps_gap, gap_s[:, None], math.inf).min(axis=0)
        stay_s = max(float(output.mean()), machine.seen_stay(rate)) * lengths
        streams = machine.streams(tightest_s)
        speed = machine.speed(np.minimum(rate * stay_s, streams))
        tokens = float(prompt.mean())
        served = 1.0 - lost_share(rate * tokens / speed, patience_s * speed / tokens)
        served *= 1.0 - lost_share(rate * stay_s / streams, streams * (1.0 + patience_s / stay_s))
        kept = (weight[:, None] * keeps_gap).sum(axis=0) / weight.sum()
        value = kept * served - self._lost_at_once(given, shape, machine) / len(at_s)
        best = float(value.max())
        as_good = np.nonzero(value >= best - EQUALLY_GOOD * abs(best))[0]
        self.least_gap_s = (1.0 - EQUALLY_GOOD) * float(lengths[as_good[-1]])

    def _lost_at_once(self, given: Inputs, shape: StepShape, machine: _StepCapacity) -> Vector:
        """Return the promises that each bound would break now, whatever comes later.

        Streams with a tighter gap, and of those who wait the share that this bound has no time
        for. It keeps the bound from changing with every burst.
        """
        lost = np.zeros_like(machine.lengths)
        gaps, num_waiting = given.live.claim_gaps, len(given.live.claims)
        if heavy := given.heavy:  # What they lose is no reason to take from the others.
            streams = (r for r in given.live.decoding.values() if r.slo.tenant not in heavy)
            gaps = Counter(r.promised_gap_s or math.inf for r in streams if r.has_claim)
            num_waiting = sum(r.slo.tenant not in heavy for r in given.live.claims)
        for gap_s, count in gaps.items():
            lost += count * (gap_s < (1.0 - EQUALLY_GOOD) * machine.lengths)
        speed = machine.speed(np.full_like(machine.lengths, float(shape.num_decodes)))
        needed = max(self.pressure, 1e-9) * speed.max()
        lost += num_waiting * np.maximum(1.0 - speed / needed, 0.0)
        return lost


def _bounds(given: Inputs, shape: StepShape, gap_s: Vector) -> Vector:
    """Return the bounds to compare: the gaps a step can keep, and none (a full step)."""
    least_s = given.latency.predict_s(shape.with_chunk(LEAST_CHUNK_TOKENS, 0))
    full_s = given.latency.predict_s(shape.with_chunk(given.view.max_step_tokens, 0))
    gaps = np.unique(gap_s[(gap_s > least_s) & (gap_s < math.inf)])
    return np.unique(np.append(gaps, max(full_s, 2.0 * least_s)))


class _StepCapacity:
    """What steps of these lengths can do, by the learned step time. Vectors have a value a length.

    A prompt token costs what it does in the largest step. Small chunks may cost less, but a server
    that runs long steps cannot know, and believing so has hurt the others (experiments/LOG.md).
    """

    def __init__(self, given: Inputs, shape: StepShape, lengths: Vector) -> None:
        self._given = given
        self._num_decodes = shape.num_decodes
        self.lengths = lengths
        predict_s, most = given.latency.predict_s, given.view.max_step_tokens
        each = shape.sum_context_tokens // max(shape.num_decodes, 1)
        self._one_s = predict_s(StepShape(0, 0, 1, each))
        self._decode_s = max(predict_s(StepShape(0, 0, 2, 2 * each)) - self._one_s, 1e-9)
        self._token_s = max(predict_s(shape.with_chunk(most, 0)) - predict_s(shape), 1e-9) / most

    def seen_stay(self, rate: float) -> float:
        """Return the steps a stream stays, from how many there are (Little 1961)."""
        return self._num_decodes / max(rate * self._given.step_s, 1e-9)

    def streams(self, tightest_s: Vector) -> Vector:
        """Return how many streams fit beside each other where the tightest gaps are these."""
        most_s = tightest_s / self._given.latency.margin(False, LATE_GAPS_FORGIVEN)
        fit = 1.0 + np.maximum(most_s - self._one_s, 0.0) / self._decode_s
        return np.minimum(fit, float(self._given.view.max_num_running))

    def speed(self, num_streams: Vector) -> Vector:
        """Return prompt tokens a second beside so many streams; what short steps can, long can."""
        beside_s = self._one_s + self._decode_s * np.maximum(num_streams - 1.0, 0.0)
        left = np.maximum(self.lengths - beside_s, 1e-9) / self.lengths
        return np.array(np.maximum.accumulate(left / self._token_s))
