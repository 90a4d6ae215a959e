"""An upper bound on attainment that no scheduler can pass, whatever it knows.

A linear program over fractions of requests. Whoever keeps a promise needs engine seconds within
certain windows of time, and KV tokens held for seconds within them; both are under-estimated,
so the program's optimum is at least what any schedule attains. The four steps of the proof:

1. A step lasts at least the sum, over the tokens it computes, of the least a token can cost:
   :class:`Prices` divides the fixed cost of a step by the most tokens that could share it. So
   each step's time can be handed out to its tokens and nobody gets more than the step lasted.
2. Prompt tokens are computed between arrival and the promised first token. Later tokens have
   due times only while no gap may be late: of a hundred gaps one may be late by any length.
3. A token emitted holds its request's whole context for at least the shortest step there is.
4. Of a step that straddles two windows each gets its share of time, tokens and KV.

What it ignores, and why it is loose: that requests are not divisible, that a step is either
short or cheap, that gaps of other streams limit prompts, that KV is held between steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from headway.errors import UserError
from headway.latency.model import StepShape
from headway.latency.profile import StepCost
from headway.oracle.fractions_kept import LeastKept, WindowDemand, most_kept
from headway.slo import Slo
from headway.workloads.schema import WorkloadRequest

PIECE_TOKENS = 50
"""Decode tokens that share a window; shorter pieces are tighter and cost more variables."""

SAFE = 1e-6
"""Added a request before rounding down: ten times the solver's tolerance."""

ROUNDING_S = 1e-9
"""What clocks that add up steps, and promises that were milliseconds once, may be off by."""


@dataclass(frozen=True, slots=True)
class Prices:
    """The least that tokens can cost on a machine. Seconds.

    Attributes:
        token_s: A token's share of the cheapest step: ``min over n of (fixed + n tokens) / n``.
        least_token_s: A token in a step that is paid for already.
        least_step_s: The shortest step that computes anything.
    """

    cost: StepCost
    max_step_tokens: int
    token_s: float
    least_token_s: float
    least_step_s: float

    @classmethod
    def of(cls, cost: StepCost, max_step_tokens: int) -> Prices:
        """Return the prices of a machine.

        The cost of n tokens over n is monotone on either side of the knee, so its minimum is
        at the knee or at the largest step.
        """
        sizes = {min(max(cost.knee_tokens, 1), max_step_tokens), max_step_tokens}
        share_s = min((cost.fixed_s + _tokens_s(cost, n)) / n for n in sizes)
        least_s = min(cost.per_token_s, cost.per_token_above_s)
        return cls(cost, max_step_tokens, share_s, least_s, cost.fixed_s + least_s)

    def prompt_s(self, num_tokens: int) -> float:
        """Return the engine seconds of a prompt, its attention included.

        However it is cut, the chunks' ``chunk x (prefix + chunk / 2)`` add up to half its square.
        """
        pairs_s = self.cost.per_pair_s * num_tokens**2 / 2
        return self.token_s * num_tokens + pairs_s + self.cost.per_prefill_s

    def alone_s(self, num_tokens: int) -> float:
        """Return the least seconds from arrival to the end of a prompt on an idle engine."""
        at_once_s = self.cost.fixed_s + self.least_token_s * num_tokens
        pairs_s = self.cost.per_pair_s * num_tokens**2 / 2
        return max(at_once_s, self.token_s * num_tokens) + pairs_s + self.cost.per_prefill_s

    def decode_s(self, context_tokens: int) -> float:
        """Return the engine seconds of one more token behind a context.

        Either it is decoded, or the request lost its KV and computes all of it again.
        """
        decoded_s = self.cost.per_context_s * context_tokens + self.cost.per_decode_s
        return self.token_s + min(decoded_s, self.token_s * context_tokens)

    def gap_s(self, context_tokens: int) -> float:
        """Return the least time between two tokens, the engine doing nothing else."""
        decoded_s = self.cost.step_s(StepShape(0, 0, 1, context_tokens))
        return min(decoded_s, self.alone_s(context_tokens + 1))


def bound(
    requests: Sequence[WorkloadRequest],
    slos: Mapping[str, Slo],
    cost: StepCost,
    kv_tokens: int,
    max_step_tokens: int,
    *,
    scale: float = 1.0,
) -> float:
    """Return a share of the requests that no scheduler can exceed (of attainment).

    Holds for one server without noise in its step times and without prefix caching; for steps
    in which everything costs what *cost* says; for speculative decoding it does not.

    Args:
        slos: The promise of each request, by id.
        cost: Seconds of a step.
        kv_tokens: Tokens the KV cache holds.
        max_step_tokens: Tokens the engine can compute in one step.
        scale: Every step lasts this times *cost*.

    Raises:
        UserError: There is no request, a size is not positive, or the program is too large.
    """
    found = _demands(requests, slos, cost, kv_tokens, max_step_tokens, scale)
    possible = [jobs for jobs in found if jobs is not None]
    if not possible:
        return 0.0
    num_kept = most_kept(len(possible), _due(possible), kv_tokens)
    return min(math.floor((num_kept or 0.0) + SAFE * len(possible)), len(possible)) / len(requests)


