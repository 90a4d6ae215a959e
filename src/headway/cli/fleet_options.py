"""The options of several servers: how many, on which GPUs, and who gets a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

from headway.cli.values import MOST, is_given, whole
from headway.engines.sim.routers import ROUTERS
from headway.errors import UserError
from headway.latency import profile as profiles
from headway.study.on_sim import router_of
from headway.workloads.schema import number

MOST_SERVERS = 4096
"""Servers of a fleet: each has a scheduler of its own, and one process runs them all."""

FLEET_OPTIONS = [
    click.option("--replicas", default="1", show_default=True, help="Servers (--engine sim)."),
    click.option("--replica-gpu", metavar="GPU:N,…",
                 help="Servers by profile, instead of --gpu and --replicas."),
    click.option("--router", default="round-robin", show_default=True,
                 help=f"How a server is chosen: {', '.join(ROUTERS)}."),
    click.option("--retry-elsewhere", default="0", show_default=True, metavar="K",
                 help="Other servers that a refused request tries."),
    click.option("--signal-age", default="0", show_default=True, metavar="S",
                 help="Seconds between a router's updates of server load."),
]  # fmt: skip


def fleet_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of :class:`~headway.study.spec.Machine` that these options say.

    Raises:
        UserError: A value is not allowed, or two options say different things.
    """
    router_of(given["router"])
    found: dict[str, Any] = {
        "num_replicas": _at_most("--replicas", whole("--replicas", given["replicas"])),
        "router": given["router"],
        "num_retries": _retries(given["retry_elsewhere"]),
        "signal_age_s": number("--signal-age", "seconds", given["signal_age"], minimum=0.0),
    }
    if given["replica_gpu"] is not None:
        for other in ("gpu", "replicas"):
            if is_given(other):
                raise UserError(f"Give --{other} or --replica-gpu, not both.")
        groups = replica_gpus_of(given["replica_gpu"])
        total = sum(count for _, count in groups)
        found |= {"gpu": groups[0][0], "replica_gpus": groups, "num_replicas": total}
    if given["engine"] == "vllm" and found["num_replicas"] > 1:
        raise UserError("--engine vllm runs one server; several need --engine sim.")
    if found["num_retries"] and found["num_replicas"] == 1:
        raise UserError("--retry-elsewhere needs another server: give --replicas or --replica-gpu.")
    return found


def replica_gpus_of(text: str) -> tuple[tuple[str, int], ...]:
    """Read ``a:4,b:4``: profiles, and how many servers have each.

    Raises:
        UserError: It reads otherwise, or a profile is not known.
    """
    groups: Sequence[tuple[str, str, str]] = [
        part.strip().rpartition(":") for part in text.split(",") if part.strip()
    ]
    if not groups or not all(name and count.isdecimal() for name, _, count in groups):
        raise UserError(
            "--replica-gpu must be profiles and numbers of servers, such as"
            f" llama-3.1-8b@h100:4,llama-3.1-8b@a100:4, not {text!r:.60}."
        )
    for name, _, _ in groups:
        profiles.load(name)
    found = tuple((name, whole("--replica-gpu", count)) for name, _, count in groups)
    _at_most("--replica-gpu", sum(count for _, count in found))
    return found


def _at_most(flag: str, count: int) -> int:
    if count > MOST_SERVERS:
        raise UserError(f"{flag} may ask for at most {MOST_SERVERS} servers, not {count}.")
    return count


def _retries(text: str) -> int:
    if not text.isdecimal() or int(text) > MOST:
        raise UserError(f"--retry-elsewhere must be a whole number from 0 on, not {text!r:.60}.")
    return int(text)
