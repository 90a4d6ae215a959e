"""A run on Headway's own simulator: any policy of the registry, one server or a fleet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from headway import registry
from headway.engines.journal import Journal, PlanTimes
from headway.engines.sim.fleet import Fleet, FleetResult
from headway.engines.sim.routers import ROUTERS, Router
from headway.engines.sim.run import SimRun
from headway.engines.virtual import StepRow, VirtualCall, VirtualEngine
from headway.errors import UserError
from headway.kit.lengths import Oracle
from headway.latency import profile as profiles
from headway.latency.profile import Profile
from headway.latency.truth import Truth
from headway.papers.cacheopt.c1_lengths import HoeffdingPadding
from headway.policy.scheduler import Scheduler
from headway.slo import SloBook
from headway.study.run_outcome import RunOutcome, quantiles_us
from headway.study.spec import Machine, RunSpec
from headway.study.told import ToldChances


def router_of(name: str) -> Router:
    """Return a new router by name.

    Raises:
        UserError: There is none of that name.
    """
    if name not in ROUTERS:
        raise UserError(f"--router {name!r:.60} is not known; it can be {', '.join(ROUTERS)}.")
    return ROUTERS[name]()


def serve(
    spec: RunSpec,
    gpus: Sequence[Profile],
    truth_of: Callable[[int], Truth],
    calls: Sequence[VirtualCall],
    book: SloBook,
    keep_steps: bool,
) -> RunOutcome:
    """Run *calls* through the simulator; steps are kept for a single server only.

    Args:
        gpus: The profile of each server.
        truth_of: Returns the step times of the server of an index.
    """
    machine = spec.machine

    def policy() -> Scheduler:
        policy = registry.build(spec.policy, overload=spec.overload, options=spec.options)
        if spec.length_error is not None:
            _tell_lengths(policy, calls, spec.length_error, spec.load.seed)
        return policy

    router = router_of(machine.router)
    engines = [engine_of(machine, profile) for profile in gpus]
    if len(engines) == 1:
        return serve_alone(engines[0], truth_of(0), policy(), calls, book, keep_steps)
    result = Fleet(
        lambda index: SimRun(engines[index], truth_of(index), policy(), book=book),
        router,
        len(engines),
        num_retries=machine.num_retries,
        signal_age_s=machine.signal_age_s,
    ).run(calls)
    smallest = min(engines, key=lambda engine: engine.num_blocks)
    return replace(_served(smallest, result, [], []), fleet=result)


def serve_alone(
    engine: VirtualEngine,
    truth: Truth,
    policy: Scheduler,
    calls: Sequence[VirtualCall],
    book: SloBook,
    keep_steps: bool,
) -> RunOutcome:
    """Run *calls* through one simulated server."""
    times, told = PlanTimes(), ToldChances(policy)
    journal = Journal(policy, times, told)
    run = SimRun(engine, truth, journal, book=book, keep_steps=keep_steps)
    run.run(calls)
    journal.close()
    served = _served(engine, run, run.steps, times.seconds)
    return told.added_to(served)


def _served(
    engine: VirtualEngine, run: SimRun | FleetResult, rows: list[StepRow], plan_s: Sequence[float]
) -> RunOutcome:
    return RunOutcome(
        outcomes=run.outcomes,
        rows=rows,
        capacity_tokens=engine.num_blocks * engine.block_size,
        num_recomputed=run.num_preemptions.get("recompute", 0),
        num_swapped=run.num_preemptions.get("swap", 0),
        plan_us=quantiles_us(plan_s),
    )


def _tell_lengths(
    policy: Scheduler, calls: Sequence[VirtualCall], spread: float, seed: int
) -> None:
    """Let the policy's padding rest on the true lengths, off by a log-normal factor.

    Raises:
        UserError: The policy pads no predictions.
    """
    padding = policy.known.lengths
    if not isinstance(padding, HoeffdingPadding):
        raise UserError(f"Policy {policy.name!r} pads no predicted length: use cacheopt with C1.")
    lengths = {call.request_id: call.num_output_tokens for call in calls}
    padding.inner = Oracle(lengths, spread, seed)


def smallest_cache_tokens(machine: Machine) -> int:
    """Return the KV tokens of the server that has the fewest: what fits there, fits everywhere."""
    engines = [engine_of(machine, profiles.load(gpu)) for gpu in set(machine.gpus)]
    return min(engine.num_blocks * engine.block_size for engine in engines)


def engine_of(machine: Machine, profile: Profile) -> VirtualEngine:
    """Return the server that *machine* describes on this GPU."""
    capacity_tokens = machine.kv_tokens or profile.kv_capacity_tokens
    engine = VirtualEngine(
        num_blocks=max(capacity_tokens // machine.block_size, 1),
        block_size=machine.block_size,
        max_num_batched_tokens=profile.max_num_batched_tokens,
        max_num_seqs=machine.max_num_seqs or profile.max_num_seqs,
        asynchronous=machine.asynchronous,
        prefix_caching=machine.prefix_caching,
        host_blocks=machine.host_tokens // machine.block_size,
        copy_gib_per_s=machine.copy_gib_per_s,
    )
    if profile.kv_bytes_per_token:
        engine = replace(engine, kv_bytes_per_token=profile.kv_bytes_per_token)
    return engine