def can_keep(
    requests: Sequence[WorkloadRequest],
    slos: Mapping[str, Slo],
    targets: Mapping[str, float],
    cost: StepCost,
    kv_tokens: int,
    max_step_tokens: int,
    *,
    scale: float = 1.0,
) -> bool:
    """Return whether every class could keep its target; where not, no scheduler can.

    Holds for what :func:`bound` holds for, and is as loose.

    Args:
        targets: By class, the share of its requests that is to be kept.

    Raises:
        UserError: See :func:`bound`.
    """
    found = _demands(requests, slos, cost, kv_tokens, max_step_tokens, scale)
    classes = [slos[r.id].class_name for r in requests]
    possible = [i for i, jobs in enumerate(found) if jobs is not None]
    least = [
        LeastKept(
            [k for k, i in enumerate(possible) if classes[i] == name],
            (target - SAFE) * classes.count(name),
        )
        for name, target in targets.items()
    ]
    jobs = _due([found[i] or [] for i in possible])
    return most_kept(len(possible), jobs, kv_tokens, least) is not None


def _demands(
    requests: Sequence[WorkloadRequest],
    slos: Mapping[str, Slo],
    cost: StepCost,
    kv_tokens: int,
    max_step_tokens: int,
    scale: float,
) -> list[list[WindowDemand] | None]:
    """Return what each request takes, numbered among those that can be kept at all."""
    if not requests:
        raise UserError("A bound needs at least one request.")
    sizes = {"kv_tokens": kv_tokens, "max_step_tokens": max_step_tokens, "scale": scale}
    for name, value in sizes.items():
        if not value > 0:
            raise UserError(f"{name} must be greater than 0, not {value!r}.")
    prices = Prices.of(scaled(cost, scale), max_step_tokens)
    found: list[list[WindowDemand] | None] = []
    possible = 0
    for request in requests:
        jobs = _jobs(possible, request, slos[request.id], prices, kv_tokens)
        possible += jobs is not None
        found.append(jobs)
    return found


def _due(found: Sequence[Sequence[WindowDemand]]) -> list[WindowDemand]:
    """Return the parts that have to be done by some instant."""
    return [job for jobs in found for job in jobs if job.due_s < math.inf]


def _jobs(
    index: int,
    request: WorkloadRequest,
    slo: Slo,
    prices: Prices,
    kv_tokens: int,
) -> list[WindowDemand] | None:
    """Return what keeping the promise takes; ``None`` when even an idle server could not."""
    prompt, at_s = request.num_prompt_tokens, request.arrived_at_s
    most = min(request.max_output_tokens or math.inf, kv_tokens - prompt)
    # An answer that fills the whole cache is ended there, and counts as finished.
    num_gaps = int(min(request.num_output_tokens, most)) - 1
    if num_gaps < 0:
        return None
    alone_s, all_gaps_s = prices.alone_s(prompt), num_gaps * prices.least_step_s
    ends_s = at_s + (math.inf if slo.jct_s is None else slo.jct_s)
    first_s = min(at_s + (math.inf if slo.ttft_s is None else slo.ttft_s), ends_s - all_gaps_s)
    if at_s + alone_s > first_s + ROUNDING_S:
        return None
    gap_s, late_allowed = math.inf, num_gaps // 100
    if slo.tbt_s is not None:
        hopeless = sum(prices.gap_s(prompt + k) > slo.tbt_s + ROUNDING_S for k in range(num_gaps))
        if hopeless > late_allowed:
            return None
        gap_s = slo.tbt_s
    # A stream of over a hundred tokens may be put aside for as long as one likes.
    late_s = math.inf if late_allowed else 0.0
    jobs = [WindowDemand(index, at_s, first_s, prices.prompt_s(prompt), 0.0)]
    for start, count in _pieces(num_gaps):
        context = prompt + start
        begins_s = at_s + alone_s + start * prices.least_step_s
        left_s = (num_gaps - start - count) * prices.least_step_s
        due_s = min(first_s + (start + count) * gap_s + late_s, ends_s - left_s)
        work_s = count * prices.decode_s(context)
        held = count * (context + 1) * prices.least_step_s
        jobs.append(WindowDemand(index, begins_s, due_s, work_s, held))
    return jobs


def _pieces(num_gaps: int) -> Iterator[tuple[int, int]]:
    """Yield first gap and number of gaps of each piece."""
    for start in range(0, num_gaps, PIECE_TOKENS):
        yield start, min(PIECE_TOKENS, num_gaps - start)


def _tokens_s(cost: StepCost, num_tokens: int) -> float:
    above = max(num_tokens - cost.knee_tokens, 0)
    return (num_tokens - above) * cost.per_token_s + above * cost.per_token_above_s


def scaled(cost: StepCost, scale: float) -> StepCost:
    """Return *cost* with every second *scale* times as long."""
    return StepCost(
        cost.knee_tokens,
        *(
            scale * seconds
            for seconds in (
                cost.fixed_s,
                cost.per_token_s,
                cost.per_token_above_s,
                cost.per_context_s,
                cost.per_decode_s,
                cost.per_pair_s,
                cost.per_prefill_s,
            )
        ),
    )
