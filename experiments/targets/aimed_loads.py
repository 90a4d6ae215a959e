"""The loads of this experiment, and how one is served; runs on trees that know no targets too."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from headway.metrics.record import RequestRecord
from headway.study.spec import Load, Machine, RunSpec
from headway.study.virtual_run import execute
from headway.workloads import named
from headway.workloads.named import KindShare
from headway.workloads.schema import WorkloadRequest, write_jsonl

GPU = "llama-3.1-8b@h100"
NUM_REQUESTS, NUM_LEARNING = 900, 300
"""How many a run has, and how many of them are not judged."""

MIXES: dict[str, tuple[KindShare, ...]] = {
    "mixed": named.WORKLOADS["mixed"].parts,
    "chat and retrieval": (
        KindShare("azure-chat", "chat", 0.7),
        KindShare("retrieval", "retrieval", 0.3),
    ),
    "code and summary": (
        KindShare("azure-code", "code", 0.6),
        KindShare("summary", "summary", 0.4),
    ),
}

RATES: dict[str, tuple[float, ...]] = {
    "mixed": (24.0, 28.0, 36.0, 48.0),
    "chat and retrieval": (20.0, 28.0),
    "code and summary": (20.0, 28.0),
}
"""Requests a second, from about what is kept whole to twice that."""


def made(mix: str, rate_rps: float, seed: int, num: int = NUM_REQUESTS) -> list[WorkloadRequest]:
    """Return the requests of a load."""
    return named.of_parts(MIXES[mix], num, rate_rps, seed)


def slo_text(targets: Mapping[str, float], weights: Mapping[str, float]) -> str:
    """Return an SLO file: the named workloads', with targets and weights."""
    lines: list[str] = []
    for line in named.SLO_FILE.read_text("utf-8").splitlines():
        lines.append(line)
        if line.startswith("[classes."):
            name = line.removeprefix("[classes.").split("]")[0]
            for field, values in (("target", targets), ("weight", weights)):
                lines += [f"{field} = {values[name]}"] if name in values else []
    return "\n".join(lines) + "\n"


def served(
    requests: Sequence[WorkloadRequest], slo_file: str, seed: int
) -> Sequence[RequestRecord]:
    """Return what clients of the default policy saw; *slo_file* is the text of it."""
    with tempfile.TemporaryDirectory() as folder:
        write_jsonl(f"{folder}/load.jsonl", requests)
        Path(f"{folder}/slo.toml").write_text(slo_file, "utf-8")
        load = Load(f"{folder}/load.jsonl", seed=seed, slo_file=f"{folder}/slo.toml")
        return execute(RunSpec("headway", "sim", load, Machine(GPU, noise=0.05))).records


def kept(records: Sequence[RequestRecord], class_name: str | None = None) -> float:
    """Return the share of promises kept, of one class or of all."""
    mine = [r.attained for r in records if class_name in (None, r.slo.class_name)]
    return round(float(np.mean(mine)), 4)
