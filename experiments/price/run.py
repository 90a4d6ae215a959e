"""Question: does a promise few clients ask for, and that is dear to keep, hurt the others?

A share of the clients of a named workload asks for a tight first token or tight gaps. Each case is
run three ways: *ours* as it is, *ignored* with the tight ones told to the server as requests that
promise nothing, and *served*, which is *ours* of a checkout before it (``--as served``). Kept is
counted by what was asked for, whatever the server was told. Writes results.json beside itself, one
case at a time; what is there is not run again.

    python experiments/price/run.py                     # two ways, about half an hour
    python experiments/price/run.py --only mixed --seeds 1
    python experiments/price/run.py --overload refuse --every 3 --seeds 1 --out refuse.json
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np

from headway import registry
from headway.engines.sim.run import SimRun
from headway.engines.virtual import VirtualCall, VirtualEngine
from headway.latency import profile
from headway.latency.truth import Truth
from headway.metrics.define import attained
from headway.slo import Slo
from headway.study.named_rows import measure_missing
from headway.study.requests import calls_of
from headway.workloads import named

HERE = Path(__file__).parent
GPU = profile.load("llama-3.1-8b@h100")
KV_TOKENS = 400_000
LOADS = {"mixed": (9.0, 18.0, 27.0), "azure-chat": (16.0, 32.0, 48.0)}
"""By workload: half, once and one and a half times what the server can keep."""

ASKS: dict[str, dict[str, Any]] = {
    "ttft 20": {"ttft_s": 0.02},
    "ttft 40": {"ttft_s": 0.04},
    "ttft 100": {"ttft_s": 0.1},
    "ttft 200": {"ttft_s": 0.2},
    "gap 1.1": {"tbt_s": 0.0077},
    "gap 1.7": {"tbt_s": 0.012},
    "gap 3": {"tbt_s": 0.021},
}
"""What the few ask for: first token in ms, or gaps in steps of one decode (7 ms)."""

SHARES = (0.01, 0.05, 0.2)


def case(
    name: str,
    rate: float,
    ask: str,
    share: float,
    seed: int,
    way: str,
    num: int,
    policy: str,
    overload: str,
) -> dict[str, Any]:
    """Run one case one way; return what the few and the others kept."""
    requests = named.make(name, num, rate, seed)
    rng = np.random.default_rng([seed, 0x7147])
    tight = {r.id for r in requests if rng.random() < share}
    calls, slos = calls_of(requests, named.book(name))
    asked = {i: Slo(**ASKS[ask]) if i in tight else slo for i, slo in slos.items()}
    told: list[VirtualCall] = []
    fields = {f"slo_{k.removesuffix('_s')}_ms": v * 1000 for k, v in ASKS[ask].items()}
    for call in calls:
        is_tight = call.request_id in tight
        xargs = {} if way == "ignored" else fields
        told.append(replace(call, xargs=xargs) if is_tight else call)
    engine = VirtualEngine(
        num_blocks=KV_TOKENS // 16,
        max_num_batched_tokens=GPU.max_num_batched_tokens,
        max_num_seqs=GPU.max_num_seqs,
    )
    core = registry.build(policy, overload=overload)
    outcomes = SimRun(engine, Truth(GPU), core, book=named.book(name)).run(told)
    good = {}
    for call in calls:
        i, at_s = call.request_id, outcomes[call.request_id].emitted_at_s
        is_done = len(at_s) == call.num_output_tokens
        good[i] = attained(asked[i], call.arrived_at_s, at_s, finished=is_done)
    few = [good[i] for i in good if i in tight]
    others = [good[i] for i in good if i not in tight]
    ended = max(o.emitted_at_s[-1] for o in outcomes.values() if o.emitted_at_s)
    return {
        "few": round(float(np.mean(few)), 4) if few else None,
        "others": round(float(np.mean(others)), 4),
        "all": round(float(np.mean(few + others)), 4),
        "duration_s": round(ended, 3),
    }


def cases(
    only: Sequence[str], asks: Sequence[str], seeds: Sequence[int], every: int
) -> Iterator[tuple[Any, ...]]:
    """Yield every case, or one in so many: as often of each rate, and of each ask and share."""
    for name, rates in LOADS.items():
        for (i, rate), (j, ask), (k, share) in product(
            enumerate(rates), enumerate(ASKS), enumerate(SHARES)
        ):
            is_wanted = (not only or name in only) and (not asks or ask in asks)
            if is_wanted and (i + j + k) % every == 0:
                for seed in seeds:
                    yield name, rate, ask, share, seed


@click.command()
@click.option("--as", "named_as", default="ours", help="Name of what is run: ours or served.")
@click.option("--only", multiple=True, help="A workload; all by default.")
@click.option("--ask", multiple=True, help="What the few ask for; all by default.")
@click.option("--seeds", default="1,2", show_default=True)
@click.option("--every", default=1, help="One case in so many, evenly chosen.")
@click.option("--overload", default="demote", type=click.Choice(["demote", "refuse"]))
@click.option("--requests", default=600)
@click.option("--policy", default="headway")
@click.option("--out", default="results.json", help="Beside this file.")
def main(
    named_as: str,
    only: tuple[str, ...],
    ask: tuple[str, ...],
    seeds: str,
    every: int,
    overload: str,
    requests: int,
    policy: str,
    out: str,
) -> None:
    """Run what is not in the file yet."""
    ways = {"ours": ("ours", "ignored"), "ignored": ("ignored",)}.get(named_as, (named_as,))
    tasks = (
        ("|".join(str(part) for part in (*one, way)), case, (*one, way, requests, policy, overload))
        for one in cases(only, ask, [int(seed) for seed in seeds.split(",")], every)
        for way in ways
    )
    measure_missing(HERE / out, tasks, click.echo, is_kept=True)


if __name__ == "__main__":
    main()
