"""``qoserve``: the largest chunk under the least slack, hybrid priority, eager relegation.

QoServe, first published as Niyama (arXiv 2503.22562 §3): each decode's tokens are due on a
schedule, so early tokens earn slack; the chunk is the largest whose step ends within the least
slack; prompts are ordered by due time + alpha * remaining prompt; a request that would be late is
relegated behind all others. Differs: the step time is Headway's online model at its 95 %
quantile, not a random forest; alpha defaults to what a prompt token costs now; relegation does
not tell tiers apart; a decode whose promise is already broken by its gaps is still paced.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from headway.kit.lengths import SlidingHistogram
from headway.kit.options import positive_s
from headway.kit.parts import Feasibility, Parts, Prioritizer
from headway.kit.simple import FreeBlocks, Youngest
from headway.latency.model import StepShape
from headway.policy.batch import InOrder
from headway.policy.chunk import Chunker, largest_chunk
from headway.policy.draft import Draft
from headway.policy.prices import LEAST_CHUNK_TOKENS
from headway.request import Request

MISS_RATE = 0.05
"""How often a step may outlast its prediction; the paper's predictor errs on the long side by a
margin we do not know."""

SATURATING_TOKENS = 2048
"""Chunk at which a prompt token costs what it costs in long prompts."""


def token_due_at_s(request: Request, step_s: float, num_ahead: int = 0) -> float:
    """Return when a request's next token is due on its promised schedule.

    Token *n* is due at arrival + TTFT + (n - 1) * TBT (QoServe §3), so tokens that came early
    earn slack for later ones. A completion time asks that the tokens still predicted follow
    at one a step.

    Args:
        step_s: Seconds of a step, for completion times.
        num_ahead: Tokens in flight that the request does not count yet.
    """
    slo, emitted = request.slo, request.num_output_tokens + num_ahead
    due_s = math.inf
    start_s = None if slo.ttft_s is None else request.arrived_at_s + slo.ttft_s
    if emitted == 0:
        due_s = math.inf if start_s is None else start_s
    elif slo.tbt_s is not None:
        start_s = request.first_token_at_s if start_s is None else start_s
        due_s = math.inf if start_s is None else start_s + emitted * slo.tbt_s
    if slo.jct_s is not None:
        after = max(request.predicted_output_tokens - emitted - 1, 0)
        due_s = min(due_s, request.arrived_at_s + slo.jct_s - after * step_s)
    return due_s


def prompt_token_s(draft: Draft) -> float:
    """Return the seconds one prompt token takes in a long prompt, nothing else running."""
    step = StepShape().with_chunk(SATURATING_TOKENS, 0)
    return (
        draft.given.latency.predict_s(step) - draft.given.latency.predict_s(StepShape())
    ) / SATURATING_TOKENS


class PaceChunk(Chunker):
    """The largest chunk under the least slack of the running decodes (QoServe §3.3).

    A decode that misses its due time even without a prompt beside it bounds nothing.
    """

    def __init__(self) -> None:
        self._is_new = True
        self._limit_s = math.inf

    def begin(self, draft: Draft) -> None:
        """Forget the last plan."""
        self._is_new = True

    def step_limit_s(self, draft: Draft) -> float:
        """Return the predicted seconds a step with prompts may take; ``inf`` without a pace."""
        if self._is_new:
            self._is_new, self._limit_s = False, self._length_s(draft, self._slacks_s(draft))
        return self._limit_s

    def largest(
        self,
        draft: Draft,
        shape: StepShape,
        prefix: int,
        most: int,
        must_go_on: bool = False,
    ) -> int:
        """Return the largest chunk within the limit; see the class."""
        room = draft.given.view.max_step_tokens - shape.num_tokens
        most = max(min(most, room), 0)
        limit_s = self.step_limit_s(draft)
        if limit_s == math.inf:
            return most
        fits = largest_chunk(limit_s, shape, prefix, most, draft.given.latency.predict_s)
        return max(fits, min(most, LEAST_CHUNK_TOKENS)) if must_go_on else fits

    def upper_s(self, draft: Draft, shape: StepShape) -> float:
        """Return the seconds such a step stays within, but for the miss rate."""
        margin = draft.given.latency.margin(shape.is_mixed, MISS_RATE)
        return draft.given.latency.predict_s(shape) * margin

    def _slacks_s(self, draft: Draft) -> list[tuple[float, float]]:
        """Return slack and promised gap of each decode that can still be on time."""
        decode_s = draft.given.latency.predict_s(draft.shape)
        ahead = draft.given.view.num_steps_in_flight
        slacks: list[tuple[float, float]] = []
        for request in draft.given.live.decoding.values():
            slack_s = token_due_at_s(request, draft.given.step_s, ahead) - draft.given.ref_s
            if decode_s < slack_s < math.inf:
                gap_s = request.slo.tbt_s
                slacks.append((slack_s, draft.given.step_s if gap_s is None else gap_s))
        return slacks

    def _length_s(self, draft: Draft, slacks_s: list[tuple[float, float]]) -> float:
        """Return the predicted length of the step; see the class."""
        least_s = min((slack_s for slack_s, _ in slacks_s), default=math.inf)
        return least_s / draft.given.latency.margin(True, MISS_RATE)


class Hybrid(Prioritizer):
    """Due time plus *alpha* times the prompt still to compute (QoServe §3.4).

    With 0 it is earliest due date, with much it is shortest remaining prompt first.
    Relegated requests follow by arrival, prompts in progress before new ones.

    Args:
        alpha_s: Seconds a prompt token counts; ``None`` takes what it costs now.
    """

    def __init__(self, alpha_s: float | None = None) -> None:
        self._alpha_s = alpha_s

    def candidates(self, draft: Draft) -> Iterator[Request]:
        """Yield who can be on time by priority, then the rest."""
        yield from (r for _, _, r in sorted(self.ranked(draft)) if not _is_aside(draft, r))
        prompts = draft.given.live.prefilling.values()
        yield from [r for r in prompts if _is_aside(draft, r)]
        aside = [r for r in draft.given.live.claims if _is_aside(draft, r)]
        yield from sorted([*aside, *draft.given.live.others], key=lambda r: r.order)

    def ranked(self, draft: Draft) -> list[tuple[float, int, Request]]:
        """Return (priority, order, request) of the claims that wait or prefill, unsorted."""
        alpha_s = prompt_token_s(draft) if self._alpha_s is None else self._alpha_s
        claims = [r for r in draft.given.live.prefilling.values() if r.has_claim]
        return [
            (r.due_at_s + alpha_s * r.remaining_prefill_tokens, r.order, r)
            for r in (*claims, *draft.given.live.claims)
        ]


def _is_aside(draft: Draft, request: Request) -> bool:
    return not request.has_claim or request.request_id in draft.set_aside


class EagerRelegation(Feasibility):
    """Relegate whoever would be late if served in priority order (QoServe §3.5).

    In order of priority: a request whose first token would come after its due time, behind
    those before it, is relegated, and its work no longer counts against the next.
    """

    def __init__(self, priority: Hybrid) -> None:
        self._priority = priority

    def set_aside(self, draft: Draft, chunker: Chunker) -> tuple[set[str], float]:
        """Return the relegated; the pressure is 1 when there are any."""
        token_s = prompt_token_s(draft)
        ready_s = draft.given.ref_s
        late: set[str] = set()
        for _, _, request in sorted(self._priority.ranked(draft)):
            work_s = request.remaining_prefill_tokens * token_s
            if ready_s + work_s > request.due_at_s:
                late.add(request.request_id)
            else:
                ready_s += work_s
        return late, 1.0 if late else 0.0


def parts(alpha_s: float | None = None) -> Parts:
    """Deadlines weighed against prompts left, and whoever cannot be on time comes last.

    Args:
        alpha_s: What a remaining prompt token adds to the due time; ``None`` takes what it costs.
    """
    if alpha_s is not None:
        positive_s("alpha_s", alpha_s)
    priority = Hybrid(alpha_s)
    return Parts(
        predictor=SlidingHistogram(),
        feasibility=EagerRelegation(priority),
        prioritizer=priority,
        chunker=PaceChunk(),
        gate=FreeBlocks(),
        batcher=InOrder(),
        preemptor=Youngest(),
        everyone_decodes=True,
    )
