"""When requests arrive: Poisson, bursty (gamma, on/off), by the time of day, or as recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from headway.errors import UserError
from headway.workloads.schema import WorkloadRequest, number

FORMS = (
    "poisson, gamma:CV (such as gamma:3), onoff:ON_S:OFF_S (onoff:10:30),"
    " diurnal:PERIOD_S:DEPTH (diurnal:3600:0.8) or trace"
)
"""What ``--arrivals`` may say."""

MAX_BURSTS_A_REQUEST = 100
"""With more than this many bursts between two requests, on/off cannot be told from Poisson."""

MAX_SILENCE = 1000
"""Longest mean silence of on/off, in runs: a run without a burst is drawn again."""


@dataclass(frozen=True, slots=True)
class Arrivals:
    """How arrival times are made; fields that the kind does not use keep their defaults.

    Attributes:
        cv: ``gamma``: the gaps' standard deviation over their mean.
        on_s: ``onoff``: mean seconds of a burst.
        off_s: ``onoff``: mean seconds of the silence between two bursts.
        period_s: ``diurnal``: seconds from one rush hour to the next.
        depth: ``diurnal``: swing of the rate around its mean, 0 (none) to 1 (down to silence).
    """

    kind: Literal["poisson", "gamma", "onoff", "diurnal", "trace"]
    cv: float = 1.0
    on_s: float = 1.0
    off_s: float = 1.0
    period_s: float = 1.0
    depth: float = 0.0

    @classmethod
    def parse(cls, text: str) -> Arrivals:
        """Read one of :data:`FORMS`.

        Raises:
            UserError: Anything else.
        """
        name, *values = text.split(":")
        if text == "poisson":
            return cls("poisson")
        if text == "trace":
            return cls("trace")
        if name == "gamma" and len(values) == 1 and values[0]:
            return cls("gamma", cv=_positive("the CV", values[0]))
        if name == "onoff" and len(values) == 2:
            on_s, off_s = _positive("ON_S", values[0]), _positive("OFF_S", values[1])
            return cls("onoff", on_s=on_s, off_s=off_s)
        if name == "diurnal" and len(values) == 2:
            period_s, depth = _positive("PERIOD_S", values[0]), _positive("DEPTH", values[1])
            if depth > 1.0:
                raise UserError(f"--arrivals: DEPTH must be at most 1, not {values[1]!r:.60}.")
            return cls("diurnal", period_s=period_s, depth=depth)
        raise UserError(f"--arrivals must be {FORMS}, not {text!r:.60}.")


def _positive(name: str, text: str) -> float:
    return number("--arrivals", name, text, minimum=0.0, above=True)


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


def onoff_times_s(
    rng: np.random.Generator, num_requests: int, rate_rps: float, on_s: float, off_s: float
) -> np.ndarray:
    """Return arrival times of a Markov-modulated Poisson process that is silent when off.

    Bursts and silences last exponential times with means *on_s* and *off_s*. All requests come
    within ``num_requests / rate_rps`` seconds, evenly spread over the bursts in it: the law of
    the process given its count, so the mean rate is exact however few bursts there are. Over
    many, the squared CV of the gaps is ``1 + 2 * rate_rps * off_s**2 / (on_s + off_s)``
    (interrupted Poisson process, Kuczura 1973).

    Raises:
        UserError: Bursts so short that what comes out is Poisson, after endless work; or
            silences so long against the run that hardly any run has a burst.
    """
    if rate_rps * (on_s + off_s) * MAX_BURSTS_A_REQUEST < 1.0:
        raise UserError(
            f"--arrivals onoff:{on_s:g}:{off_s:g} has over {MAX_BURSTS_A_REQUEST} bursts a request"
            f" at {rate_rps:g} requests per second, which is Poisson; use --arrivals poisson."
        )
    horizon_s = num_requests / rate_rps
    if off_s > MAX_SILENCE * (horizon_s + on_s):
        raise UserError(
            f"--arrivals onoff:{on_s:g}:{off_s:g} is silent for far longer than the"
            f" {horizon_s:g} s that {num_requests} requests at {rate_rps:g} per second take."
        )
    starts_s, ends_s = _bursts_s(rng, horizon_s, on_s, off_s)
    busy_ends_s = np.cumsum(ends_s - starts_s)
    busy_s = np.sort(rng.uniform(0.0, busy_ends_s[-1], num_requests))
    burst = np.minimum(np.searchsorted(busy_ends_s, busy_s), len(ends_s) - 1)
    arrived_at_s: np.ndarray = ends_s[burst] - (busy_ends_s[burst] - busy_s)
    return arrived_at_s


def _bursts_s(
    rng: np.random.Generator, horizon_s: float, on_s: float, off_s: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return when bursts begin and end between 0 and *horizon_s*; at least one does.

    What came before time 0 is unknown: it begins on or off as often as it is either.
    """
    while True:
        begins_on = bool(rng.random() < on_s / (on_s + off_s))
        edges_s = np.zeros(1)
        while edges_s[-1] < horizon_s:
            cycles = int((horizon_s - edges_s[-1]) / (on_s + off_s) * 1.1) + 4
            means_s = (on_s, off_s) if begins_on else (off_s, on_s)
            spans_s = rng.exponential(1.0, (cycles, 2)) * means_s
            edges_s = np.concatenate([edges_s, edges_s[-1] + np.cumsum(spans_s)])
        first = 0 if begins_on else 1
        pairs = (len(edges_s) - first) // 2
        bounds_s = np.minimum(edges_s[first : first + 2 * pairs], horizon_s).reshape(pairs, 2)
        inside = bounds_s[:, 0] < horizon_s
        if inside.any():
            return bounds_s[inside, 0], bounds_s[inside, 1]


