"""What no policy can exceed on a load: :mod:`headway.oracle.bound` for the runs of a study."""

from __future__ import annotations

from headway.engines.attention_kinds import FULL
from headway.errors import UserError
from headway.latency import profile as profiles
from headway.oracle.bound import bound
from headway.study.on_sim import engine_of
from headway.study.requests import book_of, calls_of, requests_of
from headway.study.spec import RunSpec
from headway.study.stock import BATCHED_SHARES


def check_bound(spec: RunSpec) -> None:
    """Check that the bound holds for runs like *spec*.

    Raises:
        UserError: Something of the machine is outside what it was proved for.
    """
    machine = spec.machine
    outside = {
        "leave out --replicas and --replica-gpu": len(machine.gpus) != 1,
        "use --no-prefix-caching": machine.prefix_caching,
        "leave out --noise": machine.noise > 0,
        "leave out --drift": machine.drift is not None,
        "leave out --attention": machine.attention != FULL,
    }
    for remedy, is_on in outside.items():
        if is_on:
            raise UserError(
                f"--bound holds for one server, one group of layers, no shared prefixes and steps"
                f" that cost what the profile says; {remedy}."
            )


def bound_of(spec: RunSpec) -> float:
    """Return the share of requests that no policy can exceed on the load and machine of *spec*.

    Stock vLLM is tuned with larger steps than the profile's, so its bound allows for them.

    Raises:
        UserError: See :func:`check_bound` and :func:`~headway.oracle.bound.bound`.
    """
    check_bound(spec)
    profile = profiles.load(spec.machine.gpu)
    engine = engine_of(spec.machine, profile)
    widest = max(*BATCHED_SHARES, 1) if spec.is_stock else 1
    requests = requests_of(spec.load)
    _, slos = calls_of(requests, book_of(spec.load))
    return bound(
        requests,
        slos,
        profile.cost,
        engine.num_blocks * engine.block_size,
        int(widest * engine.max_num_batched_tokens),
        scale=1.0 + spec.machine.step_time_band,
    )
