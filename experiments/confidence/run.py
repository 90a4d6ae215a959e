"""Question: does any fixed quantile of the output lengths suit every load, and does weighing?

Three workloads at three loads each, from comfortable to overload under KV pressure: the policy
``headway`` with each fixed quantile and with admission weighed by cost. Writes results.json and
results.md beside itself.
"""

from __future__ import annotations

import json
from pathlib import Path

import click

from headway.study.spec import Load, Machine, RunSpec
from headway.study.sweep import Ledger, mean_attainment, run_all

HERE = Path(__file__).parent
GPU = "llama-3.1-8b@h100"
KV_TOKENS = {"long-outputs": 41_408, "retrieval": 20_000, "mixed": 20_000}
"""Small enough that KV, not compute, is what is short."""

QUANTILES = (0.1, 0.3, 0.5, 0.8, 0.95)
LOADS = {
    "long-outputs": (0.8, 1.4, 2.2),
    "retrieval": (3.0, 5.0, 8.0),
    "mixed": (5.0, 8.0, 12.0),
}
"""Requests per second: comfortable, near capacity, overload."""


def spec(workload: str, rate_rps: float, seed: int, requests: int, options: dict) -> RunSpec:
    """Return one run."""
    load = Load(workload, rate_rps, requests, seed)
    machine = Machine(GPU, kv_tokens=KV_TOKENS[workload], noise=0.05)
    return RunSpec("headway", "sim", load, machine, options=options)


@click.command()
@click.option("--requests", default=400, show_default=True)
@click.option("--seeds", default=5, show_default=True)
@click.option("--workers", default=None, type=int)
@click.option("--only", default="", help="Only these contenders, such as weighed,0.5.")
def main(requests: int, seeds: int, workers: int | None, only: str) -> None:
    """Run what is missing and write the table."""
    contenders: dict[str, dict] = {"weighed": {}, **{str(q): {"confidence": q} for q in QUANTILES}}
    if only:
        contenders = {name: contenders[name] for name in only.split(",")}
    specs = {
        (name, workload, rate, seed): spec(workload, rate, seed, requests, options)
        for name, options in contenders.items()
        for workload, rates in LOADS.items()
        for rate in rates
        for seed in range(seeds)
    }
    runs = run_all(specs.values(), Ledger(HERE / "results.part"), workers)
    lines = ["| workload | rate | " + " | ".join(contenders) + " |"]
    lines.append("|---|---:|" + "---:|" * len(contenders))
    table: list[dict[str, object]] = []
    for workload, rates in LOADS.items():
        for rate in rates:
            cells = []
            for name in contenders:
                keys = [specs[name, workload, rate, seed].key() for seed in range(seeds)]
                kept = [runs[key]["attainment"] for key in keys]
                mean = mean_attainment(runs[key] for key in keys)
                preempted = sum(sum(runs[key]["preemptions"].values()) for key in keys)
                cells.append(f"{mean:.3f} ({preempted})")
                table.append({"workload": workload, "rate_rps": rate, "confidence": name,
                              "attainment": kept, "preemptions": preempted})  # fmt: skip
            lines.append(f"| {workload} | {rate:g}/s | " + " | ".join(cells) + " |")
    lines += ["", "Share of promises kept, mean of the seeds (preemptions, all seeds).", ""]
    text = "\n".join(lines)
    click.echo(text)
    (HERE / "results.json").write_text(json.dumps({"schema": 1, "rows": table}, indent=1) + "\n")
    (HERE / "results.md").write_text(text)


if __name__ == "__main__":
    main()
