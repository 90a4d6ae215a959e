"""Question: does a tenant who floods the server lose its own promises, and not its neighbours'?

Loads of several tenants, written as workloads that say who pays, are served on Headway's simulator
with 5 % noise; stock vLLM, where it is compared, by its own scheduler. Writes results.json beside
itself, one row at a time; what is there is not run again. table.py makes results.md from it.

    python experiments/tenants/run.py                          # all; about an hour of one core
    python experiments/tenants/run.py --only flood --seeds 1
    python experiments/tenants/run.py --dry --quick            # 4 s of load; writes nothing
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from headway.metrics.record import RequestRecord
from headway.policy import tenants
from headway.study.named_rows import Task, measure_missing
from headway.study.spec import STOCK, EngineName, Load, Machine, RunSpec
from headway.study.virtual_run import execute
from headway.workloads import named
from headway.workloads.arrivals import Arrivals
from headway.workloads.schema import WorkloadRequest, write_jsonl

HERE = Path(__file__).parent
SHORT_TOKENS = 41_408

GROUNDS: dict[str, tuple[str, int | None, float]] = {
    "mixed": ("mixed", None, 24.7),
    "mixed, KV short": ("mixed", SHORT_TOKENS, 11.3),
    "retrieval": ("retrieval", None, 11.3),
    "retrieval, KV short": ("retrieval", SHORT_TOKENS, 9.5),
}
"""Workload, tokens of KV and the requests a second of which 90 % are kept."""

FLOOD_TIMES, QUIET_TIMES, NUM_QUIET = 5.0, 0.15, 4
"""What the flooder and each of the four others send, in times the capacity."""

LOAD_S = 40.0
NUM_REQUESTS = 600
"""How long floods last, and how many requests the other loads have."""

FLOODS: dict[str, dict[str, Any]] = {
    "as the others": {},
    "weight 1000": {"weight": 1000.0},
    "ttft 50 ms": {"ttft_slo_s": 0.05},
    "no promise": {"slo_class": None},
    "gaps 20 ms": {"tbt_slo_s": 0.02},
    "prompts x 8": {},
    "later": {},
    "bursts": {},
}
"""What the flooder's requests have that the others' have not."""

PROMPT_TIMES = 8
LATER = 0.5
"""Of the load, how much has passed when a flooder begins that is *later* than the others."""

BURSTS = Arrivals.parse("onoff:10:10")

EQUAL_TIMES = (1.0, 1.5, 2.0)
UNPROMISED_TIMES = 1.3
SHARED_TIMES = 4.0

CONSTANTS = {"AS_MUCH": (1.25, 2.0), "LATELY_S": (10.0, 100.0)}
"""What each constant of policy/tenants.py is tried at, beside what it is."""

VARIED = ("mixed", "mixed, KV short")
"""Grounds of the constants."""


def made(
    ground: str,
    rates: Mapping[str, float],
    seed: int,
    load_s: float,
    kind: str = "as the others",
) -> list[WorkloadRequest]:
    """Return the requests of all tenants, in order of arrival; rates are in times the capacity."""
    workload, _, capacity_rps = GROUNDS[ground]
    requests: list[WorkloadRequest] = []
    for k, (tenant, times) in enumerate(rates.items()):
        rate_rps = times * capacity_rps
        is_odd = tenant == "flood"
        arrivals = BURSTS if is_odd and kind == "bursts" else named.POISSON
        begins_s = LATER * load_s if is_odd and kind == "later" else 0.0
        num = max(round(rate_rps * (load_s - begins_s)), 1)
        for r in named.make(workload, num, rate_rps, 100 * seed + k, arrivals):
            at_s = begins_s + r.arrived_at_s
            one = replace(r, id=f"{tenant}-{r.id}", tenant=tenant, arrived_at_s=at_s)
            if is_odd:
                one = replace(one, **FLOODS[kind])
                if kind.startswith("prompts"):
                    one = replace(one, num_prompt_tokens=PROMPT_TIMES * r.num_prompt_tokens)
            requests.append(one)
    return sorted(requests, key=lambda r: (r.arrived_at_s, r.id))


def served(
    ground: str,
    requests: Sequence[WorkloadRequest],
    seed: int,
    overload: str = "demote",
    policy: str = "headway",
    top: str = "",
    tables: str = "",
) -> Sequence[RequestRecord]:
    """Return what clients saw; *top* and *tables* are lines of the SLO file."""
    classes = named.SLO_FILE.read_text("utf-8").replace('default = "chat"', "")
    machine = Machine("llama-3.1-8b@h100", kv_tokens=GROUNDS[ground][1], noise=0.05)
    with tempfile.TemporaryDirectory() as folder:
        source, slo_file = f"{folder}/load.jsonl", f"{folder}/slo.toml"
        write_jsonl(source, requests)
        Path(slo_file).write_text(f"{top}\n{classes}\n{tables}\n", "utf-8")
        load = Load(source, seed=seed, slo_file=slo_file)
        engine: EngineName = "vllm" if policy == STOCK else "sim"
        return execute(RunSpec(policy, engine, load, machine, overload)).records


def kept(records: Sequence[RequestRecord], tenant: str = "") -> float:
    """Return the share of promises kept, of the tenants whose names begin so; 1 without any."""
    promised = [r for r in records if r.slo.is_promise]
    mine = [r.attained for r in promised if r.slo.tenant.startswith(tenant)]
    return round(float(np.mean(mine)), 4) if mine else 1.0


QUIET = {f"quiet-{i}": QUIET_TIMES for i in range(NUM_QUIET)}


def alone(ground: str, overload: str, seed: int, load_s: float) -> dict[str, Any]:
    """Return what the four keep without the flooder."""
    return {"quiet": kept(served(ground, made(ground, QUIET, seed, load_s), seed, overload))}


def flood(
    ground: str, overload: str, kind: str, seed: int, load_s: float, is_one: bool = False
) -> dict[str, Any]:
    """Return what the four keep beside the flooder; *is_one* leaves out who pays."""
    requests = made(ground, {**QUIET, "flood": FLOOD_TIMES}, seed, load_s, kind)
    who = {r.id: r.tenant or "" for r in requests}
    sent = [replace(r, tenant=None) for r in requests] if is_one else requests
    records = served(ground, sent, seed, overload)
    records = [replace(r, slo=replace(r.slo, tenant=who[r.id])) for r in records]
    return {
        "quiet": kept(records, "quiet"),
        "least": min(kept(records, name) for name in QUIET),
        "flood": kept(records, "flood"),
        "all": kept(records),
    }


def equal(ground: str, times: float, seed: int, num: int) -> dict[str, Any]:
    """Return what is kept of five equal tenants, and of the same requests of nobody's."""
    load_s = num / (times * GROUNDS[ground][2])
    requests = made(ground, {f"t{i}": times / 5 for i in range(5)}, seed, load_s)
    five = served(ground, requests, seed)
    one = served(ground, [replace(r, tenant=None) for r in requests], seed)
    each = [kept(five, f"t{i}") for i in range(5)]
    return {"five": kept(five), "one": kept(one), "least": min(each), "most": max(each)}


