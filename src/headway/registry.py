"""Who plans, by name: the default, the two papers, the rivals. Each runs on every engine.

Adding a rival costs a file under ``rivals/``, its import and its entry here (docs/structure.md).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from headway.errors import UserError
from headway.kit.options import one_of, positive_s
from headway.kit.parts import ComposedPlanner, Parts
from headway.latency.model import LatencyModel
from headway.latency.online import OnlineModel
from headway.papers.accelgen import preset as accelgen
from headway.papers.cacheopt import preset as cacheopt
from headway.policy.decide import Headway
from headway.policy.planner import Planner
from headway.policy.scheduler import Scheduler
from headway.policy.swap_choice import SWAPS
from headway.rivals import (
    fastgen,
    fastserve,
    fcfs,
    orca,
    pastfuture,
    qoserve,
    rlp,
    s3,
    sarathi,
    slack,
    sliding,
    trt_noevict,
    vllm_v0,
    xllm,
)


def headway(max_wait_s: float = 300.0, swap: str = "cheaper") -> Planner:
    """Return the default policy, :class:`~headway.policy.decide.Headway`.

    Args:
        max_wait_s: Bound on how long best effort may wait for its turn.
        swap: ``"cheaper"`` copies a victim's KV to the host where that takes fewer seconds than
            computing it again; ``"recompute"`` never does;
            ``"always"`` does where the host has room, to try it out.

    Raises:
        UserError: An option is not what it must be.
    """
    return Headway(positive_s("max_wait_s", max_wait_s), SWAPS[one_of("swap", swap, SWAPS)]())


PRESETS: dict[str, Callable[..., Parts | Planner]] = {
    "fcfs": fcfs.parts,
    "sarathi": sarathi.parts,
    "slack": slack.parts,
    "accelgen": accelgen.planner,
    "headway": headway,
    "cacheopt": cacheopt.parts,
    "orca": orca.parts,
    "trt_noevict": trt_noevict.parts,
    "fastgen": fastgen.parts,
    "s3": s3.parts,
    "rlp": rlp.parts,
    "fastserve": fastserve.planner,
    "pastfuture": pastfuture.parts,
    "qoserve": qoserve.parts,
    "xllm": xllm.planner,
    "sliding": sliding.parts,
    "vllm_v0": vllm_v0.planner,
}

DEFAULT = "headway"

OVERLOADS = ("demote", "refuse")


def names() -> tuple[str, ...]:
    """Return the presets."""
    return tuple(PRESETS)


def build(
    name: str = DEFAULT,
    *,
    overload: str = "demote",
    options: Mapping[str, Any] | None = None,
    latency: LatencyModel | None = None,
) -> Scheduler:
    """Return a scheduler of the preset *name*.

    Args:
        options: Keyword arguments of the preset, such as ``{"max_wait_s": 60}``.

    Raises:
        UserError: The name, the overload mode or an option is not known.
    """
    if not isinstance(name, str) or name not in PRESETS:
        raise UserError(f"Policy {name!r} is not known; the policies are {', '.join(PRESETS)}.")
    if not isinstance(overload, str) or overload not in OVERLOADS:
        raise UserError(f"overload must be one of {', '.join(OVERLOADS)}, not {overload!r}.")
    try:
        made = PRESETS[name](**dict(options or {}))
    except TypeError:
        allowed = ", ".join(inspect.signature(PRESETS[name]).parameters) or "none"
        raise UserError(
            f"Policy {name!r} does not take {sorted(options or {})}; its options: {allowed}."
        ) from None
    planner = made if isinstance(made, Planner) else ComposedPlanner(made)
    return Scheduler(name, planner, latency or OnlineModel(), overload)
