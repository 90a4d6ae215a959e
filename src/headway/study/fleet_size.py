"""How many servers keep enough promises, and what a kept promise then costs."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from headway.errors import UserError
from headway.latency import profile as profiles
from headway.latency.model import StepShape
from headway.latency.profile import Profile
from headway.study.requests import requests_of
from headway.study.spec import RunSpec
from headway.study.sweep import Run, mean_attainment
from headway.workloads.schema import WorkloadRequest

MOST_SERVERS = 1024
"""The search ends here: beyond, a deployment is several of them."""

LEAST_GAIN = 0.001
"""A share of promises. Twice as many servers bring nothing where they do not keep so much more."""

RunSeeds = Callable[[RunSpec], Sequence[Run]]
"""Returns the summaries of a run over all seeds."""


@dataclass(frozen=True, slots=True)
class FleetSize:
    """The fewest servers that keep a share of the promises.

    Attributes:
        target: The share.
        kept: The share that each number of servers tried keeps, mean over the seeds.
        num_servers: The fewest that keep the target; ``None`` where none of those tried does.
        num_shown: As many, else those that keep the most.
        runs: The runs with so many servers as are shown, one a seed.
        gpu_s_per_kept: GPU-seconds for each promise kept with so many, while requests arrive.
    """

    target: float
    kept: Mapping[int, float]
    num_servers: int | None
    num_shown: int
    runs: Sequence[Run]
    gpu_s_per_kept: float | None


def size_of(spec: RunSpec, target: float, seeds: Sequence[int], run_seeds: RunSeeds) -> FleetSize:
    """Return the fewest servers like that of *spec* which keep *target* of its promises.

    Raises:
        UserError: The load has no requests.
    """
    requests = requests_of(spec.load)
    most = min(MOST_SERVERS, len(requests))
    found: dict[int, Sequence[Run]] = {}

    def kept_at(num_servers: int) -> float:
        if num_servers not in found:
            machine = replace(spec.machine, num_replicas=num_servers)
            found[num_servers] = run_seeds(replace(spec, machine=machine))
        return mean_attainment(found[num_servers])

    profile = profiles.load(spec.machine.gpu)
    start = min(math.ceil(work_s(requests, profile) / span_s(requests)), most)
    fewest = fewest_servers(kept_at, target, start, most)
    shares = {count: mean_attainment(found[count]) for count in sorted(found)}
    shown = fewest or max(shares, key=lambda count: shares[count])
    runs = found[shown]
    kept = sum(run["num_attained"] for run in runs)
    busy_s = sum(span_s(requests_of(spec.at(spec.load.rate_rps, seed).load)) for seed in seeds)
    gpu_s = shown * gpus_of(profile) * busy_s
    return FleetSize(
        target,
        shares,
        fewest,
        shown,
        runs,
        gpu_s / kept if kept else None,
    )


def fewest_servers(
    kept_at: Callable[[int], float], target: float, start: int, most: int
) -> int | None:
    """Return the fewest servers of which *target* is kept, ``None`` if none was found.

    Doubles from *start* until the target is kept, *most* are tried or twice as many bring nothing,
    twice in a row; else halves from *start*: where prompts begin alike, more servers that share
    them out by load alone keep less. Then bisects. One number that keeps the target is found whose
    predecessor does not.
    """
    low, high, flat = 0, max(start, 1), 0
    while kept_at(high) < target:
        gain = kept_at(high) - kept_at(low) if low else 1.0
        flat = 0 if gain >= LEAST_GAIN else flat + 1
        if high >= most or flat == 2:
            low, high = 0, start // 2
            while high and kept_at(high) < target:
                high //= 2
            break
        low, high = high, min(2 * high, most)
    if not high:
        return None
    between = range(low + 1, high)
    return low + 1 + bisect_left(between, True, key=lambda count: kept_at(count) >= target)


def work_s(requests: Sequence[WorkloadRequest], profile: Profile) -> float:
    """Return the seconds that one server takes at least, every step as full as it may be."""
    tokens, seqs = profile.max_num_batched_tokens, profile.max_num_seqs
    prompt_s = profile.step_s(StepShape(tokens, 1)) / tokens
    output_s = profile.step_s(StepShape(0, 0, seqs, 0)) / seqs
    return sum(r.num_prompt_tokens * prompt_s + r.num_output_tokens * output_s for r in requests)


def span_s(requests: Sequence[WorkloadRequest]) -> float:
    """Return the seconds in which *requests* arrive at their mean rate.

    Raises:
        UserError: They arrive at one instant.
    """
    covered_s = requests[-1].arrived_at_s - requests[0].arrived_at_s
    if covered_s <= 0.0:
        raise UserError("Requests that all arrive at one instant have no rate to plan servers for.")
    return covered_s * len(requests) / (len(requests) - 1)


def gpus_of(profile: Profile) -> int:
    """Return the GPUs of one server: its tensor parallelism."""
    digits = profile.parallelism.removeprefix("tp")
    return int(digits) if digits.isdecimal() else 1
