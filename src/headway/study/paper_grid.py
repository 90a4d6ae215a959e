"""A published system against its baselines: a grid of runs, and the largest factors in it.

Papers report "up to" figures: the largest gain over any load. :func:`gains` finds them, against the
best baseline at each load, so that no weak rival flatters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from headway import registry
from headway.study import stock
from headway.study.drawn import DrawnMix
from headway.study.highest_rate import crossing
from headway.study.spec import STOCK_WAYS, EngineName, Load, Machine, RunSpec
from headway.study.sweep import Run
from headway.workloads import named

RunMany = Callable[[Sequence[RunSpec]], Mapping[str, Run]]


@dataclass(frozen=True, slots=True)
class NamedPolicy:
    """A policy with options, under the name the tables give it."""

    label: str
    policy: str
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)
    length_error: float | None = None

    @property
    def engine(self) -> EngineName:
        """VLLM's own code where it is the rival; the simulator schedules the same otherwise."""
        return "vllm" if self.policy in STOCK_WAYS else "sim"

    @property
    def can_refuse(self) -> bool:
        """Whether refuse mode can differ: without a cap, who knows no promise refuses nobody."""
        if self.policy in registry.names():
            return registry.build(self.policy, options=self.options).known.heeds_promises
        return self.policy not in STOCK_WAYS


@dataclass(frozen=True, slots=True)
class Traffic:
    """A workload and the loads it is offered at, in requests per second.

    Attributes:
        times: How many times as many requests a run as were asked for: short requests end so
            soon that a run of few never fills the cache.
        max_output_tokens: Every client's limit, which some baselines reserve.
        arrivals: A process as ``--arrivals`` names it; ``None`` keeps the source's own.
        drawn: What :meth:`written` fills a file with; *source* names it.
    """

    source: str
    rates_rps: tuple[float, ...]
    slo_file: str | None = None
    times: float = 1
    max_output_tokens: int | None = None
    arrivals: str | None = None
    drawn: DrawnMix | None = None

    @property
    def name(self) -> str:
        """Return the name of the workload or file."""
        return Path(self.source).stem

    def written(self, folder: Path, machine: Machine, num_requests: int) -> Traffic:
        """Return the same with its requests in a file in *folder*, where they must be drawn."""
        if self.drawn is None:
            return self
        path = folder / f"{self.source}-{num_requests}.jsonl"
        self.drawn.write(path, machine, num_requests)
        book = str(named.SLO_FILE)
        return replace(self, source=str(path), arrivals="poisson", slo_file=book, drawn=None)

    def load(self, num_requests: int) -> Load:
        """Return a run's load, its rate still open, where *num_requests* were asked for."""
        return Load(
            self.source,
            num_requests=int(self.times * num_requests),
            arrivals=self.arrivals,
            slo_file=self.slo_file,
            max_output_tokens=self.max_output_tokens,
        )


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure compared: where it is in a run, and whether less is better."""

    label: str
    path: tuple[str, ...]
    less_is_better: bool = False
    is_share: bool = False

    def of(self, run: Run) -> float | None:
        """Return the figure of one run; ``None`` where there is none."""
        value: Any = run
        for key in self.path:
            value = value[key]
        return None if value is None else float(value)


ATTAINMENT = Figure("attainment", ("attainment",), is_share=True)

FIGURES = (
    Figure("TTFT p95", ("ttft_s", "p95"), less_is_better=True),
    Figure("gap p95", ("tbt_s", "p95"), less_is_better=True),
    Figure("gap p99", ("tbt_s", "p99"), less_is_better=True),
    Figure("longest gap", ("tbt_s", "max"), less_is_better=True),
    Figure("normalised latency", ("normalised_latency_s",), less_is_better=True),
    ATTAINMENT,
    Figure("TTFT attainment", ("ttft_attainment",), is_share=True),
    Figure("TBT attainment", ("tbt_attainment",), is_share=True),
    Figure("goodput", ("goodput_rps",)),
    Figure("JCT p50", ("jct_s", "p50"), less_is_better=True),
    Figure("JCT p95", ("jct_s", "p95"), less_is_better=True),
    Figure("throughput", ("output_tokens_per_s",)),
)

SHOWN = (
    *FIGURES,
    Figure("tokens a step", ("step_tokens",)),
    Figure("KV held", ("kv_held_share",), is_share=True),
    Figure("plan time p50, µs", ("plan_time_us", "p50"), less_is_better=True),
)
"""Every figure of a row; in those beyond ``FIGURES`` more is not better by itself."""

Grid = dict[tuple[str, str, float], list[Run]]
"""Runs over seeds, by contender's label, workload and rate."""


