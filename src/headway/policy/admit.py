"""Which promises can still be kept together, and which request fits the KV cache."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from headway.policy.appointments import WORTH
from headway.policy.chunk import PROBE_TOKENS, Chunker
from headway.policy.draft import Draft
from headway.policy.inputs import Inputs
from headway.policy.prices import LEAST_CHUNK_TOKENS
from headway.request import Request

CLAIMS_A_STEP = 64
"""Waiting claims up to which every step decides which fit together; with more, fewer steps do. With
1,000 a decision takes 2 ms, in one of 16 steps (LOG.md, *Agents, turns and Mooncake*); varied in
experiments/constants. Larger: plans take longer; smaller: a claim that came counts late."""


@dataclass(frozen=True, slots=True)
class DueWork:
    """One claim as the feasibility test sees it: work to do before an instant."""

    key: str
    due_s: float
    work_s: float
    weight: float = 1.0
    gives_way: bool = False
    order: int = 0


def largest_feasible(
    jobs: Iterable[DueWork], turns: Iterable[tuple[float, float]] = ()
) -> tuple[set[str], float]:
    """Return the jobs to set aside so that the most others end on time.

    Moore (1968) with Hodgson's proof: in order of due times, whenever the running total is
    late, drop the longest job so far. Optimal for equal weights. Differs: with weights the
    job with the most work *per weight* is dropped, a heuristic. And who gives way is dropped
    before any other: of the others the same are kept as if they were alone.

    Args:
        turns: Ranks of arrival and work of those who go before every claim that came after them.

    Returns:
        Keys set aside, and the pressure: the largest share of the time until a due instant
        that work due by then takes (1 at most when it fits).
    """
    total_s = 0.0
    pressure = 0.0
    ahead = deque(turns)
    kept: list[tuple[bool, float, str, float]] = []
    dropped: set[str] = set()
    for job in sorted(jobs, key=lambda j: (j.due_s, j.key)):
        while ahead and ahead[0][0] < job.order:
            total_s += ahead.popleft()[1]
        total_s += job.work_s
        per_weight = -job.work_s / job.weight
        heapq.heappush(kept, (not job.gives_way, per_weight, job.key, job.work_s))
        while total_s > job.due_s and kept:
            _, _, key, work_s = heapq.heappop(kept)
            total_s -= work_s
            dropped.add(key)
        if job.due_s > 0:
            pressure = max(pressure, total_s / job.due_s)
    return dropped, 1.0 if dropped else pressure


class MooreHodgson:
    """The largest set of claims whose first tokens can all be on time, by prefill time.

    The work of a claim is its remaining prompt at the speed the running decodes leave
    (:class:`PrefillTime`).
    Re-decided when requests came, moved or left; with many waiting only every
    ``len /`` :data:`CLAIMS_A_STEP` steps, so the cost a step stays bounded.
    """

    def __init__(self) -> None:
        self._last: tuple[set[str], float] = (set(), 0.0)
        self._decided_at_step = -1

    def set_aside(self, draft: Draft, chunker: Chunker) -> tuple[set[str], float]:
        """Return the claims to set aside; see the class."""
        given, claims = draft.given, draft.given.live.claims
        if (given.step - self._decided_at_step) * CLAIMS_A_STEP >= len(claims):
            draft.pressure = 1.0  # What fits is decided at the speed the server has when pressed.
            prefill = prefill_time(draft, chunker)
            turns = ((r.order, prefill.work_s(r)) for r in given.fair)
            dropped, pressure = largest_feasible(claim_work(given, prefill), turns)
            dropped.update(r.request_id for r in claims if given.price.is_dear(r))
            self._last = dropped, pressure
            self._decided_at_step = given.step
        return self._last


@dataclass(frozen=True, slots=True)
class PrefillTime:
    """What prompt tokens take beside the running decodes, cut into steps of one size.

    Attributes:
        num_tokens: Prompt tokens of such a step.
        step_s: Seconds of such a step.
        token_s: Seconds a token, at the beginning of a prompt.
        pair_s: Seconds a token takes longer for each token before it in its prompt.
    """

    num_tokens: int
    step_s: float
    token_s: float
    pair_s: float

    def work_s(self, request: Request, num_ready_tokens: int | None = None) -> float:
        """Return the seconds the rest of a prompt takes; fewer if more of it is ready by then."""
        ready = request.num_ready_tokens if num_ready_tokens is None else num_ready_tokens
        num_tokens = request.prefill_target_tokens - ready
        if num_tokens <= 0:
            return 0.0
        # On average half of these tokens are before each; those of one step are in token_s.
        before = request.prefill_target_tokens - num_tokens
        before += max(num_tokens - self.num_tokens, 0) // 2
        return num_tokens * (self.token_s + self.pair_s * before)


def claim_work(
    given: Inputs, prefill: PrefillTime, waiting: Iterable[Request] | None = None
) -> list[DueWork]:
    """Return one job a claim that waits or whose prompt is in progress.

    Its work ends anywhere in a step, and its token comes out when the step ends.

    What several have in common with a prompt in progress is the work of the first of them.

    Args:
        waiting: Of the claims that wait those that are asked about, by default all.
    """
    running = [r for r in given.live.prefilling.values() if r.has_claim]
    shared = given.live.shared_tokens()
    return [
        DueWork(
            r.request_id,
            r.due_at_s - given.ref_s - prefill.step_s / 2,
            prefill.work_s(r, shared.get(r.request_id, r.num_ready_tokens)),
            given.worth(r) * (WORTH if r.is_expected else 1.0),
            r.slo.tenant in given.heavy,
            r.order,
        )
        for r in (*running, *(given.live.claims if waiting is None else waiting))
    ]


def prefill_time(draft: Draft, chunker: Chunker) -> PrefillTime:
    """Return what prompt tokens take now."""
    given, shape = draft.given, draft.shape
    most = chunker.largest(draft, shape, 0, min(given.view.max_step_tokens, PROBE_TOKENS))
    if most <= 0:  # One step without room for a prompt says nothing of those that follow.
        most = min(given.view.max_step_tokens, LEAST_CHUNK_TOKENS)
    step_s = given.latency.predict_s(shape.with_chunk(most, 0))
    pair_s = (given.latency.predict_s(shape.with_chunk(most, most)) - step_s) / most / most
    return PrefillTime(most, min(step_s, given.step_s), step_s / most, pair_s)


class Gate(Protocol):
    """Decides whether a waiting request may start now."""

    def fits(self, draft: Draft, request: Request) -> bool:
        """Return whether the future has room; free blocks are the scheduler's own check."""

    def admitted(self, draft: Draft, request: Request) -> None:
        """Hear that *request* fits and starts in this plan; most gates need not know."""
        return  # An empty body would make it abstract to mypy.

    def begin(self, draft: Draft) -> None:
        """Forget the last plan; most gates remember nothing."""
        return
