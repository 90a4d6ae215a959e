"""How many prompt tokens the next step may take on.

The two goals pull apart: a large chunk spreads the fixed cost of a step over more tokens, a
small one keeps every running decode's next token on time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Protocol

from headway.latency.model import StepShape
from headway.policy.draft import Draft
from headway.policy.prices import LEAST_CHUNK_TOKENS
from headway.request import LATE_GAPS_FORGIVEN

PROBE_TOKENS = 2048
"""Prompt tokens of the largest chunk that tells what one costs now: a step's fixed cost is spread
over many by then (experiments/constants). Larger: tokens seem cheaper, and more claims fit than can
be on time; smaller: the fixed cost weighs more, and claims are set aside that could be kept."""

NUM_LENGTHS = 24
"""Step lengths weighed against each other, equal parts of the limit (experiments/constants).
Larger: plans cost more; smaller: up to such a part of the limit is given away."""

CROWDED_SHARE = 0.6
"""Share of the KV cache in use from which streams that end soon are worth more than prompts. From
half of the cache on retrieval kept 0.711 instead of 0.729 (LOG.md, *Where a fixed chunk was
better*). Larger: prompts fill the cache long before they are due; smaller: prefill is slowed for
nothing."""

CROWDED_STEPS = 2.0
"""Times as long as its decodes alone that a step may then last; 1.5 and 3 are worse or no better
(there too). Larger: prompts hold KV early; smaller: they use up their slack and are late."""

StepTime = Callable[[StepShape], float]


def largest_chunk(
    slack_s: float, shape: StepShape, prefix_tokens: int, most_tokens: int, step_time_s: StepTime
) -> int:
    """Return the most prompt tokens that fit *slack_s* beside the work already in *shape*.

    Sarathi-Serve's stall-free batching (arXiv 2403.02310 §4.2). Differs: the fixed budget
    becomes the tightest decode's slack.

    Args:
        slack_s: Seconds the step may take; ``inf`` when nobody running has a promise.
        prefix_tokens: Tokens of this prompt computed before.
        step_time_s: Seconds of a step. Must not decrease with the chunk; the search relies
            on it.

    Returns:
        Tokens between 0 and *most_tokens*.
    """
    if most_tokens <= 0 or step_time_s(shape.with_chunk(1, prefix_tokens)) > slack_s:
        return 0
    if step_time_s(shape.with_chunk(most_tokens, prefix_tokens)) <= slack_s:
        return most_tokens
    fits, too_many = 1, most_tokens
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if step_time_s(shape.with_chunk(middle, prefix_tokens)) <= slack_s:
            fits = middle
        else:
            too_many = middle
    return fits


class Chunker(Protocol):
    """Bounds the prompt work of one step."""

    def begin(self, draft: Draft) -> None:
        """Forget the last plan; most chunkers remember nothing."""
        return

    def step_limit_s(self, draft: Draft) -> float:
        """Return the seconds this step may take, or ``inf``."""

    def largest(
        self, draft: Draft, shape: StepShape, prefix: int, most: int, must_go_on: bool = False
    ) -> int:
        """Return how many of *most* prompt tokens fit beside *shape*.

        Args:
            prefix: Tokens of this prompt computed before.
            must_go_on: The request has waited too long: some progress, whatever it costs.
        """

    def upper_s(self, draft: Draft, shape: StepShape) -> float:
        """Return the seconds the chunker promises for such a step; by default it is a guess."""
        return draft.given.latency.predict_s(shape)


class SlackChunk(Chunker):
    """As long a step as is worth its risk.

    A longer step computes more prompt tokens a second and risks more late gaps. Both are
    counted in promises: ``claim_tokens`` prompt tokens make one, a late step breaks those of
    every stream whose gap it exceeds. The step length is the one with the best balance per
    second, by the measured distribution of the model's error; a newsvendor's choice, so there
    is no quantile to tune. The less prefill is pressed the less its tokens are worth: steps
    then stay short of any risk. If the KV cache fills up meanwhile, steps are shorter still:
    prompts computed long before they are due hold KV, and slow down the streams that would give
    some back.
    """

    def __init__(self) -> None:
        self._for: tuple[StepShape, float] | None = None
        self._target_s = math.inf

    def begin(self, draft: Draft) -> None:
        """Forget the length of the last plan's step."""
        self._for = None

    def step_limit_s(self, draft: Draft) -> float:
        """Return the tighter of: what promises are worth, decodes out of step."""
        given, shape, predict_s = draft.given, draft.shape, draft.given.latency.predict_s
        least_s = predict_s(shape.with_chunk(LEAST_CHUNK_TOKENS, 0))
        limit_s, lagging_s = self.promised_s(draft, least_s), given.lagging_due_s - given.ref_s
        return min(limit_s, lagging_s) if lagging_s > predict_s(shape) else limit_s

    def promised_s(self, draft: Draft, least_s: float) -> float:
        """Return the seconds a step may last for promises' sake, *least_s* at least."""
        return max(draft.given.price.limit_s(draft.given, draft.shape), least_s)

    def largest(
        self, draft: Draft, shape: StepShape, prefix: int, most: int, must_go_on: bool = False
    ) -> int:
        """Return the largest chunk within the step's worthwhile length."""
        room = draft.given.view.max_step_tokens - shape.num_tokens
        most = min(most, room)
        target_s = min(self.target_s(draft), draft.until_s)
        if target_s == math.inf:
            return max(most, 0)
        fits = largest_chunk(target_s, shape, prefix, most, draft.given.latency.predict_s)
        nobody_harmed = not draft.given.live.claim_gaps and not shape.num_prefill_tokens
        if must_go_on or nobody_harmed:
            # However slow the model says it is, go on.
            return max(fits, min(most, LEAST_CHUNK_TOKENS))
        return fits

    def target_s(self, draft: Draft) -> float:
        """Return the predicted length this step should have; see the class."""
        key = (draft.shape, draft.pressure)
        if self._for != key:
            self._for = key
            self._target_s = self._best_length_s(draft)
        return self._target_s

    def _best_length_s(self, draft: Draft) -> float:
        limit_s, given, shape = self.step_limit_s(draft), draft.given, draft.shape
        gaps_s, lagging, predict_s = (
            given.live.claim_gaps,
            given.lagging_due_s,
            given.latency.predict_s,
        )
        if limit_s == math.inf or not (gaps_s or lagging < math.inf):
            return limit_s
        decode_s = predict_s(shape)
        if draft.pressure < 1.0 and given.held_share > CROWDED_SHARE:
            least_s = predict_s(shape.with_chunk(LEAST_CHUNK_TOKENS, 0))
            limit_s = min(limit_s, max(CROWDED_STEPS * decode_s, least_s))
        kept_s = max(decode_s, given.price.least_gap_s)
        at_risk = [(gap_s, n) for gap_s, n in gaps_s.items() if gap_s > kept_s]
        if lagging < math.inf:
            at_risk.append((lagging - given.ref_s, 1))
        first_s = predict_s(shape.with_chunk(1, 0))
        probe_s = predict_s(shape.with_chunk(PROBE_TOKENS, 0)) - decode_s
        token_s = max(probe_s, 1e-9) / PROBE_TOKENS
        best_s, best = 0.0, -math.inf
        for part in range(1, NUM_LENGTHS + 1):
            length_s = limit_s * part / NUM_LENGTHS
            if length_s < first_s:
                continue
            broken = sum(n * given.latency.exceeds(True, gap_s / length_s) for gap_s, n in at_risk)
            won = draft.per_token * (length_s - decode_s) / token_s
            balance = (won - broken) / length_s
            if balance >= best:
                best_s, best = length_s, balance
        return best_s

    def upper_s(self, draft: Draft, shape: StepShape) -> float:
        """Return the seconds that 99 % of such steps stay within."""
        latency = draft.given.latency
        return latency.predict_s(shape) * latency.margin(shape.is_mixed, LATE_GAPS_FORGIVEN)