def run_grid(
    contenders: Sequence[NamedPolicy],
    traffic: Sequence[Traffic],
    machine: Machine,
    seeds: Sequence[int],
    num_requests: int,
    run: RunMany,
    tuning_seeds: Sequence[int] | None = None,
    overload: str = "demote",
) -> Grid:
    """Run every contender on every load with every seed.

    Args:
        tuning_seeds: Those on which stock vLLM's settings are swept, the slowest part; what wins
            there runs on all *seeds*. ``None`` sweeps on all of them.
        overload: For those that can refuse; the runs of the others are those of demote mode.
    """
    grid: Grid = {}
    for one in traffic:
        load = one.load(num_requests)
        bases = {
            c: RunSpec(
                c.policy,
                c.engine,
                load,
                machine,
                overload if c.can_refuse else "demote",
                options=c.options,
                length_error=c.length_error,
            )
            for c in contenders
            if c.policy not in STOCK_WAYS[1:]
        }
        specs = {
            (c, rate, seed): base.at(rate, seed)
            for c, base in bases.items()
            for rate in one.rates_rps
            for seed in seeds
        }
        runs = run(list(specs.values()))
        for (c, rate, _), spec in specs.items():
            grid.setdefault((c.label, one.name, rate), []).append(runs[spec.key()])
        tuned = [c for c in contenders if c.policy in STOCK_WAYS[1:]]
        if tuned:
            base = RunSpec("stock", "vllm", load, machine, overload)
            tried = stock.sweep(base, list(one.rates_rps), tuning_seeds or seeds, run)
            chosen = {
                (c, rate, seed): stock.with_knobs(base, tried.chosen(c.policy)[rate]).at(rate, seed)
                for c in tuned
                for rate in one.rates_rps
                for seed in seeds
            }
            runs = run(list(chosen.values()))
            for (c, rate, _), spec in chosen.items():
                found = {**runs[spec.key()], "policy": c.policy}
                grid.setdefault((c.label, one.name, rate), []).append(found)
    return grid


def mean_of(runs: Sequence[Run], figure: Figure) -> float | None:
    """Return the mean of a figure over seeds; ``None`` where no run has it."""
    values = [value for value in map(figure.of, runs) if value is not None]
    return sum(values) / len(values) if values else None


@dataclass(frozen=True, slots=True)
class Gain:
    """The largest gain in one figure: a factor, or points for shares, and where it is."""

    figure: str
    workload: str
    rate_rps: float
    gain: float
    ours: float
    best_baseline: float
    baseline: str
    is_points: bool


def gains(grid: Grid, ours: str, baselines: Sequence[str]) -> list[Gain]:
    """Return, for each figure, our largest gain over the best baseline at the same load."""
    found: list[Gain] = []
    loads = sorted({(workload, rate) for _, workload, rate in grid})
    for figure in FIGURES:
        best: Gain | None = None
        for workload, rate in loads:
            gain = _gain_at(grid, figure, ours, baselines, workload, rate)
            if gain is not None and (best is None or gain.gain > best.gain):
                best = gain
        if best is not None:
            found.append(best)
    return found


def _gain_at(
    grid: Grid, figure: Figure, ours: str, baselines: Sequence[str], workload: str, rate: float
) -> Gain | None:
    mine = mean_of(grid.get((ours, workload, rate), []), figure)
    others = {
        label: value
        for label in baselines
        if (value := mean_of(grid.get((label, workload, rate), []), figure)) is not None
    }
    if mine is None or not others:
        return None
    pick = min if figure.less_is_better else max
    label = pick(others, key=lambda name: others[name])
    best = others[label]
    if figure.is_share:
        gain = 100.0 * (mine - best)
    elif figure.less_is_better:
        gain = best / max(mine, 1e-9)
    else:
        gain = mine / max(best, 1e-9)
    return Gain(figure.label, workload, rate, gain, mine, best, label, figure.is_share)


def capacity_of(grid: Grid, label: str, workload: str, target: float = 0.9) -> float:
    """Return the rate in requests per second at which mean attainment falls below *target*."""
    return crossing(
        (
            (rate, mean_of(runs, ATTAINMENT) or 0.0)
            for (name, source, rate), runs in grid.items()
            if name == label and source == workload
        ),
        target,
    )


def variants(base: NamedPolicy, changes: Mapping[str, Mapping[str, Any]]) -> list[NamedPolicy]:
    """Return *base* with each set of options laid over its own, labelled by name."""
    return [
        replace(base, label=label, options={**base.options, **options})
        for label, options in changes.items()
    ]
