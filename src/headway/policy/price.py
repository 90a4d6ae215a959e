"""How long a step may last: what tight promises win by short steps, and what those cost the others.

A tight first token or gap is kept by short steps only; short steps compute fewer prompt tokens a
second and leave room for fewer streams. Both sides are promises, so they compare: for each length,
the share of recent claims that steps so long let come true, times the share of all claims that the
machine can then take on. The best length bounds every step. A promised gap that would need shorter
ones is *dear*: it is set aside, as a promise that does not fit is, until it is worth its price.
"""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headway.latency.model import StepShape
from headway.policy.inputs import MISS_RATE, Inputs
from headway.request import Request

RECENT_CLAIMS = 128
"""Newest claims that speak for those to come (experiments/price). Larger: with 256 a change of load
is seen late; smaller: with 64 traffic looks like overload now and then, and promises flap."""

DECIDE_EVERY = 8
"""Steps from one decision to the next: claims come more slowly than steps, and a decision takes 0.8
ms (LOG.md, *The price of a tight promise*). Larger: traffic is seen late; smaller: plans take
longer."""

GROWTH = 1.25
"""Times as long as before a step may be after a decision: the step time is learned where steps are,
and longer ones can cost more a token than it says (there too: at once from 21 to 100 ms broke every
stream's gap). Larger: that again; smaller: steps follow a change slowly."""

NUM_LENGTHS = 24
"""Lengths compared, besides the promised gaps themselves, from the shortest step to the longest. No
run. Larger: decisions take longer; smaller: the best length is missed by a wider grid."""

LEAST_CHUNK_TOKENS = 64
"""Prompt tokens of the shortest step that makes progress. No run of its own. Larger: steps that
must go on break more gaps; smaller: a prompt that must go on takes more steps."""

STREAMS_SHARE = 0.8
"""Of the tightest gap, what decodes alone may take; prompts need the rest. No run of its value; the
rule won nothing in LOG.md's first table and matters where decodes come near the gap. Larger:
prompts starve beside streams; smaller: fewer streams."""

PATIENCE_S = 60.0
"""Seconds a claim without a promised first token counts as willing to wait for it. No run. Larger:
a queue seems to lose nobody, and steps are chosen for gaps; smaller: for throughput."""

ROUNDING = 0.999
"""Factor up to which a gap is as long as a length. No run: rounding, since both are computed.
Larger: a gap that is a length counts as shorter; smaller: gaps are kept that cost the others."""

EQUALLY_GOOD = 1e-3
"""Share of the best below which two lengths are equally good, and the longer is taken. No run:
noise of the sums. Larger: steps longer than best; smaller: they change with every claim."""

LEAST_SPAN_S = 1e-3
"""Least seconds in which recent claims are said to have come, for a burst comes in one instant. No
run. Larger: a burst seems slower than it is; smaller: rates beyond any server's."""

PROBE_DECODES = 100
"""Decodes more that tell what one costs. Any number does while the step time is linear in them."""

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


