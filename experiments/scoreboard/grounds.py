"""Where the scoreboard is played: the public traces that are there, and the synthetic mixes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from headway import registry
from headway.study.highest_rate import highest_rate
from headway.study.paper_grid import NamedPolicy, RunMany, Traffic
from headway.study.spec import Machine, RunSpec
from headway.study.sweep import mean_attainment
from headway.workloads.public import traces

HERE = Path(__file__).parent
TRACES = traces()

LOADS = (0.5, 1.0, 1.5, 2.0, 3.0)
"""Of the rate at which first come, first served with its best chunk keeps 90 %."""

UNIT_TOLERANCE = 0.1
"""How exactly that rate is found: it only places the loads."""

CHUNKS = (256, 512, 2048)
"""Sarathi's, beside vLLM's default of 8,192 tokens a step."""

H100 = Machine("llama-3.1-8b@h100", noise=0.05)
PRESSED = replace(H100, kv_tokens=41_408)

CACHED = {"turns", "agents", "mooncake, prefix caching"}
"""Workloads served with prefix caching: their prompts begin with what was computed before."""

TOO_LONG = {"mooncake", "mooncake, prefix caching", "agents"}
"""Workloads whose prompts exceed the short cache, or fill it with one session or two."""


@dataclass(frozen=True, slots=True)
class Ground:
    """A workload and the machine it is served on."""

    name: str
    traffic: Traffic
    machine: Machine

    def run_of(self, contender: NamedPolicy, num_requests: int, overload: str) -> RunSpec:
        """Return a run, its rate still open."""
        load = self.traffic.load(num_requests)
        return RunSpec(
            contender.policy, "sim", load, self.machine, overload, options=contender.options
        )


def grounds(folder: Path) -> list[Ground]:
    """Return every ground whose trace is there: with a short KV cache, then with a full one."""
    code, long = str(HERE / "code.toml"), str(HERE / "long.toml")
    azure = folder / "azure2023" / "AzureLLMInferenceTrace_code.csv"
    arxiv = folder / "vidur" / "arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv"
    sharegpt = folder / "sarathi" / "sharegpt_8k_filtered_stats_llama2_tokenizer.csv"
    mooncake = folder / "mooncake" / "synthetic_trace.jsonl"
    played = {
        "azure-2023-code": Traffic(str(azure), (), code),
        "mixed": Traffic("mixed", ()),
        "retrieval": Traffic("retrieval", ()),
        "arxiv": Traffic(str(arxiv), (), code, arrivals="poisson"),
        "sharegpt-8k": Traffic(str(sharegpt), (), code, arrivals="poisson"),
        "long-outputs": Traffic("long-outputs", (), times=0.5),
        "mooncake": Traffic(str(mooncake), (), long, times=0.5),
        # As many requests as it takes for sessions to end in a run.
        "turns": Traffic("turns", (), times=5),
        "agents": Traffic("agents", (), times=3),
        "mooncake, prefix caching": Traffic(str(mooncake), (), long, times=0.5),
    }
    there = {
        name: traffic
        for name, traffic in played.items()
        if "/" not in traffic.source or Path(traffic.source).exists()
    }
    return [
        *(
            Ground(f"{name}, KV short", traffic, replace(PRESSED, prefix_caching=name in CACHED))
            for name, traffic in there.items()
            if name not in TOO_LONG
        ),
        *(
            Ground(name, traffic, replace(H100, prefix_caching=name in CACHED))
            for name, traffic in there.items()
        ),
    ]


def everybody() -> list[NamedPolicy]:
    """Return every preset; Sarathi with each of its chunks."""
    found = [NamedPolicy(name, name) for name in registry.names() if name != "sarathi"]
    return [*found, *(NamedPolicy(f"sarathi {n}", "sarathi", {"chunk_tokens": n}) for n in CHUNKS)]


def unit_rps(ground: Ground, requests: int, seeds: Sequence[int], run: RunMany) -> float:
    """Return the highest rate at which Sarathi's best chunk keeps 90 %, mean of the seeds."""
    best = 0.0
    for contender in everybody():
        if contender.policy != "sarathi":
            continue
        spec = ground.run_of(contender, requests, "demote")

        def kept(rate_rps: float, spec: RunSpec = spec) -> float:
            specs = [spec.at(round(rate_rps, 3), seed) for seed in seeds]
            return mean_attainment(run(specs).values())

        best = max(best, highest_rate(kept, 0.9, best or 4.0, UNIT_TOLERANCE))
    return round(best, 2)
