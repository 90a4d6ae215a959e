"""Stock vLLM at its best: its own settings, swept by its own code.

Three baselines: the defaults of the GPU, the one setting that is best over all loads, and the
best setting for each load in hindsight. The sweep goes in two rounds, so that it ends: the step
budget with and without priority by class first; then what won at any load, with watermarks and,
where requests may be refused, caps on the queued tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from headway.latency import profile as profiles
from headway.study.requests import book_of, requests_of
from headway.study.spec import Knobs, RunSpec
from headway.study.sweep import Run, mean_attainment
from headway.workloads.schema import slo_of

BATCHED_SHARES = (1 / 64, 1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 2)
"""Step budgets tried, as shares of the GPU's default (8,192 on an H100: 128 to 16,384)."""

WATERMARKS = (0.01, 0.05)
QUEUED_TOKENS = (1024, 4096, 16384, 65536)

RunMany = Callable[[Sequence[RunSpec]], Mapping[str, Run]]
"""Runs specs and returns their summaries by key."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """Every setting tried, at every load: ``runs[knobs][rate]`` is a list over seeds."""

    runs: dict[Knobs, dict[float | None, list[Run]]]

    def best_at(self, rate_rps: float | None) -> Knobs:
        """Return the best setting for one load; the earlier tried wins a tie."""
        return max(self.runs, key=lambda knobs: mean_attainment(self.runs[knobs][rate_rps]))

    def best_overall(self) -> Knobs:
        """Return the setting with the best mean attainment over all loads."""

        def everywhere(knobs: Knobs) -> float:
            return mean_attainment(run for runs in self.runs[knobs].values() for run in runs)

        return max(self.runs, key=everywhere)

    def chosen(self, way: str) -> dict[float | None, Knobs]:
        """Return the setting of ``stock-static`` or ``stock-hindsight`` at each load."""
        rates = next(iter(self.runs.values()))
        static = self.best_overall()
        return {r: static if way == "stock-static" else self.best_at(r) for r in rates}

    def as_policy(self, way: str) -> list[Run]:
        """Return the runs of ``stock-static`` or ``stock-hindsight`` under that name."""
        return [
            {**run, "policy": way}
            for rate_rps, knobs in self.chosen(way).items()
            for run in self.runs[knobs][rate_rps]
        ]


def sweep(
    base: RunSpec, rates: Sequence[float | None], seeds: Sequence[int], run: RunMany
) -> Sweep:
    """Try vLLM's settings on the load and machine of *base*; see the module."""
    default_tokens = profiles.load(base.machine.gpu).max_num_batched_tokens
    orders = (False, True) if _has_classes(base, rates[0]) else (False,)
    budgets = [None, *(max(int(share * default_tokens), 16) for share in BATCHED_SHARES)]
    first = [
        Knobs(max_num_batched_tokens=tokens, by_class=by_class)
        for tokens in budgets
        for by_class in orders
    ]
    tried = _try(first, base, rates, seeds, run)
    winners = list(dict.fromkeys(Sweep(tried).best_at(rate_rps) for rate_rps in rates))
    second = [replace(knobs, watermark=w) for knobs in winners for w in WATERMARKS]
    if base.overload == "refuse":
        second += [
            replace(knobs, max_num_queued_tokens=cap) for knobs in winners for cap in QUEUED_TOKENS
        ]
    tried.update(_try(second, base, rates, seeds, run))
    return Sweep(tried)


def with_knobs(base: RunSpec, knobs: Knobs) -> RunSpec:
    """Return *base* on stock vLLM with these settings.

    Without a cap it refuses nobody: the runs of demote mode serve refuse mode too.
    """
    overload = base.overload if knobs.max_num_queued_tokens else "demote"
    return replace(base, policy="stock", knobs=knobs, overload=overload)


def _has_classes(base: RunSpec, rate_rps: float | None) -> bool:
    """Return whether the load has several classes; with one, priority is first come."""
    requests = requests_of(base.at(rate_rps).load)
    return len({slo_of(r, book_of(base.load)).class_name for r in requests}) > 1


def _try(
    settings: Sequence[Knobs],
    base: RunSpec,
    rates: Sequence[float | None],
    seeds: Sequence[int],
    run: RunMany,
) -> dict[Knobs, dict[float | None, list[Run]]]:
    specs = {
        (knobs, rate_rps, seed): with_knobs(base, knobs).at(rate_rps, seed)
        for knobs in settings
        for rate_rps in rates
        for seed in seeds
    }
    runs = run(list(specs.values()))
    table: dict[Knobs, dict[float | None, list[Any]]] = {}
    for (knobs, rate_rps, _), spec in specs.items():
        table.setdefault(knobs, {}).setdefault(rate_rps, []).append(runs[spec.key()])
    return table
