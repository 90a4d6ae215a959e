"""When requests arrive: Poisson, bursty (gamma), or as recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from headway.errors import UserError
from headway.workloads.schema import WorkloadRequest, number


@dataclass(frozen=True, slots=True)
class Arrivals:
    """How arrival times are made; ``cv`` is the gaps' standard deviation over their mean."""

    kind: Literal["poisson", "gamma", "trace"]
    cv: float = 1.0

    @classmethod
    def parse(cls, text: str) -> Arrivals:
        """Read ``poisson``, ``gamma:CV`` or ``trace``.

        Raises:
            UserError: Anything else.
        """
        if text == "poisson":
            return cls("poisson")
        if text == "trace":
            return cls("trace")
        name, _, cv = text.partition(":")
        if name == "gamma" and cv:
            return cls("gamma", number("--arrivals", "the CV", cv, minimum=0.0, above=True))
        raise UserError(
            f"--arrivals must be poisson, gamma:CV (such as gamma:3) or trace, not {text!r:.60}."
        )


def gamma_times_s(
    rng: np.random.Generator, num_requests: int, rate_rps: float, cv: float
) -> np.ndarray:
    """Return increasing arrival times whose gaps are gamma with mean 1/rate and this *cv*.

    The first request comes after a gap of its own, so the expected rate is exact from zero on.
    """
    shape = 1.0 / (cv * cv)
    gaps_s = rng.gamma(shape, 1.0 / (rate_rps * shape), num_requests)
    return np.cumsum(gaps_s)


def poisson_times_s(rng: np.random.Generator, num_requests: int, rate_rps: float) -> np.ndarray:
    """Return arrival times of a Poisson process of *rate_rps* requests per second."""
    return np.cumsum(rng.exponential(1.0 / rate_rps, num_requests))


def rescaled(requests: Sequence[WorkloadRequest], rate_rps: float) -> list[WorkloadRequest]:
    """Return the same arrivals, stretched so that the mean rate is *rate_rps* from time 0.

    The mean rate is gaps over the time they cover, (n − 1) / (last − first).

    Raises:
        UserError: All requests arrive at one instant, so no stretch gives a rate.
    """
    first_s, last_s = requests[0].arrived_at_s, requests[-1].arrived_at_s
    if len(requests) == 1:
        return [replace(requests[0], arrived_at_s=0.0)]
    if last_s <= first_s:
        raise UserError(
            "All requests of the workload arrive at the same instant, so they cannot be rescaled"
            " to a rate; use --arrivals poisson instead."
        )
    factor = (len(requests) - 1) / (last_s - first_s) / rate_rps
    return [replace(r, arrived_at_s=(r.arrived_at_s - first_s) * factor) for r in requests]


def with_arrivals(
    requests: Sequence[WorkloadRequest],
    arrivals: Arrivals,
    rate_rps: float | None,
    rng: np.random.Generator,
) -> list[WorkloadRequest]:
    """Return *requests* with arrival times made as *arrivals* says.

    Raises:
        UserError: A random process without a rate.
    """
    if arrivals.kind == "trace":
        return rescaled(requests, rate_rps) if rate_rps is not None else list(requests)
    if rate_rps is None:
        raise UserError(f"--arrivals {arrivals.kind} needs --rate, in requests per second.")
    if arrivals.kind == "poisson":
        times_s = poisson_times_s(rng, len(requests), rate_rps)
    else:
        times_s = gamma_times_s(rng, len(requests), rate_rps, arrivals.cv)
    return [
        replace(request, arrived_at_s=round(float(at_s), 6))
        for request, at_s in zip(requests, times_s, strict=True)
    ]