def diurnal_times_s(
    rng: np.random.Generator, num_requests: int, rate_rps: float, period_s: float, depth: float
) -> np.ndarray:
    """Return arrival times of a Poisson process of rate ``rate_rps * (1 + depth * sin(...))``.

    The sine starts at 0, rising, with period *period_s*. By thinning (Lewis and Shedler 1979):
    candidates come at the highest rate and stay with the probability their moment deserves.
    """
    highest_rps = rate_rps * (1.0 + depth)
    kept: list[np.ndarray] = []
    missing, at_s = num_requests, 0.0
    while missing > 0:
        drawn_s = at_s + np.cumsum(rng.exponential(1.0 / highest_rps, 2 * missing + 16))
        at_s = float(drawn_s[-1])
        relative = 1.0 + depth * np.sin(2.0 * np.pi * drawn_s / period_s)
        chosen_s = drawn_s[rng.random(len(drawn_s)) * (1.0 + depth) < relative][:missing]
        kept.append(chosen_s)
        missing -= len(chosen_s)
    return np.concatenate(kept)


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


def busiest(requests: Sequence[WorkloadRequest], span_s: float) -> list[WorkloadRequest]:
    """Return the most requests that arrive within *span_s* seconds, the first such stretch.

    Their times stay what they are.
    """
    first = best = count = 0
    for last, request in enumerate(requests):
        while request.arrived_at_s - requests[first].arrived_at_s >= span_s:
            first += 1
        if last + 1 - first > count:
            best, count = first, last + 1 - first
    return list(requests[best : best + count])


def with_arrivals(
    requests: Sequence[WorkloadRequest],
    arrivals: Arrivals,
    rate_rps: float | None,
    rng: np.random.Generator,
) -> list[WorkloadRequest]:
    """Return *requests* with arrival times made as *arrivals* says.

    Poisson and gamma have *rate_rps* in expectation; on/off has it over ``n / rate_rps`` seconds.
    Diurnal times are stretched to have it exactly (:func:`rescaled`), for a part of a day would
    otherwise be busier than the day; the period stretches with them.

    Raises:
        UserError: A random process without a rate.
    """
    if arrivals.kind == "trace":
        return rescaled(requests, rate_rps) if rate_rps is not None else list(requests)
    if rate_rps is None:
        raise UserError(f"--arrivals {arrivals.kind} needs --rate, in requests per second.")
    drawn_s = times_s(arrivals, rate_rps, len(requests), rng)
    timed = [
        replace(request, arrived_at_s=round(float(at_s), 6))
        for request, at_s in zip(requests, drawn_s, strict=True)
    ]
    return rescaled(timed, rate_rps) if arrivals.kind == "diurnal" else timed


def times_s(
    arrivals: Arrivals, rate_rps: float, num_requests: int, rng: np.random.Generator
) -> np.ndarray:
    """Return increasing arrival times of a random process; *arrivals* is not ``trace``."""
    if arrivals.kind == "poisson":
        return poisson_times_s(rng, num_requests, rate_rps)
    if arrivals.kind == "gamma":
        return gamma_times_s(rng, num_requests, rate_rps, arrivals.cv)
    if arrivals.kind == "onoff":
        return onoff_times_s(rng, num_requests, rate_rps, arrivals.on_s, arrivals.off_s)
    return diurnal_times_s(rng, num_requests, rate_rps, arrivals.period_s, arrivals.depth)
