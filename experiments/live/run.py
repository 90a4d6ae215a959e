"""Question: how many promises does Headway keep live, against stock vLLM at its defaults and best?

Plays two workloads at two loads on real servers, each seed with every contender, in an order that
turns from seed to seed. The settings of stock vLLM are tried on a seed of their own, and the best
for each load is played with all seeds. Every run is a file; what is there is not run again. See
README.md beside this file.

    python experiments/live/run.py                    # two to three hours of two quiet cores
    python experiments/live/run.py --ground chats --seeds 2
    python experiments/live/run.py --table            # only the tables, from what is there
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from grounds import GROUNDS, LOADS, Ground
from rich.console import Console
from table import Played, best_stock, write_tables

from headway.bench.contenders import MODEL, STOCK_BEST_FILE, Contender, stock
from headway.bench.provenance import commit, machine
from headway.bench.server import LiveServer, stop_on_signals
from headway.bench.session import Plan, measure
from headway.bench.speed import Speed, demo_book, measure_speed

HERE = Path(__file__).parent
SWEEP_SEED = 100
"""Stock's settings are tried on it; not one of the seeds that count."""

TIMEOUT_S = 180.0
"""Longer than any promise, so that giving up never breaks one."""


@dataclass(frozen=True, slots=True)
class Runner:
    """Plays what has no file yet."""

    results: Path
    num_requests: int
    console: Console

    def path_of(self, ground: str, key: str, load: str, seed: int) -> Path:
        """Return the file of one run."""
        return self.results / f"{ground}__{key}__{load}__s{seed}__n{self.num_requests}.json"

    def speed(self, ground: str, seed: int) -> Speed:
        """Return how fast this machine was before the first run of a seed.

        A shared machine is not as fast in the second hour as in the first, and a load is a share of
        what it can do.
        """
        path = self.results / f"{ground}__speed__s{seed}.json"
        if not path.exists():
            with LiveServer(stock().serve_args, self.results / "logs" / "speed.log") as server:
                speed = asyncio.run(measure_speed(server.url, MODEL))
            path.write_text(json.dumps(asdict(speed)) + "\n", encoding="utf-8")
            self.console.print(
                f"{ground}, seed {seed}: promises {speed.slowness():g} times as long"
            )
        return Speed(**json.loads(path.read_text(encoding="utf-8")))

    def play(self, ground: Ground, contender: Contender, seed: int, loads: Sequence[str]) -> None:
        """Start a contender's server and play a seed at each load that is missing."""
        missing = [
            load
            for load in loads
            if not self.path_of(ground.name, contender.key, load, seed).exists()
        ]
        if not missing:
            return
        speed = self.speed(ground.name, seed)
        log = self.results / "logs" / f"{ground.name}-{contender.key}.log"
        with LiveServer(contender.serve_args, log) as server:
            for load in missing:
                rate_rps = ground.rate_rps(speed, LOADS[load])
                plan = Plan(
                    workload=ground.requests(self.num_requests, rate_rps, seed),
                    book=demo_book(speed.slowness()),
                    policy=contender.policy,
                    rate_rps=rate_rps,
                    seed=seed,
                    timeout_s=TIMEOUT_S * speed.slowness(),
                    priority_by_class=contender.priority_by_class,
                )
                measured = asyncio.run(measure(server.url, plan))
                server.check_alive()
                if measured.load.was_stopped:
                    raise KeyboardInterrupt
                self.save(ground, contender, load, seed, measured.run)

    def save(
        self, ground: Ground, contender: Contender, load: str, seed: int, run: dict[str, Any]
    ) -> None:
        """Write one run, with what it takes to repeat it."""
        document = {
            "ground": ground.name,
            "contender": contender.key,
            "load": load,
            "seed": seed,
            "slowness": self.speed(ground.name, seed).slowness(),
            "command": contender.command,
            "commit": commit(HERE.parent.parent),
            "machine": machine(),
            "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "run": run,
        }
        path = self.path_of(ground.name, contender.key, load, seed)
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        where = f"{ground.name}, {load} ({run['rate_rps']:g}/s), seed {seed}"
        kept = f"{run['num_attained']} of {run['num_requests']}"
        self.console.print(f"{where}: {contender.key} kept {kept}")

    def played(self) -> list[Played]:
        """Return every run there is."""
        files = sorted(self.results.glob(f"*__n{self.num_requests}.json"))
        return [json.loads(path.read_text(encoding="utf-8")) for path in files]


@click.command()
@click.option("--ground", "names", multiple=True, type=click.Choice(list(GROUNDS)))
@click.option("--seeds", default=5, show_default=True, type=click.IntRange(1))
@click.option("--requests", default=60, show_default=True, type=click.IntRange(1))
@click.option("--results", default=HERE / "results", type=click.Path(path_type=Path))
@click.option("--table", "table_only", is_flag=True, help="Run nothing; write the tables.")
@click.option("--write-stock-best", is_flag=True, help="Tell the demo the best stock setting.")
def main(
    names: tuple[str, ...],
    seeds: int,
    requests: int,
    results: Path,
    table_only: bool,
    write_stock_best: bool,
) -> None:
    """Run what is missing, then write results.md."""
    stop_on_signals()
    results.mkdir(parents=True, exist_ok=True)
    runner = Runner(results, requests, Console())
    if not table_only:
        for name in names or tuple(GROUNDS):
            play_ground(runner, GROUNDS[name], seeds)
    click.echo(write_tables(runner.played(), HERE))
    if write_stock_best:
        save_stock_best(runner.played())


def play_ground(runner: Runner, ground: Ground, seeds: int) -> None:
    """Play a ground: stock's settings first, then everybody by turns."""
    known = ground.contenders()
    for contender in ground.stock:
        runner.play(ground, contender, SWEEP_SEED, tuple(LOADS))
    best = {load: best_stock(runner.played(), ground.name, load, SWEEP_SEED) for load in LOADS}
    turns = ["stock", *dict.fromkeys(best.values()), "headway"]
    for seed in range(1, seeds + 1):
        first = seed % len(turns)
        for key in (*turns[first:], *turns[:first]):
            loads = [load for load in LOADS if best[load] == key or key in ("stock", "headway")]
            runner.play(ground, known[key], seed, loads if seed % 2 else loads[::-1])


def save_stock_best(played: Sequence[Played]) -> None:
    """Write the setting with the best mean over the loads of the demo's workload."""
    key = best_stock(played, "demo", None, SWEEP_SEED)
    chosen = GROUNDS["demo"].contenders()[key]
    setting = {
        "server_args": list(chosen.args),
        "priority_by_class": dict(chosen.priority_by_class),
        "found_by": "experiments/live/run.py: the best of its sweep over both loads",
        "contender": key,
    }
    STOCK_BEST_FILE.write_text(json.dumps(setting, indent=2) + "\n", encoding="utf-8")
    click.echo(f"The demo's best stock setting is now {key}.")


if __name__ == "__main__":
    main()
