"""The highest rate at which enough promises are kept, with how sure that is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from scipy import stats

AttainmentAt = Callable[[float], float]
"""Attainment (0 to 1) of one seed at a rate in requests per second."""

TOLERANCE = 0.02
"""Relative width at which the bisection stops, unless told otherwise."""

LEAST_RPS, MOST_RPS = 1e-3, 1e5


@dataclass(frozen=True, slots=True)
class Capacity:
    """Requests per second at which *target* attainment just holds, over seeds.

    ``low`` and ``high`` are the 95 % confidence interval of the mean by Student's t; with one
    seed there is none and both are ``None``.
    """

    target: float
    mean_rps: float
    low_rps: float | None
    high_rps: float | None
    per_seed_rps: tuple[float, ...]


def highest_rate(
    attainment_at: AttainmentAt, target: float, start_rps: float, tolerance: float = TOLERANCE
) -> float:
    """Return the highest rate whose attainment is at least *target*, within *tolerance* of it.

    Doubles or halves from *start_rps* until the target lies between two rates, then bisects
    their logarithms. Attainment need not fall smoothly; one crossing is found. 0 when not even
    :data:`LEAST_RPS` is kept.
    """
    low = high = start_rps
    if attainment_at(start_rps) >= target:
        while high < MOST_RPS:
            low, high = high, 2 * high
            if attainment_at(high) < target:
                break
        else:
            return low
    else:
        while True:
            low, high = low / 2, low
            if low < LEAST_RPS:
                return 0.0
            if attainment_at(low) >= target:
                break
    while high / low > 1 + tolerance:
        middle = math.sqrt(low * high)
        if attainment_at(middle) >= target:
            low = middle
        else:
            high = middle
    return low


def over_seeds(per_seed_rps: Sequence[float], target: float) -> Capacity:
    """Return the mean over seeds and its 95 % confidence interval."""
    count = len(per_seed_rps)
    mean = sum(per_seed_rps) / count
    low = high = None
    if count > 1:
        variance = sum((value - mean) ** 2 for value in per_seed_rps) / (count - 1)
        half = float(stats.t.ppf(0.975, count - 1)) * math.sqrt(variance / count)
        low, high = max(mean - half, 0.0), mean + half
    return Capacity(target, mean, low, high, tuple(per_seed_rps))


def crossing(points: Iterable[tuple[float, float]], target: float = 0.9) -> float:
    """Return the load at which attainment falls below *target*, linear between those played.

    0 when the lowest load already misses it; the highest when all keep it, a lower bound then.

    Args:
        points: Load (in any unit) and attainment (0 to 1), in any order.
    """
    played = sorted(points)
    if not played or played[0][1] < target:
        return 0.0
    for (load, kept), (next_load, next_kept) in pairwise(played):
        if next_kept < target:
            return load + (kept - target) / (kept - next_kept) * (next_load - load)
    return played[-1][0]
