"""An upper bound on attainment that no scheduler can pass, whatever it knows.

A linear program over fractions of requests. Whoever keeps a promise needs engine seconds within
certain windows of time, and KV tokens held for seconds within them; both are under-estimated,
so the program's optimum is at least what any schedule attains. The four steps of the proof:

1. A step lasts at least the sum, over the tokens it computes, of the least a token can cost: its
   fixed cost is divided by the most tokens that could share it (:mod:`.least_demands`). So each
   step's time can be handed out to its tokens and nobody gets more than the step lasted.
2. Prompt tokens are computed between arrival and the promised first token. The k-th token after
   it comes at most k promised gaps later, where no gap may be late. Of a hundred gaps one may, up
   to the longest pause: then at most the allowed number of the k gaps last a pause in place of a
   promised gap, so it is due by as much later. Where a promise allows any pause, no token after
   the first has a due time; nor where the program were too large with them.
3. A token emitted holds its request's whole context for at least the shortest step there is.
4. Of a step that straddles two windows each gets its share of time, tokens and KV.

What it ignores, and why it is loose: that requests are not divisible, that a step is either
short or cheap, that gaps of other streams limit prompts, that KV is held between steps.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from headway.errors import UserError
from headway.latency.profile import StepCost
from headway.oracle.fractions_kept import LeastKept, WindowDemand, kept_fractions
from headway.oracle.least_demands import Prices, demands_of
from headway.slo import Slo
from headway.workloads.schema import WorkloadRequest

SAFE = 1e-6
"""Added a request before rounding down: ten times the solver's tolerance."""


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
    best = best_choice(requests, slos, cost, kv_tokens, max_step_tokens, scale=scale)
    return best.most / len(requests)


@dataclass(frozen=True, slots=True)
class BoundChoice:
    """The optimum of the program.

    Attributes:
        most: Requests that no scheduler exceeds.
        served: Ids of those it keeps at least half of: whom a scheduler would do well to serve.
    """

    most: int
    served: frozenset[str]


def best_choice(
    requests: Sequence[WorkloadRequest],
    slos: Mapping[str, Slo],
    cost: StepCost,
    kv_tokens: int,
    max_step_tokens: int,
    *,
    scale: float = 1.0,
) -> BoundChoice:
    """Return :func:`bound` as a number of requests, and which these are; see there."""
    found = _demands(requests, slos, cost, kv_tokens, max_step_tokens, scale)
    possible = [i for i, jobs in enumerate(found) if jobs is not None]
    if not possible:
        return BoundChoice(0, frozenset())
    kept = kept_fractions(len(possible), _due([found[i] or [] for i in possible]), kv_tokens)
    total = 0.0 if kept is None else float(kept.sum())
    most = min(math.floor(total + SAFE * len(possible)), len(possible))
    half = [] if kept is None else np.flatnonzero(kept >= 0.5).tolist()
    return BoundChoice(most, frozenset(requests[possible[k]].id for k in half))


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
    return kept_fractions(len(possible), jobs, kv_tokens, least) is not None


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
        jobs = demands_of(possible, request, slos[request.id], prices, kv_tokens)
        possible += jobs is not None
        found.append(jobs)
    return found


def _due(found: Sequence[Sequence[WindowDemand]]) -> list[WindowDemand]:
    """Return the parts that have to be done by some instant."""
    return [job for jobs in found for job in jobs if job.due_s < math.inf]


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
