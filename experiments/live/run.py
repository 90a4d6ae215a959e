"""Question: how many promises does Headway keep against stock vLLM, live, at its best?

Sweeps stock vLLM's settings, takes the best for each load in hindsight, and compares it and the
defaults with Headway over seeds. Every result is a file; what is there already is not run again.
See README.md beside this file.
"""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from table import best_at, best_overall, contender_key, markdown, table_of

from headway.bench.contenders import CHAT_FIRST, STOCK_BEST_FILE, Contender, headway, stock
from headway.bench.contest import Entry, Leg, run_contender
from headway.bench.provenance import commit, machine
from headway.bench.server import stop_on_sigterm
from headway.errors import HeadwayError
from headway.metrics.record import write_records

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
RATES_RPS = (0.4, 0.6)
"""A moderate load and an overload for the two cores of the machine in results.md."""
SEEDS = (1, 2, 3)
SWEEP_SEEDS = (1,)
REQUESTS = 40
BATCHED_TOKENS = (32, 64, 128, 256, None)
"""``--max-num-batched-tokens``; ``None`` is vLLM's default."""


def sweep() -> list[Contender]:
    """Return every stock setting, the defaults first."""
    found = [stock()]
    for num_tokens in BATCHED_TOKENS:
        budget: tuple[str, ...] = (
            () if num_tokens is None else ("--max-num-batched-tokens", str(num_tokens))
        )
        if num_tokens is not None and num_tokens < 128:
            budget += ("--max-num-seqs", str(num_tokens))  # vLLM wants no more than the tokens.
        name = f"stock-{num_tokens or 'default'}"
        if num_tokens is not None:
            found.append(Contender(f"{name}-fcfs", f"{name} fcfs", "stock", budget))
        priority = (*budget, "--scheduling-policy", "priority")
        found.append(
            Contender(f"{name}-priority", f"{name} priority", "stock", priority, CHAT_FIRST)
        )
    return found


def everyone() -> dict[str, Contender]:
    """Return all contenders by key."""
    return {contender.key: contender for contender in [*sweep(), headway()]}


@click.command()
@click.option("--contender", "patterns", multiple=True, help="Only these keys, such as 'stock-2*'.")
@click.option("--rate", "rates", multiple=True, type=click.FloatRange(0, min_open=True))
@click.option("--seed", "seeds", multiple=True, type=click.IntRange(0))
@click.option("--requests", default=REQUESTS, show_default=True, type=click.IntRange(1))
@click.option("--sweep/--no-sweep", "do_sweep", default=True, help="Try every stock setting.")
@click.option("--fresh/--no-fresh", default=False, help="A new server for every run.")
@click.option("--results", default=HERE / "results", type=click.Path(path_type=Path))
@click.option("--table", "table_only", is_flag=True, help="Run nothing; write the tables.")
@click.option("--list", "list_only", is_flag=True, help="Run nothing; name the contenders.")
@click.option("--write-stock-best", is_flag=True, help="Tell the demo the best stock setting.")
def main(
    patterns: tuple[str, ...],
    rates: tuple[float, ...],
    seeds: tuple[int, ...],
    requests: int,
    do_sweep: bool,
    fresh: bool,
    results: Path,
    table_only: bool,
    list_only: bool,
    write_stock_best: bool,
) -> None:
    """Run what is missing, then write results.json and results.md."""
    if list_only:
        for key, contender in everyone().items():
            click.echo(f"{key:26} {contender.command}")
        return
    stop_on_sigterm()
    results.mkdir(parents=True, exist_ok=True)
    runner = Runner(results, rates or RATES_RPS, requests, fresh)
    if not table_only:
        run_all(runner, patterns, seeds or SEEDS, do_sweep)
    documents = load_results(results, requests)
    if documents:
        write_tables(documents, results.parent)
        if write_stock_best:
            save_stock_best(documents)
    sys.exit(1 if runner.num_failed else 0)


