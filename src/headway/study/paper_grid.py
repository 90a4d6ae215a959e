"""A published system against its baselines: a grid of runs, and the figures read from it.

What the figures say of the paper's claims is in :mod:`headway.study.claims`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from headway import registry
from headway.study import stock
from headway.study.drawn import DrawnMix
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
        """Return the figure of one run; ``None`` where it has none, as runs made before may."""
        value: Any = run
        for key in self.path:
            value = None if value is None else value.get(key)
        return None if value is None else float(value)


ATTAINMENT = Figure("attainment", ("attainment",), is_share=True)

FIGURES = (
    Figure("TTFT p95", ("ttft_s", "p95"), less_is_better=True),
    Figure("TTFT p99", ("ttft_s", "p99"), less_is_better=True),
    Figure("gap p95", ("tbt_s", "p95"), less_is_better=True),
    Figure("gap p99", ("tbt_s", "p99"), less_is_better=True),
    Figure("longest gap", ("tbt_s", "max"), less_is_better=True),
    Figure("longest gap of a request, p95", ("pause_s", "p95"), less_is_better=True),
    Figure("mean gap of a request, p95", ("tpot_s", "p95"), less_is_better=True),
    Figure("normalised latency", ("normalised_latency_s",), less_is_better=True),
    ATTAINMENT,
    Figure("TTFT attainment", ("ttft_attainment",), is_share=True),
    Figure("TBT attainment", ("tbt_attainment",), is_share=True),
    Figure("TBT attainment, plain", ("tbt_plain_attainment",), is_share=True),
    Figure("TBT attainment, strict", ("tbt_strict_attainment",), is_share=True),
    Figure("TBT attainment, mean gap", ("tbt_lenient_attainment",), is_share=True),
    Figure("goodput", ("goodput_rps",)),
    Figure("JCT p50", ("jct_s", "p50"), less_is_better=True),
    Figure("JCT p95", ("jct_s", "p95"), less_is_better=True),
    Figure("throughput", ("output_tokens_per_s",)),
)

FIGURE: Mapping[str, Figure] = {figure.label: figure for figure in FIGURES}

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


Row = dict[str, Any]
"""Of one contender at one load: each figure's mean over seeds by label, and ``per_seed`` values."""


def rows_of(grid: Grid, labels: Collection[str] = ()) -> list[Row]:
    """Return a row a contender and load, with the values per seed of the figures in *labels*.

    Those of the attainment are always there.
    """
    return [
        {
            "policy": label,
            "workload": workload,
            "rate_rps": rate,
            "attainment_per_seed": [run["attainment"] for run in runs],
            "preemptions": sum(sum(run["preemptions"].values()) for run in runs) / len(runs),
            **{figure.label: mean_of(runs, figure) for figure in SHOWN},
            "per_seed": {
                figure.label: [figure.of(run) for run in runs]
                for figure in FIGURES
                if figure.label in labels and figure is not ATTAINMENT
            },
        }
        for (label, workload, rate), runs in grid.items()
    ]


def variants(base: NamedPolicy, changes: Mapping[str, Mapping[str, Any]]) -> list[NamedPolicy]:
    """Return *base* with each set of options laid over its own, labelled by name."""
    return [
        replace(base, label=label, options={**base.options, **options})
        for label, options in changes.items()
    ]
