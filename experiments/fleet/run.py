"""Question: which routing keeps the most promises, of equal servers and where half are slow?

Fleets of virtual A100s that serve an 8B, with 5 % noise; in the unequal ones half of them take
twice as long for every step. Loads last 60 s and are multiples of what the servers carry one by one
(CARRIED). Writes results.json beside itself, one row at a time; what is there is not run again.
table.py makes results.md from it.

    python experiments/fleet/run.py                                 # all; hours of one core
    python experiments/fleet/run.py --only "cached|agents" --seeds 1
    python experiments/fleet/run.py --dry --quick                   # 4 s of load; writes nothing
    python experiments/fleet/run.py --carried                       # the figures of CARRIED
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any
from unittest import mock

import click

from headway.engines.sim import routers, signals
from headway.latency import profile as profiles
from headway.study.highest_rate import highest_rate
from headway.study.named_rows import Task, measure_missing
from headway.study.spec import Load, Machine, RunSpec
from headway.study.virtual_run import execute

HERE = Path(__file__).parent

FAST = "llama-3.1-8b@a100"
TIMES_SLOWER = 2.0

CARRIED = {"mixed": (4.0, 1.19), "turns": (14.67, 6.73), "agents": (1.41, 0.59)}
"""Requests a second that one server carries, a fast one and a slow one: the highest rate at which
first come, first served with the best of three chunks keeps 90 % (as experiments/scoreboard)."""

CHUNKS = (2048, 512, 256)

LOAD_S = 60.0
FEW_SEEDS = 2
"""Of the cases that take minutes: ``turns``, and 64 servers."""

TIMES = (0.9, 1.0, 1.3, 2.0)
"""Of what all servers carry, what is sent: Headway keeps promises well beyond one."""

CACHED_TIMES = {"turns": (1.3,), "agents": (1.0, 1.3)}
MANY_TIMES, REFUSE_TIMES = 1.3, 2.0

FLEETS = {"equal": False, "unequal": True}

PLAIN = (
    ("round-robin", 0.0),
    ("least-work", 0.0),
    ("pressure", 0.0),
    ("least-work", 1.0),
    ("pressure", 1.0),
    ("quote", 1.0),
)
"""Routers, and the age of what they see in seconds. Turns and quotes see nothing old."""

CACHED = (
    ("round-robin", 0.0),
    ("least-work", 1.0),
    ("pressure", 1.0),
    ("prefix", 1.0),
    ("prefix", 0.0),
    ("quote", 1.0),
)

VARIED = {
    "PRESSURE_GUARD": (routers, (0.5, 1.0, 2.0, 4.0), "prefix"),
    "MATCHED_SHARE": (routers, (0.0, 0.25, 0.5, 0.75), "prefix"),
    "COMPARED": (signals, (1, 2, 4, 8), "pressure"),
    "MOST_ASKED": (routers, (1, 2, 4, 8), "quote"),
}
"""Constants of the routers: where each stands, the values tried, and the router it belongs to."""

VARIED_SEEDS, VARIED_TIMES = 3, 1.3

MANY = (("round-robin", 0.0), ("least-work", 1.0), ("pressure", 1.0), ("quote", 1.0))


def slow_profile(folder: str) -> str:
    """Write the profile of a slow server; return its path."""
    fast = profiles.load(FAST)
    times = {
        one.name: TIMES_SLOWER * getattr(fast.cost, one.name)
        for one in fields(fast.cost)
        if one.name != "knee_tokens"
    }
    path = Path(folder) / "slow.json"
    path.write_text(replace(fast, name="slow", cost=replace(fast.cost, **times)).to_json(), "utf-8")
    return str(path)


@dataclass(frozen=True, slots=True)
class Case:
    """What a fleet is, and what is sent to it."""

    workload: str
    num_servers: int
    fleet: str
    times: float
    router: str
    age_s: float
    overload: str = "demote"
    num_retries: int = 0

    def served_with(self, name: str, value: float, seed: int, load_s: float) -> dict[str, Any]:
        """Return :meth:`served` with another value of a constant of :data:`VARIED`."""
        with mock.patch.object(VARIED[name][0], name, value):
            return self.served(seed, load_s)

    def served(self, seed: int, load_s: float) -> dict[str, Any]:
        """Return what is kept, and what came of the requests."""
        num_slow = self.num_servers // 2 if FLEETS[self.fleet] else 0
        num_fast = self.num_servers - num_slow
        fast_rps, slow_rps = CARRIED[self.workload]
        rate_rps = round(self.times * (num_fast * fast_rps + num_slow * slow_rps), 3)
        with tempfile.TemporaryDirectory() as folder:
            groups = ((FAST, num_fast), (slow_profile(folder), num_slow))
            machine = Machine(
                FAST,
                noise=0.05,
                prefix_caching=self.workload != "mixed",
                router=self.router,
                replica_gpus=tuple(group for group in groups if group[1]),
                num_retries=self.num_retries,
                signal_age_s=self.age_s,
            )
            load = Load(self.workload, rate_rps, max(round(rate_rps * load_s), 1), seed)
            run = execute(RunSpec("headway", "sim", load, machine, self.overload)).run
        routed = run["fleet"]["routed"]
        return {
            "kept": round(run["attainment"], 4),
            "ttft_p95_s": round(run["ttft_s"]["p95"], 3),
            "fast": round(sum(routed[:num_fast]) / sum(routed), 3),
            "refused": run["outcomes"]["refused"],
            "elsewhere": run["fleet"]["tried_elsewhere"],
            "saved": run["fleet"]["saved"],
        }


def cases() -> Iterator[tuple[str, Case]]:
    """Yield the name of each case without its seed, and the case."""
    for fleet in FLEETS:
        for times in TIMES:
            for router, age_s in PLAIN:
                name = f"plain|{fleet}|{times:g}|{router}|{age_s:g}"
                yield name, Case("mixed", 8, fleet, times, router, age_s)
        for num_retries in (0, 1):
            for router, age_s in MANY:
                name = f"refuse|{fleet}|{num_retries}|{router}|{age_s:g}"
                case = Case("mixed", 8, fleet, REFUSE_TIMES, router, age_s, "refuse", num_retries)
                yield name, case
        for workload, loads in CACHED_TIMES.items():
            for times in loads:
                for router, age_s in CACHED:
                    name = f"cached|{workload}|{fleet}|{times:g}|{router}|{age_s:g}"
                    yield name, Case(workload, 8, fleet, times, router, age_s)


def many() -> Iterator[tuple[str, Case]]:
    """Yield the cases of 64 servers, which take minutes each."""
    for fleet in FLEETS:
        for router, age_s in MANY:
            name = f"many|{fleet}|{router}|{age_s:g}"
            yield name, Case("mixed", 64, fleet, MANY_TIMES, router, age_s)


def varied(seeds: int, load_s: float) -> Iterator[Task]:
    """Yield a row a value of each constant, on loads its router is for."""
    for name, (_, values, router) in VARIED.items():
        for workload in ("agents",) if router == "prefix" else ("mixed",):
            for fleet in FLEETS:
                case = Case(workload, 8, fleet, VARIED_TIMES, router, 1.0)
                for value in values:
                    for seed in range(min(seeds, VARIED_SEEDS)):
                        row = f"varied|{name}|{workload}|{fleet}|{value:g}|{seed}"
                        yield row, case.served_with, (name, value, seed, load_s)


def tasks(seeds: int, load_s: float) -> Iterator[Task]:
    """Yield the name of each row and what makes it, seed by seed, the large fleets last."""
    for found in (list(cases()), list(many())):
        for seed in range(seeds):
            for name, case in found:
                takes_long = case.workload == "turns" or case.num_servers > 8
                if seed < FEW_SEEDS or not takes_long:
                    yield f"{name}|{seed}", case.served, (seed, load_s)
    yield from varied(seeds, load_s)


def carried_rps(workload: str, gpu: str) -> float:
    """Return what one server carries; see :data:`CARRIED`."""
    machine = Machine(gpu, noise=0.05, prefix_caching=workload != "mixed")
    best_rps = 0.0
    for chunk_tokens in CHUNKS:

        def kept(rate_rps: float, chunk_tokens: int = chunk_tokens) -> float:
            load = Load(workload, round(rate_rps, 3), max(round(rate_rps * LOAD_S), 1), 0)
            options = {"chunk_tokens": chunk_tokens}
            spec = RunSpec("sarathi", "sim", load, machine, options=options)
            return float(execute(spec).run["attainment"])

        best_rps = max(best_rps, highest_rate(kept, 0.9, best_rps or 4.0, 0.1))
    return round(best_rps, 2)


@click.command()
@click.option("--only", default="", help="Rows whose name holds this.")
@click.option("--seeds", default=5, show_default=True)
@click.option("--quick", is_flag=True, help="4 s of load; goes with --dry.")
@click.option("--dry", is_flag=True, help="Write nothing.")
@click.option("--carried", is_flag=True, help="Only find what one server carries.")
def main(only: str, seeds: int, quick: bool, dry: bool, carried: bool) -> None:
    """Run what is not in the file yet."""
    if quick and not dry:
        raise click.UsageError("--quick measures too little to be kept; add --dry.")
    if carried:
        with tempfile.TemporaryDirectory() as folder:
            for workload in CARRIED:
                pair = [carried_rps(workload, gpu) for gpu in (FAST, slow_profile(folder))]
                click.echo(f"{workload}: {pair}")
        return
    load_s = LOAD_S / 15 if quick else LOAD_S
    measure_missing(HERE / "results.json", tasks(seeds, load_s), click.echo, only, is_kept=not dry)


if __name__ == "__main__":
    main()