class Runner:
    """Runs contenders, skips what has a result, and remembers how many failed."""

    def __init__(
        self, results: Path, rates_rps: Sequence[float], num_requests: int, fresh: bool
    ) -> None:
        self.results = results
        self.rates_rps = rates_rps
        self.num_failed = 0
        self._num_requests = num_requests
        self._fresh = fresh
        self._console = Console()

    def run(self, contender: Contender, seeds: Iterable[int]) -> None:
        """Run every missing leg of one contender; a failure is told and counted."""
        legs = [
            Leg(rate_rps, seed, self._num_requests)
            for seed in seeds
            for rate_rps in self.rates_rps
            if not self.path_of(contender.key, rate_rps, seed).exists()
        ]
        for group in [[leg] for leg in legs] if self._fresh else [legs]:
            if not group:
                continue
            log_path = self.results / "logs" / f"{contender.key}.log"
            try:
                run_contender(contender, group, log_path, self._console, self.save)
            except HeadwayError as error:
                self.num_failed += 1
                click.echo(f"{contender.key}: {error}", err=True)

    def path_of(self, key: str, rate_rps: float, seed: int) -> Path:
        """Return the result file of one run."""
        return self.results / f"{key}__r{rate_rps:g}__s{seed}__n{self._num_requests}.json"

    def save(self, entry: Entry) -> None:
        """Write one result, with what it takes to repeat it."""
        key, leg = entry.contender.key, entry.leg
        document = {
            "contender": key,
            "priority_by_class": dict(entry.contender.priority_by_class),
            "server_args": list(entry.contender.args) if entry.contender.policy == "stock" else [],
            "commit": commit(ROOT),
            "machine": machine(),
            "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "run": entry.run,
        }
        path = self.path_of(key, entry.run["rate_rps"], leg.seed)
        path.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
        records = self.results / "records"
        records.mkdir(exist_ok=True)
        write_records(records / f"{path.stem}.jsonl", entry.records)
        kept = entry.run["num_attained"]
        where = f"{key} at {entry.run['rate_rps']:g}/s, seed {leg.seed}"
        self._console.print(f"{where}: kept {kept} of {leg.num_requests}")


def run_all(runner: Runner, patterns: Sequence[str], seeds: Sequence[int], do_sweep: bool) -> None:
    """Run the named contenders, or else the sweep and then the finalists over all seeds."""
    known = everyone()
    if patterns:
        chosen = [key for key in known if any(fnmatch(key, pattern) for pattern in patterns)]
        if not chosen:
            raise click.UsageError(f"--contender matches none of {', '.join(known)}.")
        for key in chosen:
            runner.run(known[key], seeds)
        return
    if do_sweep:
        for contender in sweep():
            runner.run(contender, SWEEP_SEEDS)
    documents = load_results(runner.results, runner._num_requests)
    best = {best_at(documents, rate_rps, SWEEP_SEEDS) for rate_rps in runner.rates_rps}
    for key in ["stock", *sorted(best - {"stock", None}), "headway"]:
        runner.run(known[key], seeds)


def load_results(results: Path, num_requests: int) -> list[dict[str, Any]]:
    """Return every result of runs of this length."""
    return [
        json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(results.glob(f"*__n{num_requests}.json"))
    ]


def write_tables(documents: Sequence[dict[str, Any]], folder: Path) -> None:
    """Write results.json and results.md, and print the latter."""
    table = table_of(documents)
    command = shlex.join(["python", "experiments/live/run.py", *sys.argv[1:]])
    text = markdown(table, documents, SEEDS)
    (folder / "results.md").write_text(text, encoding="utf-8")
    document = {
        "schema": 1,
        "command": command,
        "commits": sorted({str(d["commit"]) for d in documents}),
        "machine": documents[-1]["machine"],
        "seeds": sorted({d["run"]["seed"] for d in documents}),
        "table": table,
        "runs": [{"contender": d["contender"], **d["run"]} for d in documents],
    }
    (folder / "results.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    click.echo(text)


def save_stock_best(documents: Sequence[dict[str, Any]]) -> None:
    """Write the setting with the best mean over all swept loads, for the demo to use."""
    key = best_overall(documents, SEEDS)
    chosen = next((d for d in documents if contender_key(d) == key), None)
    if chosen is None:
        raise click.UsageError("There are no sweep results yet to take the best setting from.")
    rates = sorted({d["run"]["rate_rps"] for d in documents})
    setting = {
        "server_args": chosen["server_args"],
        "priority_by_class": chosen["priority_by_class"],
        "found_by": f"experiments/live/run.py: the best mean attainment at {rates} requests/s",
        "contender": key,
    }
    STOCK_BEST_FILE.write_text(json.dumps(setting, indent=2) + "\n", encoding="utf-8")
    click.echo(f"The demo's best stock setting is now {key}.")


if __name__ == "__main__":
    main()
