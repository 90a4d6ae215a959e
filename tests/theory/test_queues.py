"""The simulator against queueing theory: where a formula is exact, it must come out.

One seat and prompts alone make the engine a single-server queue; many decodes whose step costs
a constant each make it processor sharing. Seeds are fixed, so are the results; the confidence
bounds say how far a correct simulator may land from the formula.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from headway import registry
from headway.engines.sim.run import SimRun
from headway.engines.virtual import VirtualCall, VirtualEngine
from headway.latency.fixed import FixedModel
from headway.latency.laptop import LAPTOP
from headway.latency.model import StepShape

Floats = npt.NDArray[np.float64]

SERVICE_TOKENS = 1000
"""A mean prompt; so fine a grain that rounding exponential services to tokens is 0.1 %."""

Z = 3.3
"""Half-width of the bounds in standard errors: a true formula fails one seed in a thousand."""


def bounds(samples: Floats, num_batches: int = 30) -> tuple[float, float]:
    """Return mean and half-width of its confidence interval, by batch means.

    Successive waits depend on each other; means of long batches hardly do.
    """
    batches = samples[: len(samples) // num_batches * num_batches].reshape(num_batches, -1)
    means = batches.mean(axis=1)
    return float(means.mean()), Z * float(means.std(ddof=1)) / math.sqrt(num_batches)


def single_server_waits(services_s: Floats, load: float, seed: int) -> Floats:
    """Return the waits of Poisson arrivals at an engine with one seat; mean service is 1 s."""
    rng = np.random.default_rng(seed)
    arrivals_s = np.cumsum(rng.exponential(1.0 / load, len(services_s)))
    tokens = np.maximum(np.rint(services_s * SERVICE_TOKENS), 1).astype(int)
    calls = [
        VirtualCall(f"r{i:06d}", float(at_s), int(num), 1)
        for i, (at_s, num) in enumerate(zip(arrivals_s, tokens, strict=True))
    ]
    longest = int(tokens.max())
    engine = VirtualEngine(num_blocks=longest, max_num_batched_tokens=longest, max_num_seqs=1)

    def truth(shape: StepShape) -> float:
        return shape.num_prefill_tokens / SERVICE_TOKENS

    run = SimRun(engine, truth, registry.build("fcfs", latency=FixedModel(LAPTOP.coefficients())))
    outcomes = run.run(calls)
    assert run.num_steps == len(calls), "one step a job"
    ended_s = np.array([outcomes[c.request_id].emitted_at_s[0] for c in calls])
    return ended_s - arrivals_s - tokens / SERVICE_TOKENS


@pytest.mark.parametrize("load", [0.4, 0.7])
def test_m_m_1(load: float) -> None:
    """Poisson arrivals, exponential services: the mean wait is load / (1 - load) services."""
    services_s = np.random.default_rng(11).exponential(1.0, 8_000)
    mean_s, half_s = bounds(single_server_waits(services_s, load, seed=1))
    assert mean_s == pytest.approx(load / (1 - load), abs=half_s)
    assert half_s < 0.4 * load / (1 - load), "bounds too wide to say anything"


@pytest.mark.parametrize("load", [0.4, 0.7])
def test_m_d_1(load: float) -> None:
    """Poisson arrivals, equal services: half the wait of M/M/1 (Pollaczek and Khinchine)."""
    mean_s, half_s = bounds(single_server_waits(np.ones(8_000), load, seed=2))
    assert mean_s == pytest.approx(load / (2 * (1 - load)), abs=half_s)
    assert half_s < 0.4 * load / (2 * (1 - load)), "bounds too wide to say anything"


def test_waits_are_lindleys() -> None:
    """Wait by wait the engine is the recursion W' = max(W + S - A, 0) (Lindley 1952)."""
    services_s = np.random.default_rng(3).exponential(1.0, 500)
    waits_s = single_server_waits(services_s, 0.9, seed=4)
    gaps_s = np.diff(np.cumsum(np.random.default_rng(4).exponential(1 / 0.9, 500)))
    served_s = np.maximum(np.rint(services_s * SERVICE_TOKENS), 1) / SERVICE_TOKENS
    wait_s = 0.0
    for i, gap_s in enumerate(gaps_s):
        assert waits_s[i] == pytest.approx(wait_s, abs=1e-6)
        wait_s = max(wait_s + served_s[i] - gap_s, 0.0)


QUANTUM_S = 0.01


def shared_processor(outputs: npt.NDArray[np.int64], load: float, seed: int) -> Floats:
    """Return sojourns, in quanta, of streams whose step costs a quantum for each of them."""
    rng = np.random.default_rng(seed)
    rate = load / (float(outputs.mean()) * QUANTUM_S)
    arrivals_s = np.cumsum(rng.exponential(1.0 / rate, len(outputs)))
    calls = [
        VirtualCall(f"r{i:06d}", float(at_s), 1, int(num))
        for i, (at_s, num) in enumerate(zip(arrivals_s, outputs, strict=True))
    ]
    engine = VirtualEngine(num_blocks=100_000, max_num_seqs=1000)

    def truth(shape: StepShape) -> float:
        return QUANTUM_S * (shape.num_decodes + shape.num_prefills)

    run = SimRun(engine, truth, registry.build("fcfs", latency=FixedModel(LAPTOP.coefficients())))
    outcomes = run.run(calls)
    ended_s = np.array([outcomes[c.request_id].emitted_at_s[-1] for c in calls])
    return (ended_s - arrivals_s) / QUANTUM_S


@pytest.mark.parametrize("kind", ["equal", "geometric", "two sizes"])
def test_processor_sharing(kind: str) -> None:
    """M/G/1-PS: the mean sojourn is the mean service / (1 - load), whatever the lengths.

    A step is a quantum, so an arrival waits for the end of the one in progress: at most the
    streams running then, which are load / (1 - load) on average, are added to the formula.
    """
    load, num, mean = 0.6, 1500, 40
    rng = np.random.default_rng(5)
    outputs = {
        "equal": np.full(num, mean),
        "geometric": rng.geometric(1 / mean, num),
        "two sizes": np.where(rng.random(num) < 0.9, 20, 220),
    }[kind]
    mean_quanta, half = bounds(shared_processor(outputs, load, seed=6))
    expected = float(outputs.mean()) / (1 - load)
    assert expected - half <= mean_quanta <= expected + load / (1 - load) + half
    assert half < 0.4 * expected, "bounds too wide to say anything"


def test_sharing_is_fair_to_every_length() -> None:
    """Under processor sharing a stream twice as long stays twice as long, on average."""
    rng = np.random.default_rng(7)
    outputs = np.where(rng.random(2000) < 0.5, 20, 40)
    sojourns = shared_processor(outputs, 0.5, seed=8)
    ratio = sojourns[outputs == 40].mean() / sojourns[outputs == 20].mean()
    assert ratio == pytest.approx(2.0, rel=0.05)
