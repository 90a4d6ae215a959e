"""The linear program of the bound: fractions of requests, done in the spans between instants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog
from scipy.sparse import coo_array, vstack

from headway.errors import UserError

MOST_INSTANTS = 400
"""Ends of windows told apart. With more, windows are widened to a grid, which only loosens."""

MOST_VARIABLES = 250_000
"""Size of the program that takes the solver some 20 s on one core: 10,000 requests of
the workload ``mixed`` at 96/s, or 600 at 40/s where every other one has ten seconds to complete."""


INFEASIBLE = 2
"""What the solver says where no fractions satisfy everything."""


@dataclass(frozen=True, slots=True)
class WindowDemand:
    """A part of a request: engine seconds and KV token-seconds within a window.

    One that *may_be_left_out* is, where the program would be too large: that only loosens.
    """

    request: int
    begins_s: float
    due_s: float
    work_s: float
    kv_token_s: float
    may_be_left_out: bool = False


@dataclass(frozen=True, slots=True)
class LeastKept:
    """Of these requests, at least so many are kept; fractions count."""

    requests: Sequence[int]
    num_kept: float


Fractions = np.ndarray[tuple[int], np.dtype[np.float64]]


def kept_fractions(
    num_requests: int,
    jobs: Sequence[WindowDemand],
    kv_tokens: int,
    least: Sequence[LeastKept] = (),
) -> Fractions | None:
    """Return how much of each request is kept at the optimum: the most, their jobs within windows.

    ``None`` where nothing keeps as many of everybody as *least* asks for.

    Variables: the fraction of each request that is kept, then the fraction of each job done in
    each span of time between two instants. A kept fraction needs as much of each of its jobs;
    no span gives more engine seconds than it has, nor more KV than the cache holds for as long.
    """
    if any(one.num_kept > len(one.requests) for one in least):
        return None
    if not jobs:
        return np.ones(num_requests)
    instants = _instants(jobs)
    spans_s = np.diff(instants)
    first = np.searchsorted(instants, [j.begins_s for j in jobs], side="right") - 1
    last = np.searchsorted(instants, [j.due_s for j in jobs], side="left")
    counts = last - first
    num_parts = int(counts.sum())
    if num_parts > MOST_VARIABLES and any(j.may_be_left_out for j in jobs):
        needed = [j for j in jobs if not j.may_be_left_out]
        return kept_fractions(num_requests, needed, kv_tokens, least)
    _check_size(num_requests, num_parts)
    of_job = np.repeat(np.arange(len(jobs)), counts)
    span = np.arange(num_parts) - (np.cumsum(counts) - counts - first)[of_job]
    part = num_requests + np.arange(num_parts)
    work = np.array([j.work_s for j in jobs])[of_job]
    held = np.array([j.kv_token_s for j in jobs])[of_job] / kv_tokens
    owner = np.array([j.request for j in jobs])
    num_variables = num_requests + num_parts
    needs = coo_array(
        (
            np.concatenate([np.ones(num_parts), -np.ones(len(jobs))]),
            (np.concatenate([of_job, np.arange(len(jobs))]), np.concatenate([part, owner])),
        ),
        shape=(len(jobs), num_variables),
    )
    limits = coo_array(
        (
            np.concatenate([work, held]),
            (np.concatenate([span, span + len(spans_s)]), np.concatenate([part, part])),
        ),
        shape=(2 * len(spans_s), num_variables),
    )
    return _solved(num_requests, needs, limits, spans_s, least)


def _solved(
    num_requests: int,
    needs: coo_array,
    limits: coo_array,
    spans_s: Fractions,
    least: Sequence[LeastKept],
) -> Fractions | None:
    """Return the fractions at the optimum; see :func:`kept_fractions`.

    Args:
        needs: Rows that are 0: a job's parts less the fraction of its request.
        limits: Rows of engine seconds, then of KV, each at most its span.
    """
    num_variables = needs.shape[1]
    gain = np.zeros(num_variables)
    gain[:num_requests] = -1.0
    solved = linprog(
        gain,
        A_ub=vstack([limits, _asked(least, num_variables)]).tocsr(),
        b_ub=np.concatenate([spans_s, spans_s, [-one.num_kept for one in least]]),
        A_eq=needs.tocsr(),
        b_eq=np.zeros(needs.shape[0]),
        bounds=(0.0, 1.0),
        method="highs",
    )
    if solved.status == INFEASIBLE:
        return None
    # Not solved (time, numbers): everybody is still a bound.
    return solved.x[:num_requests] if solved.status == 0 else np.ones(num_requests)


def _check_size(num_requests: int, num_parts: int) -> None:
    if num_parts > MOST_VARIABLES:
        fits = max(num_requests * MOST_VARIABLES // num_parts, 1)
        raise UserError(
            f"The bound on {num_requests} requests is a linear program of {num_parts} variables,"
            f" which takes longer than the 20 s of {MOST_VARIABLES}; about {fits} requests fit."
        )


def _asked(least: Sequence[LeastKept], num_variables: int) -> coo_array:
    """Return the rows that say of how many requests together the kept fractions are counted."""
    sizes = [len(one.requests) for one in least]
    columns = np.array([i for one in least for i in one.requests], dtype=int)
    rows = np.repeat(np.arange(len(least)), sizes)
    return coo_array((-np.ones(sum(sizes)), (rows, columns)), shape=(len(least), num_variables))


def _instants(jobs: Sequence[WindowDemand]) -> Fractions:
    """Return the ends of windows, at most :data:`MOST_INSTANTS` of them, the outermost included."""
    found = np.unique([j.begins_s for j in jobs] + [j.due_s for j in jobs])
    if len(found) <= MOST_INSTANTS:
        return found
    chosen = np.linspace(0, len(found) - 1, MOST_INSTANTS).round().astype(int)
    return np.unique(found[chosen])
