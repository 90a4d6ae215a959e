"""The options every virtual run has, and the specs they stand for."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from headway import registry
from headway.cli.fleet_options import FLEET_OPTIONS, fleet_of
from headway.cli.stacked import Command, stacked
from headway.cli.trace_options import read_options, trace_options
from headway.cli.values import whole
from headway.engines.attention_kinds import FULL, kinds_of
from headway.errors import UserError
from headway.latency import profile as profiles
from headway.study.requests import book_of, is_file, requests_of, shares_prefixes
from headway.study.spec import STOCK_WAYS, Load, Machine, RunSpec
from headway.study.virtual_run import parse_drift
from headway.workloads.schema import number

DEFAULT_GPU = "llama-3.1-8b@h100"

_OPTIONS = [
    click.option("--trace", help="A trace file: Headway, Mooncake or timed_trace JSONL, CSV."),
    click.option("--workload", help="A named workload instead of a file."),
    click.option("--slo", help="SLO file (TOML) with the classes."),
    click.option("--policy", default=registry.DEFAULT, show_default=True, help="Names, A,B,…"),
    click.option("--engine", type=click.Choice(["sim", "vllm"]), default="sim", show_default=True,
                 help="Our simulator, or vLLM's own scheduler code."),
    click.option("--requests", help="Requests per run [600; a file: all of it]."),
    click.option("--max-tokens", help="Every client's limit on the output [the workload's]."),
    click.option("--seed", "seeds", default="0", show_default=True, help="Seeds, S,S,…"),
    click.option("--arrivals", help="poisson, gamma:CV, trace, … [poisson; a file: trace]."),
    click.option("--gpu", default=DEFAULT_GPU, show_default=True, help="Step-time profile."),
    click.option("--kv-tokens", help="KV cache in tokens [the profile's]."),
    click.option("--block-size", default="16", show_default=True, help="Tokens per KV block."),
    click.option("--attention", default="full", show_default=True,
                 help="Groups of layers, e.g. full,sliding:1024x5 (--engine vllm)."),
    click.option("--max-num-seqs", help="Requests running at once [the profile's]."),
    click.option("--overload", type=click.Choice(registry.OVERLOADS), default="demote",
                 show_default=True, help="Serve lost promises last, or refuse them."),
    click.option("--options", "policy_options", default="{}", help="Options of the policy, JSON."),
    click.option("--step-time-band", is_flag=True, help="Also with steps 20 % shorter and longer."),
    click.option("--noise", default="0", show_default=True, help="Spread of step times."),
    click.option("--drift", help="E.g. jump:0.5@3000: 50 % longer steps from step 3000 on."),
    click.option("--async-scheduling/--sync-scheduling", "asynchronous", default=False,
                 help="Schedule one step ahead."),
    click.option("--prefix-caching/--no-prefix-caching", default=None,
                 help="Reuse the KV of shared prefixes [on if the load has some]."),
    click.option("--host-kv-tokens", help="Host memory for swapped KV [none: recompute]."),
    click.option("--copy-gib-s", default="25", show_default=True, help="Its bandwidth."),
    *FLEET_OPTIONS,
    click.option("--workers", help="Parallel processes [one per core]."),
]  # fmt: skip


def run_options(command: Command) -> Command:
    """Add the options of a virtual run to a command; it receives them as keywords."""
    command = trace_options(command)
    return stacked(_OPTIONS, command)


def spec_of(given: dict[str, Any]) -> RunSpec:
    """Return the run that the options describe, at the first policy, rate and seed.

    Raises:
        UserError: A value is not allowed; everything that can be known before a run is checked.
    """
    trace, workload = given["trace"], given["workload"]
    if (trace is None) == (workload is None):
        raise UserError("Give either --trace FILE or --workload NAME.")
    if trace is not None and not Path(trace).is_file():
        raise UserError(f"Cannot read the trace {trace}: no such file.")
    if workload is not None and is_file(workload):
        from headway.workloads import named

        raise UserError(
            f"--workload {workload!r:.60} is not known; it can be {', '.join(named.names())}."
        )
    source = str(trace or workload)
    load = Load(
        source=source,
        num_requests=whole("--requests", given["requests"]),
        seed=seeds_of(given["seeds"])[0],
        arrivals=given["arrivals"],
        slo_file=given["slo"],
        max_output_tokens=whole("--max-tokens", given["max_tokens"]),
        reading=read_options(given, is_file=trace is not None),
        digest=_digest([path for path in (trace, given["slo"]) if path is not None]),
    )
    book_of(load)
    profiles.load(given["gpu"])
    if given["drift"]:
        parse_drift(given["drift"])
    fleet = fleet_of(given)
    machine = Machine(
        kv_tokens=whole("--kv-tokens", given["kv_tokens"]),
        block_size=whole("--block-size", given["block_size"]) or 16,
        max_num_seqs=whole("--max-num-seqs", given["max_num_seqs"]),
        noise=number("--noise", "the spread", given["noise"], minimum=0.0),
        drift=given["drift"],
        asynchronous=given["asynchronous"],
        prefix_caching=_prefix_caching(given["prefix_caching"], load),
        host_tokens=whole("--host-kv-tokens", given["host_kv_tokens"]) or 0,
        copy_gib_per_s=number(
            "--copy-gib-s", "a bandwidth", given["copy_gib_s"], minimum=0.0, above=True
        ),
        attention=attention_of(given["attention"], given["engine"]),
        **{"gpu": given["gpu"], **fleet},
    )
    options = _object("--options", given["policy_options"])
    policy = policies_of(given["policy"], given["engine"], given["overload"], options)[0]
    return RunSpec(policy, given["engine"], load, machine, given["overload"], options)


def _prefix_caching(given: bool | None, load: Load) -> bool:
    """Return what was given, else whether the load has prompts that begin alike.

    vLLM caches prefixes unless told not to. Where nobody begins alike only preempted requests
    would find something, and the simulator is quicker without.
    """
    return shares_prefixes(load) if given is None else given


def attention_of(text: str, engine: str) -> tuple[str, ...]:
    """Read ``full,sliding:1024x5``.

    Raises:
        UserError: A kind is not known, or the engine has one group that keeps every token.
    """
    kinds = kinds_of(text)
    if kinds != FULL and engine != "vllm":
        raise UserError("--attention other than full needs vLLM's own scheduler: --engine vllm.")
    return kinds


def check_load(spec: RunSpec) -> None:
    """Read the workload once, so that its mistakes are told before anything runs."""
    requests_of(spec.load)


def policies_of(text: str, engine: str, overload: str, options: dict[str, Any]) -> list[str]:
    """Return the policies named in *text*.

    Raises:
        UserError: One is not known, does not take the options, or cannot run on the engine.
    """
    found = list(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not found:
        raise UserError("--policy must name at least one policy.")
    for name in found:
        if name in STOCK_WAYS:
            if engine != "vllm":
                raise UserError(
                    f"{name} is vLLM's own code: use --engine vllm, or fcfs on --engine sim."
                )
        elif name in registry.names():
            registry.build(name, overload=overload, options=options)
        else:
            known = ", ".join((*STOCK_WAYS, *registry.names()))
            raise UserError(f"Policy {name!r:.60} is not known; the policies are {known}.")
    return found


def bands_of(spec: RunSpec, wanted: bool) -> list[RunSpec]:
    """Return the run, and with *wanted* also with steps 20 % shorter and longer."""
    bands = (0.0, -0.2, 0.2) if wanted else (0.0,)
    return [replace(spec, machine=replace(spec.machine, step_time_band=b)) for b in bands]


def rates_of(text: str | None) -> list[float | None]:
    """Read ``4,7,10``; ``None`` keeps the times of the trace."""
    if text is None:
        return [None]
    parts = [part.strip() for part in text.split(",") if part.strip()]
    rates = [number("--rate", "a rate", part, minimum=0.0, above=True) for part in parts]
    if not rates:
        raise UserError("--rate must be one or more requests per second, such as 4,7,10.")
    return list(dict.fromkeys(rates))


def seeds_of(text: str) -> list[int]:
    """Read ``0,1,2``."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() and len(part) < 10 for part in parts):
        raise UserError(f"--seed must be whole numbers of at least 0, such as 0,1,2; not {text!r}.")
    return list(dict.fromkeys(int(part) for part in parts))


def _object(flag: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise UserError(f"{flag} must be a JSON object such as '{{\"max_wait_s\": 60}}'.")
    return value


def _digest(paths: Sequence[str]) -> str:
    """Return a digest of the contents of files."""
    total = hashlib.sha256()
    for path in paths:
        try:
            with Path(path).open("rb") as file:
                total.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise UserError(f"Cannot read {path}: {error.strerror}.") from None
    return total.hexdigest()[:12] if paths else ""
