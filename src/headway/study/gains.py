"""What a policy gains over rivals at each load of a table, and where it gains the most."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from headway.study.highest_rate import crossing
from headway.study.paper_grid import ATTAINMENT, Figure, Row

Unit = Literal["factor", "points", "percent"]

KEPT_AT_CAPACITY = 0.9

Load = tuple[str, float | None]
"""A workload and its rate in requests per second; a capacity is of all rates, ``None``."""


@dataclass(frozen=True, slots=True)
class Score:
    """A figure of one policy at one load: its mean over seeds, and of each where it is known.

    ``is_bound``: it is at least the mean, because the table does not go further.
    """

    mean: float
    per_seed: tuple[float | None, ...] = ()
    is_bound: bool = False


@dataclass(frozen=True, slots=True)
class Gain:
    """A gain over one rival at one load, in the unit asked for.

    Attributes:
        gain: From the means over seeds.
        low: The least of the seeds, each against the same rival; ``None`` with fewer than two.
        high: The most of them.
        is_bound: It may be more: ours was not played far enough.
    """

    gain: float
    low: float | None
    high: float | None
    rival: str
    workload: str
    rate_rps: float | None
    is_bound: bool = False


def gain_of(unit: Unit, ours: float, theirs: float, less_is_better: bool = False) -> float | None:
    """Return how much better *ours* is: times as good, points, or per cent more.

    ``None`` for a factor or per cent of nothing.
    """
    if unit == "points":
        return 100.0 * ((theirs - ours) if less_is_better else (ours - theirs))
    above, below = (theirs, ours) if less_is_better else (ours, theirs)
    if below <= 0.0:
        return None
    return above / below if unit == "factor" else 100.0 * (above / below - 1.0)


def largest(
    rows: Sequence[Row],
    figure: Figure | None,
    unit: Unit,
    ours: str,
    rivals: Sequence[str],
    *,
    over: Literal["strongest", "weakest"] = "strongest",
    at: Literal["best", "worst"] = "best",
) -> Gain | None:
    """Return the gain of *ours* at the load where it is largest.

    Args:
        figure: What is compared; ``None`` is the capacity, one for each workload.
        over: Which of the *rivals* at each load; those without the figure do not count.
        at: ``worst`` takes the load with the least gain instead.

    Returns:
        ``None`` where no load has the figure of both.
    """
    less_is_better = figure is not None and figure.less_is_better
    scores = capacities(rows) if figure is None else _scores(rows, figure)
    take_least = less_is_better == (over == "strongest")
    found: list[Gain] = []
    for load, here in scores.items():
        others = [name for name in rivals if name in here]
        if ours not in here or not others:
            continue
        rival = (min if take_least else max)(others, key=lambda name: here[name].mean)
        gain = _gain(unit, less_is_better, here[ours], here[rival], rival, load)
        if gain is not None:
            found.append(gain)
    pick = max if at == "best" else min
    return pick(found, key=lambda gain: gain.gain, default=None)


def _gain(
    unit: Unit, less_is_better: bool, ours: Score, theirs: Score, rival: str, load: Load
) -> Gain | None:
    gain = gain_of(unit, ours.mean, theirs.mean, less_is_better)
    if gain is None or theirs.is_bound:
        return None
    seeds = [
        one
        for mine, other in zip(ours.per_seed, theirs.per_seed, strict=False)
        if mine is not None
        and other is not None
        and (one := gain_of(unit, mine, other, less_is_better)) is not None
    ]
    low, high = (min(seeds), max(seeds)) if len(seeds) > 1 else (None, None)
    return Gain(gain, low, high, rival, load[0], load[1], ours.is_bound)


def _scores(rows: Iterable[Row], figure: Figure) -> dict[Load, dict[str, Score]]:
    found: dict[Load, dict[str, Score]] = {}
    for row in rows:
        mean = row.get(figure.label)
        if mean is not None:
            per_seed = row.get("per_seed", {}).get(figure.label, ())
            if figure is ATTAINMENT:
                per_seed = row["attainment_per_seed"]
            here = found.setdefault((row["workload"], row["rate_rps"]), {})
            here[row["policy"]] = Score(mean, tuple(per_seed))
    return found


def capacities(rows: Iterable[Row]) -> dict[Load, dict[str, Score]]:
    """Return the rate in requests per second with 90 % kept, by workload and policy.

    From the mean over seeds, and of each seed.
    """
    by_policy: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.get(ATTAINMENT.label) is not None:
            by_policy.setdefault((row["workload"], row["policy"]), []).append(row)
    found: dict[Load, dict[str, Score]] = {}
    for (workload, policy), theirs in by_policy.items():
        points = [(row["rate_rps"], row[ATTAINMENT.label]) for row in theirs]
        rates = [rate for rate, _ in points]
        seeds = zip(*(row["attainment_per_seed"] for row in theirs), strict=False)
        per_seed = [crossing(zip(rates, kept, strict=True), KEPT_AT_CAPACITY) for kept in seeds]
        is_bound = min(kept for _, kept in points) >= KEPT_AT_CAPACITY
        found.setdefault((workload, None), {})[policy] = Score(
            crossing(points, KEPT_AT_CAPACITY), tuple(per_seed), is_bound
        )
    return found