def half(ground: str, way: str, seed: int, num: int) -> dict[str, Any]:
    """Return what is kept, and when those who asked for no promise see their first token."""
    workload, _, capacity_rps = GROUNDS[ground]
    requests = named.make(workload, num, UNPROMISED_TIMES * capacity_rps, seed)
    rng = np.random.default_rng([seed, 0x0A1F])
    plain = {r.id for r in requests if rng.random() < 0.5}
    sent = [replace(r, slo_class=None) if r.id in plain else r for r in requests]
    top = "" if way == STOCK else f'unpromised = "{way}"'
    records = served(ground, sent, seed, policy=STOCK if way == STOCK else "headway", top=top)
    first_s = [r.emitted_at_s[0] - r.arrived_at_s for r in records if r.id in plain]
    p50_s, p95_s = (round(float(np.quantile(first_s, q)), 4) for q in (0.5, 0.95))
    return {
        "kept": kept([r for r in records if r.id not in plain]),
        "p50_s": p50_s,
        "p95_s": p95_s,
    }


def shares(ground: str, seed: int, load_s: float) -> dict[str, Any]:
    """Return how much more is kept of a tenant with twice the share, both sending too much."""
    rates = {"two": SHARED_TIMES / 2, "one": SHARED_TIMES / 2}
    records = served(
        ground, made(ground, rates, seed, load_s), seed, tables="[tenants.two]\nshare = 2"
    )
    both = {name: kept(records, name) for name in rates}
    return {**both, "ratio": round(both["two"] / max(both["one"], 1e-9), 3), "all": kept(records)}


