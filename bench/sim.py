"""How fast the simulator is: steps a second, a fleet study, cost against the number of requests.

Question: can a laptop answer a capacity question about 64 servers in minutes?
Command:  python bench/sim.py --json bench/sim.json       (--quick leaves the fleet study small)
Method:   CPU seconds of this process and wall seconds of the same run. ``steady`` keeps N requests
          decoding; ``churn`` lets Poisson arrivals come and go around N. ``fcfs`` runs with a
          fixed step-time model, since it looks at none; ``slack`` learns one as it always does.
          ``prefill only`` and ``decode`` work is priced like an 8B model on one H100.
Ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from headway import registry
from headway.engines.sim.fleet import Fleet
from headway.engines.sim.routers import LeastWork, RoundRobin, Router
from headway.engines.sim.run import SimRun
from headway.engines.virtual import VirtualCall, VirtualEngine
from headway.latency.fixed import FixedModel
from headway.latency.model import StepShape
from headway.latency.online import OnlineModel
from headway.latency.roofline import Roofline

CHAT = {"slo_ttft_ms": 1000, "slo_tbt_ms": 100}

H100 = Roofline(
    num_params=8e9,
    weight_bytes=1.6e10,
    kv_bytes_per_token=131_072.0,
    attention_flops_per_pair=524_288.0,
    flops_per_s=4e14,
    bytes_per_s=2.5e12,
    fixed_s=0.001,
)


def truth(shape: StepShape) -> float:
    """Seconds of a step of an 8B model on one H100, to within a few percent."""
    seconds = 0.00635 + 3.0e-6 * shape.num_decodes + 4.1e-8 * shape.sum_context_tokens
    if shape.num_prefill_tokens:
        seconds += 1.6e-5 * shape.num_prefill_tokens + 7.5e-10 * shape.chunk_context + 1.1e-4
    return seconds


def build(policy: str, num_blocks: int = 20_000) -> SimRun:
    """Return a server of the benchmark."""
    latency = OnlineModel(H100) if policy == "slack" else FixedModel(H100.coefficients())
    engine = VirtualEngine(num_blocks=num_blocks, max_num_batched_tokens=2048)
    return SimRun(engine, truth, registry.build(policy, latency=latency))


def poisson(num: int, rate_rps: float, mean_output: float, seed: int) -> list[VirtualCall]:
    """Return chat-like calls: prompts of 374 and outputs of *mean_output* tokens on average."""
    rng = np.random.default_rng(seed)
    at_s = np.cumsum(rng.exponential(1 / rate_rps, num)).tolist()
    prompts = (1 + rng.exponential(373, num)).astype(int).tolist()
    outputs = (1 + rng.exponential(mean_output - 1, num)).astype(int).tolist()
    return [
        VirtualCall(f"r{i}", at_s[i], min(prompts[i], 4000), min(outputs[i], 2000), CHAT, 2000)
        for i in range(num)
    ]


def timed(work: Callable[[], int]) -> dict[str, Any]:
    """Return how many steps *work* says it made, and what they cost."""
    wall_s, cpu_s = time.perf_counter(), time.process_time()
    steps = work()
    cpu_s, wall_s = time.process_time() - cpu_s, time.perf_counter() - wall_s
    return {
        "steps": steps,
        "cpu_s": round(cpu_s, 2),
        "wall_s": round(wall_s, 2),
        "steps_per_cpu_s": round(steps / cpu_s),
    }


def steady(policy: str, running: int, rounds: int) -> dict[str, Any]:
    """Return the speed with *running* requests that decode throughout."""
    steps = 3000 * rounds
    run = build(policy, running * (steps // 16 + 20))
    calls = [VirtualCall(f"r{i}", 0.0, 64, steps + i, CHAT, 10**6) for i in range(running)]
    return {"case": "steady", "policy": policy, "running": running} | timed(
        lambda: (run.run(calls), run.num_steps)[1]
    )


def churn(policy: str, running: int, num: int) -> dict[str, Any]:
    """Return the speed while requests of 200 tokens come and go around *running*."""
    step_s = 0.0075 + 2e-5 * running
    calls = poisson(num, running / (200 * step_s), 200.0, 1)
    run = build(policy)
    row = timed(lambda: (run.run(calls), run.num_steps)[1])
    tokens = sum(len(o.emitted_at_s) for o in run.outcomes.values())
    mean = round(tokens / run.num_steps, 1)
    return {"case": "churn", "policy": policy, "tokens_per_step": mean} | row


def linear(policy: str, num: int) -> dict[str, Any]:
    """Return the cost of *num* short requests on one server at one load."""
    run = build(policy)
    calls = poisson(num, 40.0, 20.0, 2)
    row = timed(lambda: (run.run(calls), run.num_steps)[1])
    row["cpu_us_per_request"] = round(1e6 * row["cpu_s"] / num, 1)
    return {"case": "linear", "policy": policy, "requests": num} | row


def fleet(policy: str, router: Router, num: int, servers: int) -> dict[str, Any]:
    """Return the cost of a fleet study at about 32 running requests a server."""
    calls = poisson(num, 14.0 * servers, 200.0, 3)
    study = Fleet(lambda index: build(policy), router, servers)
    facts: dict[str, Any] = {}

    def work() -> int:
        result = study.run(calls)
        facts["finished"] = sum(o.finish_reason == "stop" for o in result.outcomes.values())
        facts["tokens"] = sum(len(o.emitted_at_s) for o in result.outcomes.values())
        return result.num_steps

    row = timed(work)
    row.pop("steps_per_cpu_s")
    peak = max(
        resource.getrusage(who).ru_maxrss
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    )
    facts["tokens_per_step"] = round(facts["tokens"] / row["steps"], 1)
    facts["peak_gib_of_a_process"] = round(peak / 2**20, 2)
    name = type(router).__name__
    where = {"case": "fleet", "policy": policy, "router": name, "servers": servers}
    return where | {"requests": num} | row | facts


def main() -> None:
    """Run the cases and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of every case")
    parser.add_argument("--cases", default="steady,churn,linear,fleet")
    parser.add_argument("--policies", default="fcfs,slack")
    parser.add_argument("--json", default=None)
    given = parser.parse_args()
    cases, policies = given.cases.split(","), given.policies.split(",")
    tenth = 10 if given.quick else 1
    rows: list[dict[str, Any]] = []

    def note(row: dict[str, Any]) -> None:
        print(row, flush=True)
        rows.append(row)

    for policy in policies:
        for running in (32, 256) if "steady" in cases else ():
            note(steady(policy, running, 1 if given.quick else 4))
        if "churn" in cases:
            note(churn(policy, 32, 3000 // tenth))
        for num in (1000, 10_000, 100_000 // tenth) if "linear" in cases else ():
            note(linear(policy, num))
        if "fleet" in cases:
            note(fleet(policy, RoundRobin(), 100_000 // tenth, 64))
            note(fleet(policy, LeastWork(), 100_000 // tenth, 64))
    line = json.dumps({"bench": "sim", "rows": rows})
    if given.json:
        with open(given.json, "w", encoding="utf-8") as file:
            file.write(line + "\n")
    print(line)


if __name__ == "__main__":
    main()
