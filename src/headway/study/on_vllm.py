"""A run on vLLM's own scheduler class, stock or steered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from headway.engines.journal import Journal, PlanTimes
from headway.engines.virtual import VirtualCall
from headway.errors import UserError
from headway.latency.profile import Profile
from headway.latency.truth import Truth
from headway.slo import SloBook
from headway.study import on_sim
from headway.study.run_outcome import RunOutcome, quantiles_us
from headway.study.spec import RunSpec
from headway.study.told import ToldChances

if TYPE_CHECKING:
    from headway.engines.vllm.bare import Engine


def serve(
    spec: RunSpec,
    gpus: Sequence[Profile],
    truth_of: Callable[[int], Truth],
    calls: Sequence[VirtualCall],
    book: SloBook,
    keep_steps: bool,
) -> RunOutcome:
    """Run *calls* through vLLM's scheduler under a virtual clock.

    Args:
        gpus: The profile of the server, alone.

    Raises:
        UserError: vLLM is not installed, or the machine has several replicas.
    """
    try:
        from headway.engines.vllm import quiet  # noqa: F401  Before vLLM.
        from headway.engines.vllm.harness import VirtualRun
    except ImportError:
        raise UserError(
            "--engine vllm needs vLLM (make setup installs it); --engine sim does not."
        ) from None
    if len(gpus) != 1:
        raise UserError("--engine vllm runs one server; several need --engine sim.")
    run = VirtualRun(engine_of(spec, gpus[0]), truth_of(0), keep_steps=keep_steps)
    times = PlanTimes()
    if not spec.is_stock:
        run.scheduler.headway_book = book
        told = ToldChances(run.scheduler.headway)
        journal = run.scheduler.headway = Journal(run.scheduler.headway, times, told)
    outcomes = run.run(calls)
    if not spec.is_stock:
        journal.close()
    served = RunOutcome(
        outcomes=outcomes,
        rows=run.rows,
        capacity_tokens=run.capacity_tokens,
        num_recomputed=run.num_preemptions - run.link.num_swapped,
        num_swapped=run.link.num_swapped,
        plan_us=quantiles_us(times.seconds),
        num_asides=None if spec.is_stock else run.scheduler.headway_aside.num_steps,
    )
    return served if spec.is_stock else told.added_to(served)


def engine_of(spec: RunSpec, profile: Profile) -> Engine:
    """Return the engine a spec asks for: its machine, and vLLM's settings or Headway's."""
    from headway.engines.vllm.bare import Engine

    machine, knobs = spec.machine, spec.knobs
    base = on_sim.engine_of(machine, profile)
    step_tokens = knobs.max_num_batched_tokens or base.max_num_batched_tokens
    headway = {"policy": spec.policy, "overload": spec.overload, "options": dict(spec.options)}
    sizes: dict[str, Any] = asdict(base) | {
        "num_blocks": base.num_blocks + 1,  # vLLM keeps one for itself.
        "max_num_batched_tokens": step_tokens,
        "max_num_seqs": min(base.max_num_seqs, step_tokens),
        "host_blocks": 0 if spec.is_stock else base.host_blocks,
    }
    return Engine(
        **sizes,
        # vLLM does not start with more than its cache holds: a longer request would wait for ever.
        # With several groups as long as fits whatever the size of a step: none counted as bounded.
        max_model_len=max(base.num_blocks // len(machine.attention), 1) * machine.block_size,
        scheduling_policy="priority" if knobs.by_class else "fcfs",
        watermark=knobs.watermark or None,
        max_num_queued_tokens=knobs.max_num_queued_tokens,
        headway=None if spec.is_stock else headway,
        groups=tuple(machine.attention),
    )
