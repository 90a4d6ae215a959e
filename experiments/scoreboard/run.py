"""Question: who keeps the most promises, over every trace, with and without KV pressure?

Every preset on every workload, at loads from half to three times the capacity of stock vLLM's best
setting for each load, over seeds. Stock vLLM runs by its own code; the presets run on
Headway's simulator, which schedules what vLLM's scheduler does, step for step (tests/conformance/
test_two_engines.py). Writes results.json and results.md beside itself; a stopped run goes on.

    python experiments/scoreboard/run.py --traces FOLDER
    python experiments/scoreboard/run.py --no-stock --seeds 1 --requests 300 --overload demote

The second leaves stock vLLM out, the slowest part by far: a look, not a result. It writes nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from headway.cli.run_options import progress
from headway.policy import registry
from headway.study import stock
from headway.study.capacity import highest_rate
from headway.study.spec import STOCK_WAYS, Load, Machine, RunSpec
from headway.study.sweep import Ledger, Run, mean_attainment, run_all

HERE = Path(__file__).parent
TRACES = HERE.parents[1].parent / "shared" / "traces"
LOADS = (0.5, 1.0, 1.5, 2.0, 3.0)
"""Of the capacity of stock vLLM's best setting at 90 % attainment."""


SARATHI_CHUNKS = (256, 512, 2048)
Runs = dict[tuple[str, float], list[Run]]
"""Runs over seeds, by policy and rate."""


@dataclass(frozen=True)
class Ground:
    """A workload and the machine it is served on."""

    name: str
    source: str
    machine: Machine
    arrivals: str | None = None
    slo_file: str | None = None


H100 = Machine("llama-3.1-8b@h100", noise=0.05)
PRESSED = replace(H100, kv_tokens=41_408)
SLO_CODE = str(HERE / "code.toml")
SLO_LONG = str(HERE / "long.toml")


def grounds(traces: Path) -> list[Ground]:
    """Return the shared traces that are there, and the synthetic mixes, pressed and not."""
    azure = traces / "azure2023" / "AzureLLMInferenceTrace_code.csv"
    files = [
        ("azure-2023-code", azure, SLO_CODE, None),
        ("mooncake", traces / "mooncake" / "synthetic_trace.jsonl", SLO_LONG, None),
        ("sharegpt-8k", traces / "sarathi" / "sharegpt_8k_filtered_stats_llama2_tokenizer.csv",
         SLO_CODE, "poisson"),
        ("arxiv", traces / "vidur"
         / "arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv", SLO_CODE, "poisson"),
    ]  # fmt: skip
    found = [
        Ground(f"{name}{suffix}", str(path), machine, arrivals, slo)
        for name, path, slo, arrivals in files
        if path.exists()
        for suffix, machine in (("", H100), (", KV short", replace(PRESSED)))
        if not (name == "mooncake" and suffix)  # Its longest prompts exceed the short cache.
    ]
    for name in ("mixed", "long-outputs", "retrieval"):
        found.append(Ground(name, name, H100))
        found.append(Ground(f"{name}, KV short", name, PRESSED))
    return found


