"""A run on Headway's own simulator by a policy that knows the future.

The oracle is no preset of the registry: it is built for one load, with the true length of each
output and the profile's own step times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from headway.engines.virtual import VirtualCall
from headway.errors import UserError
from headway.latency.profile import Profile
from headway.latency.truth import Truth
from headway.oracle.bound import scaled
from headway.oracle.fast_model import StepModel
from headway.oracle.policy import scheduler
from headway.oracle.search import search
from headway.oracle.simulated import SimulatedPlayer, server_of
from headway.slo import Slo, SloBook
from headway.study.on_sim import engine_of, serve_alone
from headway.study.run_outcome import RunOutcome
from headway.study.spec import RunSpec
from headway.workloads.schema import WorkloadRequest

ORACLE = "oracle"
"""The policy's name in a run's spec."""

SIMULATED_PLAYS = 12
"""Orders tried in the simulator after the hundreds tried in the fast model."""


def check_oracle(spec: RunSpec) -> None:
    """Check that the oracle can serve *spec*.

    Raises:
        UserError: Its engine or machine is not one whose future is known.
    """
    machine = spec.machine
    if spec.engine != "sim":
        raise UserError(f"Policy {ORACLE!r} knows the future: it runs on --engine sim only.")
    if len(machine.gpus) != 1:
        raise UserError(
            f"Policy {ORACLE!r} plans one server; leave out --replicas and --replica-gpu."
        )
    if machine.drift:
        raise UserError(
            f"Policy {ORACLE!r} is told the profile's step times; leave out --drift,"
            " which makes them others."
        )
    if spec.options:
        raise UserError(f"Policy {ORACLE!r} takes no options, not {sorted(spec.options)}.")


def serve(
    spec: RunSpec,
    profile: Profile,
    truth: Truth,
    requests: Sequence[WorkloadRequest],
    calls: Sequence[VirtualCall],
    slos: Mapping[str, Slo],
    book: SloBook,
    keep_steps: bool,
) -> RunOutcome:
    """Search an order for exactly these requests, and serve them in it.

    Args:
        truth: What steps really take; the oracle is told their seconds without the noise.

    Raises:
        UserError: See :func:`check_oracle`.
    """
    check_oracle(spec)
    engine = engine_of(spec.machine, profile)
    scale = 1.0 + spec.machine.step_time_band
    cost, told = scaled(profile.cost, scale), Truth(profile, scale=scale)
    seed = spec.load.seed
    found = search(StepModel(requests, slos, server_of(engine, cost)), seed=seed)
    player = SimulatedPlayer(requests, calls, slos, engine, cost, told, book, spec.overload)
    found = search(player, seed=seed, max_plays=SIMULATED_PLAYS, start=found)
    policy = scheduler(found, requests, told, spec.overload)
    return serve_alone(engine, truth, policy, calls, book, keep_steps)
