"""Question: which of stock vLLM's settings are worth a live run?

A live sweep of ten settings at two loads over three seeds takes three hours on two cores. So the
machine is calibrated from the recording of one live run, all settings are swept under the virtual
clock by vLLM's own scheduler code, and the best of each load is then run live (run.py). Writes
narrow.md beside itself.

    gunzip -k experiments/validation/recording.jsonl.gz
    python experiments/live/narrow.py experiments/validation/recording.jsonl
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import click

from headway import registry
from headway.study import stock
from headway.study.spec import Load, Machine, RunSpec
from headway.study.sweep import FinishedRuns, Run, mean_attainment, run_all
from headway.workloads.realtext import SLO_FILE, demo_workload
from headway.workloads.schema import write_jsonl

HERE = Path(__file__).parent
RATES_RPS = (0.4, 0.6)
SEEDS = (0, 1, 2)
KV_TOKENS, BLOCK_SIZE = 5088, 32


def calibrated(recording: Path, folder: Path) -> Path:
    """Return a profile made of the steps of *recording*."""
    path = folder / "cpu.json"
    command = [sys.executable, "-m", "headway", "calibrate", "--from-steps", str(recording),
               "--gpu", "cpu", "--model", "smollm2", "--kv-tokens", str(KV_TOKENS),
               "--kv-bytes-per-token", "46080", "--out", str(path)]  # fmt: skip
    subprocess.run(command, check=True)
    return path


def base_run(recording: Path, requests: int, num_seeds: int, folder: Path) -> RunSpec:
    """Return a run of the demo's traffic on the machine that *recording* shows."""
    trace = folder / "demo.jsonl"
    rows = demo_workload(requests * num_seeds, 1)
    write_jsonl(trace, [replace(row, prompt=None) for row in rows])
    gpu = str(calibrated(recording, folder))
    machine = Machine(gpu, KV_TOKENS, BLOCK_SIZE, max_num_seqs=128, noise=0.1)
    load = Load(str(trace), None, requests, 0, "poisson", str(SLO_FILE))
    return RunSpec(registry.DEFAULT, "vllm", load, machine)


@click.command()
@click.argument("recording", type=click.Path(path_type=Path, exists=True))
@click.option("--requests", default=40, show_default=True)
def main(recording: Path, requests: int) -> None:
    """Sweep stock vLLM's settings on the machine that RECORDING shows."""
    with tempfile.TemporaryDirectory() as name:
        base = base_run(recording, requests, len(SEEDS), Path(name))
        ledger = FinishedRuns()

        def run(specs: Sequence[RunSpec]) -> Mapping[str, Run]:
            return run_all(specs, ledger)

        ours = run([base.at(rate, seed) for rate in RATES_RPS for seed in SEEDS])
        tried = stock.sweep(base, RATES_RPS, SEEDS, run)
    lines = ["| setting | " + " | ".join(f"{rate:g}/s" for rate in RATES_RPS) + " |"]
    lines.append("|---|" + "---:|" * len(RATES_RPS))
    table = {knobs.flags: by_rate for knobs, by_rate in tried.runs.items()}
    table["**headway**"] = {r: [v for v in ours.values() if v["rate_rps"] == r] for r in RATES_RPS}
    for flags, by_rate in table.items():
        cells = [f"{mean_attainment(by_rate[rate]):.3f}" for rate in RATES_RPS]
        lines.append(f"| {flags} | " + " | ".join(cells) + " |")
    best = ", ".join(f"{tried.best_at(rate).flags} at {rate:g}/s" for rate in RATES_RPS)
    lines += ["", f"Best of stock: {best}."]
    text = "\n".join(lines) + "\n"
    click.echo(text)
    (HERE / "narrow.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
