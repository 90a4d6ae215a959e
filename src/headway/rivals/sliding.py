"""``sliding``: chunks planned two steps ahead, in the style of SlidingServe.

SlidingServe (arXiv 2606.05933): SlidingChunker weighs this iteration's chunk together with the
next one's; a lexicographic key (protected, urgent, remaining work) orders prompts; a dynamic
programme picks whom to protect when first tokens would be late. Only its abstract and reviews
were available to us: the objective (prompt tokens a second over the two steps), the search
(sixteen shares of the greedy chunk, where the paper searches ternarily) and the bounds of
urgency are our reading.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from headway.kit.lengths import SlidingHistogram
from headway.kit.parts import Feasibility, Parts, Prioritizer
from headway.kit.simple import FreeBlocks, Youngest
from headway.latency.model import StepShape
from headway.policy.admit import DueWork
from headway.policy.batch import InOrder
from headway.policy.chunk import Chunker, StepTime, largest_chunk
from headway.policy.draft import Draft
from headway.request import Request
from headway.rivals.qoserve import MISS_RATE, PaceChunk, prompt_token_s

SHARES = tuple(i / 16 for i in range(1, 17))
"""First chunks weighed against each other, as shares of the greedy one."""

GRID = 256
"""Cells the knapsack divides the time until the last due instant into."""

MOST_JOBS = 64
"""Claims the knapsack considers, the earliest due."""


def best_first_chunk(
    first_s: float,
    both_s: float,
    shape: StepShape,
    backlog_tokens: int,
    most_tokens: int,
    step_time_s: StepTime,
) -> int:
    """Return the first of two chunks that together compute the most prompt tokens a second.

    Args:
        first_s: Seconds the first step may take; *both_s* the two together.
        shape: The decodes of either step.
        backlog_tokens: Prompt tokens there are; *most_tokens* fit one step.

    Returns:
        Tokens; at least a sixteenth of the greedy chunk, so that prompts go on.
    """
    greedy = largest_chunk(first_s, shape, 0, min(backlog_tokens, most_tokens), step_time_s)
    best, best_per_s = greedy, -math.inf
    for chunk in sorted({max(round(share * greedy), 1) for share in SHARES}, reverse=True):
        if chunk > greedy:
            continue
        length_s = step_time_s(shape.with_chunk(chunk, 0))
        rest = min(backlog_tokens - chunk, most_tokens)
        after = largest_chunk(both_s - length_s, shape, chunk, rest, step_time_s)
        both = length_s + step_time_s(shape.with_chunk(after, chunk))
        if (chunk + after) / both > best_per_s * (1 + 1e-9):
            best, best_per_s = chunk, (chunk + after) / both
    return best


class TwoSteps(PaceChunk):
    """The step's length is that of the first of the two best chunks."""

    def _length_s(self, draft: Draft, slacks_s: list[tuple[float, float]]) -> float:
        first_s = super()._length_s(draft, slacks_s)
        if first_s == math.inf:
            return first_s
        both_s = min(slack_s + gap_s for slack_s, gap_s in slacks_s)
        both_s /= draft.given.latency.margin(True, MISS_RATE)
        most = draft.given.view.max_step_tokens - draft.shape.num_decodes
        predict_s = draft.given.latency.predict_s
        backlog = _backlog_tokens(draft, 2 * most)
        chunk = best_first_chunk(first_s, both_s, draft.shape, backlog, most, predict_s)
        return predict_s(draft.shape.with_chunk(chunk, 0)) if chunk > 0 else first_s


def _backlog_tokens(draft: Draft, enough_tokens: int) -> int:
    """Return the prompt tokens waiting or in progress, counted up to *enough_tokens*."""
    total = 0
    for queue in (
        draft.given.live.prefilling.values(),
        draft.given.live.claims,
        draft.given.live.others,
    ):
        for request in queue:
            total += request.remaining_prefill_tokens
            if total >= enough_tokens:
                return enough_tokens
    return total


class Protected(Prioritizer):
    """Protected claims first, of these the urgent, of these the least remaining work.

    Protected: chosen by the knapsack. Urgent: its slack is below two of the recent steps.
    """

    def candidates(self, draft: Draft) -> Iterator[Request]:
        """Yield prompts in progress and waiting requests by the key of the class."""
        token_s = prompt_token_s(draft)

        def key(request: Request) -> tuple[bool, bool, int, int]:
            aside = not request.has_claim or request.request_id in draft.set_aside
            left = request.remaining_prefill_tokens
            slack_s = request.due_at_s - draft.given.ref_s - left * token_s
            urgent = not aside and slack_s < 2.0 * draft.given.step_s
            return (aside, not urgent, request.order if aside else left, request.order)

        live = draft.given.live
        yield from sorted([*live.prefilling.values(), *live.claims, *live.others], key=key)


def most_weight_on_time(jobs: Sequence[DueWork], grid: int = GRID) -> set[str]:
    """Return the jobs to serve so that the most weight ends on time, one after another.

    Lawler and Moore (1969): in order of due times, a 0/1 knapsack over the time used so far.
    Work is rounded up and due times down to a *grid*-th of the last due instant, so whatever
    is chosen does fit.
    """
    due = [j for j in sorted(jobs, key=lambda j: (j.due_s, j.key)) if j.work_s <= j.due_s]
    if not due:
        return set()
    cell_s = max(due[-1].due_s / grid, 1e-9)
    best = np.full(grid + 1, -np.inf)
    best[0] = 0.0
    took: list[np.ndarray[tuple[int], np.dtype[np.bool_]]] = []
    for job in due:
        work = math.ceil(job.work_s / cell_s - 1e-9)
        last = min(math.floor(job.due_s / cell_s + 1e-9), grid)
        with_it = np.full(grid + 1, -np.inf)
        if work <= last:
            with_it[work : last + 1] = best[: last + 1 - work] + job.weight
        took.append(with_it > best)
        best = np.maximum(best, with_it)
    cell, chosen = int(np.argmax(best)), set()
    for job, took_it in zip(reversed(due), reversed(took), strict=True):
        if took_it[cell]:
            chosen.add(job.key)
            cell -= math.ceil(job.work_s / cell_s - 1e-9)
    return chosen


class Knapsack(Feasibility):
    """When not every claim's first token can be on time, protect the heaviest set that can."""

    def set_aside(self, draft: Draft, chunker: Chunker) -> tuple[set[str], float]:
        """Return the claims left unprotected; the pressure is 1 when there are any."""
        token_s = prompt_token_s(draft)
        claims = [r for r in draft.given.live.prefilling.values() if r.has_claim]
        claims = sorted([*claims, *draft.given.live.claims], key=lambda r: (r.due_at_s, r.order))
        jobs = [
            DueWork(
                r.request_id,
                r.due_at_s - draft.given.ref_s,
                r.remaining_prefill_tokens * token_s,
                r.slo.weight,
            )
            for r in claims
        ]
        total_s = 0.0
        for job in jobs:
            total_s += job.work_s
            if total_s > job.due_s:
                break
        else:
            return set(), 0.0
        considered = [j for j in jobs if j.due_s < math.inf][:MOST_JOBS]
        late = {j.key for j in considered} - most_weight_on_time(considered)
        return late, 1.0


def parts() -> Parts:
    """The claims worth most are protected when not all can be on time; no options."""
    return Parts(
        predictor=SlidingHistogram(),
        feasibility=Knapsack(),
        prioritizer=Protected(),
        chunker=TwoSteps(),
        gate=FreeBlocks(),
        batcher=InOrder(),
        preemptor=Youngest(),
        everyone_decodes=True,
    )