@contextmanager
def constant(name: str, value: float) -> Iterator[None]:
    """Change a constant of policy/tenants.py for a while."""
    before = getattr(tenants, name)
    setattr(tenants, name, value)
    try:
        yield
    finally:
        setattr(tenants, name, before)


def varied(
    name: str, value: float, ground: str, seed: int, load_s: float, num: int
) -> dict[str, Any]:
    """Return what changes with a constant: two floods, five equal tenants, shares."""
    with constant(name, value):
        return {
            "plain": flood(ground, "demote", "as the others", seed, load_s)["quiet"],
            "bursts": flood(ground, "demote", "bursts", seed, load_s)["quiet"],
            "five": equal(ground, 1.5, seed, num)["five"],
            "ratio": shares(ground, seed, load_s)["ratio"],
        }


def tasks(seeds: int, load_s: float, num: int) -> Iterator[Task]:
    """Yield the name of each row and what makes it: what is to be accepted first."""
    for seed in range(seeds):
        for ground in GROUNDS:
            for overload in ("demote", "refuse"):
                yield f"alone|{ground}|{overload}|{seed}", alone, (ground, overload, seed, load_s)
                key, args = "flood|as the others", (ground, overload, "as the others", seed, load_s)
                yield f"{key}|{ground}|{overload}|{seed}", flood, args
            for way in ("fair", "last", STOCK):
                yield f"half|{way}|{ground}|{seed}", half, (ground, way, seed, num)
            for times in EQUAL_TIMES:
                yield f"equal|{times:g}|{ground}|{seed}", equal, (ground, times, seed, num)
    for ground in GROUNDS:
        for seed in range(min(seeds, 2)):
            yield f"shares|{ground}|{seed}", shares, (ground, seed, load_s)
    yield from more_tasks(min(seeds, 2), load_s, num)


def more_tasks(seeds: int, load_s: float, num: int) -> Iterator[Task]:
    """Yield floods of other kinds, floods without accounts, and the constants."""
    for seed in range(seeds):
        for ground in VARIED:
            for kind in list(FLOODS)[1:]:
                args: tuple[Any, ...] = (ground, "demote", kind, seed, load_s)
                yield f"flood|{kind}|{ground}|demote|{seed}", flood, args
            args = (ground, "demote", "as the others", seed, load_s, True)
            yield f"flood|one tenant|{ground}|demote|{seed}", flood, args
    for seed in range(seeds):
        for ground in VARIED:
            now = ("AS_MUCH", tenants.AS_MUCH)
            tried = [(name, value) for name, values in CONSTANTS.items() for value in values]
            for name, value in (now, *tried):
                label = "as it is" if (name, value) == now else f"{name} = {value:g}"
                args = (name, value, ground, seed, load_s, num)
                yield f"constant|{label}|{ground}|{seed}", varied, args


@click.command()
@click.option("--only", default="", help="Rows whose name holds this.")
@click.option("--seeds", default=5, show_default=True)
@click.option("--quick", is_flag=True, help="A tenth of the load; goes with --dry.")
@click.option("--dry", is_flag=True, help="Write nothing.")
def main(only: str, seeds: int, quick: bool, dry: bool) -> None:
    """Run what is not in the file yet."""
    if quick and not dry:
        raise click.UsageError("--quick measures too little to be kept; add --dry.")
    size = (LOAD_S / 10, NUM_REQUESTS // 10) if quick else (LOAD_S, NUM_REQUESTS)
    measure_missing(HERE / "results.json", tasks(seeds, *size), click.echo, only, is_kept=not dry)


if __name__ == "__main__":
    main()