class StepPrice:
    """Keeps what recent claims asked for, and the step length that keeps most of such claims.

    Attributes:
        pressure: How much of the prefill is spoken for, as feasibility found in the last plan.
        least_gap_s: The tightest gap worth its price when last decided; 0 before.
    """

    def __init__(self) -> None:
        self.pressure = 0.0
        self._claims: deque[Claim] = deque(maxlen=RECENT_CLAIMS)
        self.least_gap_s = 0.0
        self._for_first_tokens_s = math.inf
        self._last_s = math.inf
        self._decided_at_step = -DECIDE_EVERY

    def learn(self, request: Request, at_s: float) -> None:
        """Take in a claim that has just come; its length must be predicted."""
        slo, num_tokens = request.slo, max(request.remaining_prefill_tokens, 1)
        ttft_s, gap_s = slo.ttft_s or math.inf, request.promised_gap_s or math.inf
        claim = Claim(at_s, ttft_s, gap_s, slo.weight, num_tokens, request.steps_left)
        self._claims.append(claim)

    def limit_s(self, given: Inputs, shape: StepShape) -> float:
        """Return the seconds that a step with these decodes may last; ``inf`` before any claim.

        The tightest gap of a running stream that is not dear. Where prompts stand in line, also
        what first tokens to come are worth: short steps slow the prompt in progress for certain,
        and with nobody behind it there is no more than a chance that somebody profits.
        """
        live = given.live
        is_due = given.step - self._decided_at_step >= DECIDE_EVERY
        if is_due and self._claims:
            self._decided_at_step = given.step
            self._decide(given, shape)
        gap_s = next(live.claim_gaps.irange(self.least_gap_s), math.inf)
        if len(live.prefilling) + live.num_waiting <= 1:
            return gap_s
        limit_s = min(self._for_first_tokens_s, gap_s, GROWTH * self._last_s)
        if is_due:
            self._last_s = limit_s
        return limit_s

    def is_dear(self, request: Request) -> bool:
        """Return whether this promised gap would cost the others more than it is worth."""
        tbt_s = request.promised_gap_s
        return tbt_s is not None and tbt_s < self.least_gap_s

    def _decide(self, given: Inputs, shape: StepShape) -> None:
        """Find the lengths with the most promises kept, with gaps and without."""
        at_s, ttft_s, gap_s, weight, prompt, output = np.array(self._claims).T
        lengths = _lengths(given, shape, gap_s)
        keeps_gap = gap_s[:, None] >= lengths
        rate = (len(at_s) - 1) / max(given.now_s - at_s[0], LEAST_SPAN_S)
        machine = _StepCapacity(given, shape, lengths)
        # As much work may wait as what is promised for it leaves time.
        patience_s = float(np.average(np.minimum(ttft_s, PATIENCE_S), weights=prompt))
        tightest_s = np.where(keeps_gap, gap_s[:, None], math.inf).min(axis=0)
        stay_s = max(float(output.mean()), machine.seen_stay(rate)) * lengths
        streams = machine.streams(tightest_s)
        speed = machine.speed(np.minimum(rate * stay_s, streams))
        tokens = float(prompt.mean())
        served = 1.0 - lost_share(rate * tokens / speed, patience_s * speed / tokens)
        served *= 1.0 - lost_share(rate * stay_s / streams, streams * (1.0 + patience_s / stay_s))
        late = machine.late_share(ttft_s, prompt, speed)
        kept = weight[:, None] * (1.0 - late) / weight.sum()
        at_once = self._lost_at_once(given, shape, machine) / len(at_s)
        self.least_gap_s = ROUNDING * _best_of(
            lengths, (kept * keeps_gap).sum(axis=0) * served - at_once
        )
        best_s = _best_of(lengths, kept.sum(axis=0) * served)
        # Nobody asks for less than a full step. That one is predicted for prompts that begin: as a
        # bound it would cut those that are further.
        self._for_first_tokens_s = math.inf if best_s >= machine.full_s else best_s

    def _lost_at_once(self, given: Inputs, shape: StepShape, machine: _StepCapacity) -> Vector:
        """Return the promises that each length would break now, whatever comes later.

        Streams with a tighter gap, and of those who wait the share that this length has no time
        for. It keeps a length from changing with every burst.
        """
        lost = np.zeros_like(machine.lengths)
        for gap_s, count in given.live.claim_gaps.items():
            lost += count * (gap_s < ROUNDING * machine.lengths)
        speed = machine.speed(np.full_like(machine.lengths, float(shape.num_decodes)))
        needed = max(self.pressure, 1e-9) * speed.max()
        lost += len(given.live.claims) * np.maximum(1.0 - speed / needed, 0.0)
        return lost


def _best_of(lengths: Vector, value: Vector) -> float:
    """Return the length of the most value, the longest of equals."""
    best = float(value.max())
    return float(lengths[np.nonzero(value >= best - EQUALLY_GOOD * abs(best))[0][-1]])


def _lengths(given: Inputs, shape: StepShape, gap_s: Vector) -> Vector:
    """Return the step lengths to compare: a grid, and the gaps it can tell apart."""
    predict_s = given.latency.predict_s
    least_s = predict_s(shape.with_chunk(LEAST_CHUNK_TOKENS, 0))
    most_s = predict_s(shape.with_chunk(given.view.max_step_tokens, 0))
    grid = np.geomspace(least_s, max(most_s, 1.01 * least_s), NUM_LENGTHS)
    gaps = np.unique(gap_s[(gap_s > least_s) & (gap_s < math.inf)])[:NUM_LENGTHS]
    return np.unique(np.concatenate([grid, gaps]))


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
        many = 1 + PROBE_DECODES
        many_s = predict_s(StepShape(0, 0, many, many * each))
        self._decode_s = max((many_s - self._one_s) / PROBE_DECODES, 1e-9)
        self.full_s = predict_s(shape.with_chunk(most, 0))
        self._token_s = max(self.full_s - predict_s(shape), 1e-9) / most

    def seen_stay(self, rate: float) -> float:
        """Return the steps a stream stays, from how many there are (Little 1961)."""
        return self._num_decodes / max(rate * self._given.step_s, 1e-9)

    def streams(self, tightest_s: Vector) -> Vector:
        """Return how many streams fit beside each other where the tightest gaps are these."""
        most_s = STREAMS_SHARE * tightest_s / self._given.latency.margin(False, MISS_RATE)
        fit = 1.0 + np.maximum(most_s - self._one_s, 0.0) / self._decode_s
        return np.minimum(fit, float(self._given.view.max_num_running))

    def speed(self, num_streams: Vector) -> Vector:
        """Return prompt tokens a second beside so many streams; what short steps can, long can."""
        beside_s = self._one_s + self._decode_s * np.maximum(num_streams - 1.0, 0.0)
        left = np.maximum(self.lengths - beside_s, 1e-9) / self.lengths
        return np.array(np.maximum.accumulate(left / self._token_s))

    def late_share(self, ttft_s: Vector, prompt: Vector, speed: Vector) -> Vector:
        """Return, by claim and length, the chance that the first token comes too late.

        On an empty queue: it waits for the end of a step that began at any time before, and for
        those in flight behind it; then for its own.
        """
        own_s = prompt[:, None] * self._token_s + self._one_s
        own_s = np.where(own_s <= self.lengths, self.lengths, prompt[:, None] / speed)
        worst_s = (1 + self._given.view.num_steps_in_flight) * self.lengths + own_s
        share: Vector = np.clip((worst_s - ttft_s[:, None]) / self.lengths, 0.0, 1.0)
        return share