class Board:
    """Runs and remembers."""

    def __init__(self, seeds: int, requests: int, workers: int | None) -> None:
        self.seeds = list(range(seeds))
        self.requests = requests
        self.workers = workers
        self.console = Console()
        self.ledger = Ledger(HERE / "results.part")

    def run(self, specs: Sequence[RunSpec]) -> Mapping[str, Run]:
        """Run what is missing."""
        with progress(self.console, "scoreboard", len(specs)) as advance:
            return run_all(specs, self.ledger, self.workers, lambda spec, run: advance())

    def base(self, ground: Ground, policy: str, overload: str) -> RunSpec:
        """Return a run of *policy*, its rate still open."""
        load = Load(
            ground.source,
            num_requests=self.requests,
            arrivals=ground.arrivals,
            slo_file=ground.slo_file,
        )
        engine = "vllm" if policy in STOCK_WAYS else "sim"
        return RunSpec(policy, engine, load, ground.machine, overload)  # type: ignore[arg-type]

    def capacity(self, ground: Ground) -> float:
        """Return where fcfs with the best of three chunks keeps 90 %: the unit of the loads."""
        best = 0.0
        for tokens in SARATHI_CHUNKS:
            spec = self.contender(ground, f"sarathi {tokens}", "demote")

            def kept(rate_rps: float, spec: RunSpec = spec) -> float:
                one = spec.at(rate_rps, 0)
                return float(run_all([one], self.ledger, 1)[one.key()]["attainment"] or 0.0)

            best = max(best, highest_rate(kept, 0.9, 4.0))
        return round(best, 2)

    def contender(self, ground: Ground, label: str, overload: str) -> RunSpec:
        """Return a run of a policy; a number behind its name is its chunk."""
        policy, _, tokens = label.partition(" ")
        base = self.base(ground, policy, overload)
        return replace(base, options={"chunk_tokens": int(tokens)}) if tokens else base

    def tuned(self, ground: Ground, rates: Sequence[float], overload: str) -> Runs:
        """Return the runs of stock vLLM's three ways."""
        tried = stock.sweep(self.base(ground, "stock", overload), rates, self.seeds, self.run)
        runs: Runs = {}
        for way in STOCK_WAYS:
            found = tried.as_policy(way)
            if way == "stock":
                found = [run for group in tried.runs[stock.Knobs()].values() for run in group]
            for run in found:
                runs.setdefault((way, run["rate_rps"]), []).append(run)
        return runs

    def play(
        self, ground: Ground, policies: Sequence[str], overload: str, with_stock: bool
    ) -> list[dict[str, Any]]:
        """Return one row a policy and load; Sarathi comes with each of its chunks."""
        unit = self.capacity(ground)
        rates = [round(load * unit, 3) for load in LOADS]
        runs = self.tuned(ground, rates, overload) if with_stock else {}
        chunks = [f"sarathi {tokens}" for tokens in SARATHI_CHUNKS]
        labels = [p for p in policies if p != "sarathi"]
        specs = {
            (policy, rate, seed): self.contender(ground, policy, overload).at(rate, seed)
            for policy in (*labels, *(chunks if "sarathi" in policies else ()))
            for rate in rates
            for seed in self.seeds
        }
        done = self.run(list(specs.values()))
        for (policy, rate, _), spec in specs.items():
            runs.setdefault((policy, rate), []).append(done[spec.key()])
        return [
            {"ground": ground.name, "overload": overload, "unit_rps": unit, "policy": policy,
             "load": LOADS[rates.index(rate)], "rate_rps": rate,
             "attainment": mean_attainment(group),
             "per_seed": [run["attainment"] for run in group],
             "goodput_rps": sum(run["goodput_rps"] for run in group) / len(group)}
            for (policy, rate), group in runs.items()
        ]  # fmt: skip


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return one table a ground: policies by loads."""
    parts = []
    for ground, overload in dict.fromkeys((row["ground"], row["overload"]) for row in rows):
        here = [r for r in rows if (r["ground"], r["overload"]) == (ground, overload)]
        parts.append(f"### {ground}, {overload} (1 × = {here[0]['unit_rps']:g} requests/s)\n")
        parts.append("| policy | " + " | ".join(f"{load:g} ×" for load in LOADS) + " |")
        parts.append("|---|" + "---:|" * len(LOADS))
        for policy in dict.fromkeys(row["policy"] for row in here):
            kept = {row["load"]: row["attainment"] for row in here if row["policy"] == policy}
            parts.append(f"| {policy} | " + " | ".join(f"{kept[x]:.3f}" for x in LOADS) + " |")
        parts.append("")
    return "\n".join(parts)


@click.command()
@click.option("--traces", default=TRACES, type=click.Path(path_type=Path))
@click.option("--seeds", default=5, show_default=True)
@click.option("--requests", default=400, show_default=True)
@click.option("--policy", "policies", default=",".join(registry.names()), help="A,B,…")
@click.option("--overload", default="demote,refuse", show_default=True)
@click.option("--ground", "wanted", default="", help="Only those whose name holds this.")
@click.option("--stock/--no-stock", "with_stock", default=True, help="Sweep stock vLLM too.")
@click.option("--workers", default=None, type=int)
def main(
    traces: Path,
    seeds: int,
    requests: int,
    policies: str,
    overload: str,
    wanted: str,
    with_stock: bool,
    workers: int | None,
) -> None:
    """Play every ground and write the tables."""
    board = Board(seeds, requests, workers)
    rows: list[dict[str, Any]] = []
    for ground in grounds(traces):
        if wanted in ground.name:
            for mode in overload.split(","):
                rows += board.play(ground, policies.split(","), mode, with_stock)
                if with_stock:
                    document = json.dumps({"schema": 1, "rows": rows}, indent=1)
                    (HERE / "results.json").write_text(document)
                    (HERE / "results.md").write_text(markdown(rows))
    click.echo(markdown(rows))


if __name__ == "__main__":
    main()
