"""Presets by name. Adding one costs a file under ``presets/`` and a line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from headway.errors import UserError
from headway.latency.model import LatencyModel
from headway.latency.online import OnlineModel
from headway.policy.presets import (
    accelgen,
    cacheopt,
    fastgen,
    fastserve,
    fcfs,
    headway,
    orca,
    pastfuture,
    qoserve,
    rlp,
    s3,
    sarathi,
    sliding,
    trt_noevict,
    xllm,
)
from headway.policy.scheduler import Parts, Scheduler

PRESETS: dict[str, Callable[..., Parts]] = {
    "fcfs": fcfs.parts,
    "sarathi": sarathi.parts,
    "slack": partial(headway.parts, confidence=0.5, swap="recompute"),
    "accelgen": accelgen.parts,
    "headway": headway.parts,
    "cacheopt": cacheopt.parts,
    "orca": orca.parts,
    "trt_noevict": trt_noevict.parts,
    "fastgen": fastgen.parts,
    "s3": s3.parts,
    "rlp": rlp.parts,
    "fastserve": fastserve.parts,
    "pastfuture": pastfuture.parts,
    "qoserve": qoserve.parts,
    "xllm": xllm.parts,
    "sliding": sliding.parts,
}

DEFAULT = "headway"

OVERLOADS = ("demote", "refuse")


def names() -> tuple[str, ...]:
    """Return the presets; each runs on every engine."""
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
        parts = PRESETS[name](**dict(options or {}))
    except TypeError:
        import inspect

        allowed = ", ".join(inspect.signature(PRESETS[name]).parameters) or "none"
        raise UserError(
            f"Policy {name!r} does not take {sorted(options or {})}; its options: {allowed}."
        ) from None
    return Scheduler(name, parts, latency or OnlineModel(), overload)
