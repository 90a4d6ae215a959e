"""Several workloads made into one, by shares."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from headway.errors import UserError
from headway.workloads.schema import WorkloadRequest


def counts_of(shares: Sequence[float], total: int) -> list[int]:
    """Return whole numbers that add up to *total*, as near to *shares* as whole numbers get.

    Largest remainder: each is rounded down, then those that lost most get one more.

    Args:
        shares: Relative sizes; they need not add up to 1.

    Raises:
        UserError: A share is negative or not finite, or all are zero.
    """
    if any(not math.isfinite(s) or s < 0 for s in shares) or not sum(shares) > 0:
        raise UserError("The shares of a mix must be numbers of at least 0, and not all of them 0.")
    exact = [share / sum(shares) * total for share in shares]
    counts = [math.floor(size) for size in exact]
    by_loss = sorted(range(len(shares)), key=lambda i: counts[i] - exact[i])
    for index in by_loss[: total - sum(counts)]:
        counts[index] += 1
    return counts


def by_shares(
    parts: Mapping[str, tuple[float, Sequence[WorkloadRequest]]],
    num_requests: int,
    rng: np.random.Generator,
) -> list[WorkloadRequest]:
    """Return *num_requests* requests, each part giving its share from its front, shuffled.

    Each part keeps its own order, so its shared prefixes stay plausible. Arrival times of the
    parts mean nothing in the mix and become 0 s, for :mod:`.arrivals` to spread.

    Args:
        parts: Name → (share, requests).

    Raises:
        UserError: A part has fewer requests than its share of the mix asks for.
    """
    counts = counts_of([share for share, _ in parts.values()], num_requests)
    order: list[WorkloadRequest] = []
    for (name, (_, requests)), count in zip(parts.items(), counts, strict=True):
        if count > len(requests):
            raise UserError(
                f"The part {name!r} of the mix has {len(requests)} requests, but its share of"
                f" {num_requests} is {count}."
            )
        order.extend(_named(request, name) for request in requests[:count])
    owners = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    cursors = [sum(counts[:i]) for i in range(len(counts))]
    mixed: list[WorkloadRequest] = []
    for owner in owners:
        mixed.append(replace(order[cursors[owner]], arrived_at_s=0.0))
        cursors[owner] += 1
    return mixed


def _named(request: WorkloadRequest, part: str) -> WorkloadRequest:
    """Return *request* with names of its part, so neither ids nor prefixes of two parts meet.

    A chain of hashes gets another first id: those after it mean nothing without it.
    """
    prefix_id = None if request.prefix_id is None else f"{part}/{request.prefix_id}"
    first, rest = request.hash_ids[:1], request.hash_ids[1:]
    hash_ids = (*(f"{part}/{one}" for one in first), *rest)
    return replace(request, id=f"{part}/{request.id}", prefix_id=prefix_id, hash_ids=hash_ids)
