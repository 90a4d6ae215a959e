"""Question: does a virtual run tell the truth about a real server?

Replays the two measured vLLM runs of LLMServingSim 2 (MIT) in Headway's virtual engines, with the
shipped profile as it is and with every step scaled by one fitted factor, and compares medians and
tails with what was measured. Writes results.json and the tables of docs/validation.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
from scipy.optimize import minimize_scalar

from headway import registry
from headway.engines.sim.run import SimRun
from headway.engines.virtual import VirtualCall, VirtualEngine
from headway.engines.vllm.bare import Engine
from headway.engines.vllm.harness import VirtualRun
from headway.latency import profile as profiles
from headway.latency.truth import Truth
from headway.workloads.public import traces

HERE = Path(__file__).parent
TRACES = traces() / "llmservingsim"
QUANTILES = (50, 90, 99)
FIGURES = ("TTFT", "TPOT", "end to end")


@dataclass(frozen=True)
class Case:
    """One measured run and the server it was measured on."""

    name: str
    file: str
    gpu: str
    kv_tokens: int
    max_num_seqs: int
    max_num_batched_tokens: int = 2048


CASES = (
    Case("RTX 4090, Llama-3.1-8B", "measured_RTX4090_Llama-3.1-8B_requests.jsonl",
         "llama-3.1-8b@rtx-4090", 41_408, 256),
    # The run does not say how much KV it had; two cards of 96 GB hold far more than it used.
    Case("2 x RTX PRO 6000, Qwen3-32B", "measured_RTXPRO6000_Qwen3-32B_requests.jsonl",
         "qwen3-32b@rtx-pro-6000x2", 380_000, 128),
)  # fmt: skip


def measured(case: Case, folder: Path) -> tuple[list[VirtualCall], np.ndarray]:
    """Return the calls, from 0 s, and the measured figures, shape (requests, 3), seconds."""
    rows = [json.loads(line) for line in (folder / case.file).read_text().splitlines()]
    start_s = min(row["queued_ts"] for row in rows)
    calls = [
        VirtualCall(
            row["request_id"],
            row["queued_ts"] - start_s,
            row["input_toks"],
            row["output_toks"],
        )
        for row in rows
    ]
    figures = [
        three(row["queued_ts"], row["first_token_ts"], row["last_token_ts"], row["output_toks"])
        for row in rows
    ]
    return calls, np.array(figures)


def three(arrived_s: float, first_s: float, last_s: float, count: int) -> tuple[float, ...]:
    """Return TTFT, TPOT (NaN for one token) and end-to-end seconds."""
    tpot_s = (last_s - first_s) / (count - 1) if count > 1 else float("nan")
    return first_s - arrived_s, tpot_s, last_s - arrived_s


def predicted(case: Case, calls: Sequence[VirtualCall], scale: float, engine: str) -> np.ndarray:
    """Return the same figures of a virtual run whose steps last *scale* times the profile's."""
    truth = Truth(profiles.load(case.gpu), scale=scale)
    num_blocks = case.kv_tokens // 16
    if engine == "vllm":
        server = Engine(
            num_blocks=num_blocks,
            max_num_batched_tokens=case.max_num_batched_tokens,
            max_num_seqs=case.max_num_seqs,
            asynchronous=True,
        )
        outcomes = VirtualRun(server, truth).run(calls)
    else:
        sim = VirtualEngine(
            num_blocks=num_blocks - 1,
            max_num_batched_tokens=case.max_num_batched_tokens,
            max_num_seqs=case.max_num_seqs,
            asynchronous=True,
        )
        outcomes = SimRun(sim, truth, registry.build("fcfs")).run(calls)
    found = [outcomes[call.request_id] for call in calls]
    return np.array(
        [
            three(o.call.arrived_at_s, o.emitted_at_s[0], o.emitted_at_s[-1], len(o.emitted_at_s))
            for o in found
        ]
    )


def quantiles(figures: np.ndarray) -> np.ndarray:
    """Return seconds, shape (figures, quantiles)."""
    return np.nanpercentile(figures, QUANTILES, axis=0).T


def fit(case: Case, calls: Sequence[VirtualCall], truth: np.ndarray) -> float:
    """Return the one factor on all step times that brings the quantiles closest, in logs."""

    def off(scale: float) -> float:
        ratio = quantiles(predicted(case, calls, scale, "sim")) / quantiles(truth)
        return float(np.sum(np.log(ratio) ** 2))

    return float(minimize_scalar(off, bounds=(0.6, 1.8), method="bounded").x)


def table(case: Case, rows: dict[str, np.ndarray]) -> str:
    """Return a Markdown table: measured quantiles, and how far each prediction is off."""
    truth = rows["measured"]
    lines = [
        f"### {case.name}",
        "",
        "| | " + " | ".join(f"{f} p{q}" for f in FIGURES for q in QUANTILES) + " |",
        "|---|" + "---:|" * 9,
    ]
    for name, values in rows.items():
        if name == "measured":
            cells = [f"{v * 1000:.0f} ms" if v < 1 else f"{v:.2f} s" for v in values.ravel()]
        else:
            cells = [f"{v:+.1%}" for v in (values / truth - 1).ravel()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


@click.command()
@click.option("--traces", default=TRACES, type=click.Path(path_type=Path), help="Measured runs.")
def main(traces: Path) -> None:
    """Replay, fit, compare, write."""
    if not traces.is_dir():
        click.echo(f"There are no measured runs in {traces}; name their folder with --traces.")
        sys.exit(2)
    document: dict[str, object] = {"schema": 1, "cases": {}}
    text = []
    for case in CASES:
        calls, figures = measured(case, traces)
        scale = fit(case, calls, figures)
        rows = {"measured": quantiles(figures)}
        for name, factor, engine in (
            ("profile as it is, vLLM's scheduler", 1.0, "vllm"),
            (f"steps x {scale:.3f}, vLLM's scheduler", scale, "vllm"),
            (f"steps x {scale:.3f}, Headway's simulator (fcfs)", scale, "sim"),
        ):
            rows[name] = quantiles(predicted(case, calls, factor, engine))
        text.append(table(case, rows))
        click.echo(text[-1])
        document["cases"][case.name] = {  # type: ignore[index]
            "scale": scale,
            **{name: values.tolist() for name, values in rows.items()},
        }
    (HERE / "results.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (HERE / "results.md").write_text("\n".join(text), encoding="utf-8")


if __name__ == "__main__":
    main()
