"""Runs put into lines: one group a policy (and setting), one point a load, seeds as a band."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from headway.web.material import SETTINGS, KeptFile, Run, band, load_rps
from headway.web.theme import colours

Figure = Callable[[Run], float | None]


class Point(NamedTuple):
    """One figure at one load: mean, least and greatest over the seeds that have it."""

    load_rps: float
    mean: float
    low: float
    high: float
    num_seeds: int


@dataclass(frozen=True, slots=True)
class Group:
    """The runs drawn as one line: ``runs`` are plain, ``off`` had their step times scaled."""

    label: str
    colour: str
    runs: Sequence[Run]
    off: Sequence[Run]


class Labels:
    """Names a run by its policy, and by each setting in which the runs of the report differ.

    A run that does not name a setting is no different from those that do. Policy settings (the
    options of ours, the flags of stock vLLM) are part of the name only where one policy has runs
    with several of them at one load and seed: a baseline tuned for each load stays one line.
    """

    def __init__(self, runs: Iterable[Run]) -> None:
        runs = list(runs)
        known = {name: {str(r[name]) for r in runs if r.get(name) is not None} for name in SETTINGS}
        self._differing = [name for name in SETTINGS if len(known[name]) > 1]
        at_once: dict[tuple[object, ...], set[str]] = {}
        for run in runs:
            where = (self._base(run), load_rps(run), run.get("seed"), band(run))
            at_once.setdefault(where, set()).add(str(run.get("settings")))
        self._several = {where[0] for where, found in at_once.items() if len(found) > 1}

    def of(self, run: Run) -> str:
        """Return the label of *run*."""
        base = self._base(run)
        given = run.get("settings")
        if base not in self._several or given in (None, "{}", "(defaults)"):
            return base
        return f"{base} {given}"

    def _base(self, run: Run) -> str:
        settings = [str(run[n]) for n in self._differing if run.get(n) is not None]
        return " · ".join([str(run["policy"]), *settings])


def groups_of(runs: Sequence[Run], labels: Labels) -> list[Group]:
    """Return the groups in order of their first run; a policy alone gets its own colour."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        found.setdefault(labels.of(run), []).append(run)
    colour_of = colours(found)
    return [
        Group(
            label,
            colour_of[label],
            [run for run in members if not band(run)],
            [run for run in members if band(run)],
        )
        for label, members in found.items()
    ]


def points(runs: Iterable[Run], figure: Figure) -> list[Point]:
    """Return *figure* by rising load; loads where no run has it are left out."""
    values: dict[float, list[float]] = {}
    for run in runs:
        value = figure(run)
        if value is not None:
            values.setdefault(load_rps(run), []).append(float(value))
    return [_point(at_rps, found) for at_rps, found in sorted(values.items())]


def _point(at_rps: float, found: Sequence[float]) -> Point:
    # The mean of three times 0.1 is greater than 0.1: an error bar of less than nothing.
    low, high = min(found), max(found)
    return Point(at_rps, min(max(sum(found) / len(found), low), high), low, high, len(found))


def quantile(name: str, which: str) -> Figure:
    """Return a reader of one quantile, such as ``quantile("ttft_s", "p99")``."""
    return lambda run: (run.get(name) or {}).get(which)


def plain(name: str) -> Figure:
    """Return a reader of one number of a run."""
    return lambda run: run.get(name)


def percent_of(name: str, class_name: str | None = None) -> Figure:
    """Return a reader of one share in percent, of the run or of one of its classes."""

    def figure(run: Run) -> float | None:
        where: Mapping[str, float | None] = run
        if class_name is not None:
            where = (run.get("per_class") or {}).get(class_name) or {}
        value = where.get(name)
        return None if value is None else 100.0 * value

    return figure


def classes_of(runs: Iterable[Run]) -> list[str]:
    """Return the names of all classes, those with most requests first."""
    counts: dict[str, int] = {}
    for run in runs:
        for name, figures in (run.get("per_class") or {}).items():
            counts[name] = counts.get(name, 0) + int((figures or {}).get("num_requests") or 0)
    return sorted(counts, key=lambda name: (-counts[name], name))


def chosen(
    kept: Sequence[KeptFile], groups: Sequence[Group], labels: Labels, rate_rps: float | None
) -> list[KeptFile]:
    """Return one kept run a group, at one load: the one asked for, else the heaviest in common.

    In the order of the groups. Among several there (seeds, bands), the plain run of the lowest
    seed. Groups without a kept run at that load are left out.
    """
    by_label: dict[str, list[KeptFile]] = {group.label: [] for group in groups}
    for one in kept:
        by_label[labels.of(one.run)].append(one)
    by_label = {label: ones for label, ones in by_label.items() if ones}
    loads = [{load_rps(one.run) for one in ones} for ones in by_label.values()]
    common = set.intersection(*loads) if loads else set()
    at_rps = rate_rps if rate_rps is not None else max(common or set().union(*loads), default=0.0)
    found = []
    for ones in by_label.values():
        here = [one for one in ones if load_rps(one.run) == at_rps]
        here.sort(key=lambda one: (abs(band(one.run)), one.run.get("seed") or 0))
        found += here[:1]
    return found
