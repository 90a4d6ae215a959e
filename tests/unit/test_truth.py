"""What a virtual step takes: the profile, its band, and how machines stray."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from headway.errors import UserError
from headway.latency import profile
from headway.latency.model import StepShape
from headway.latency.truth import Drift, Hiccups, Truth

GPU = profile.load("llama-3.1-8b@h100")
SHAPE = StepShape(0, 0, 32, 32_000).with_chunk(512, 100)
BASE_S = GPU.step_s(SHAPE)


def factors(num_steps: int, **options: Any) -> np.ndarray:
    """Return the step times of one shape, relative to the profile."""
    truth = Truth(GPU, **options)
    return np.array([truth(SHAPE) for _ in range(num_steps)]) / BASE_S


def test_without_options_it_is_the_profile() -> None:
    """A plain truth is the profile itself, step after step."""
    truth = Truth(GPU)
    for shape in (SHAPE, StepShape(0, 0, 1, 10), StepShape()):
        assert truth(shape) == truth(shape) == GPU.step_s(shape)


@pytest.mark.parametrize("scale", [0.8, 1.2])
def test_scale_is_the_band(scale: float) -> None:
    """The band multiplies every step."""
    assert factors(3, scale=scale) == pytest.approx(scale)


@pytest.mark.parametrize("noise", [0.05, 0.1, 0.5])
def test_noise_has_unit_mean(noise: float) -> None:
    """Noise neither speeds a machine up nor slows it down, and is as wide as it says."""
    seen = factors(40_000, noise=noise, seed=3)
    # Four standard errors of the mean of a log-normal factor.
    assert seen.mean() == pytest.approx(1.0, abs=4 * math.sqrt(math.expm1(noise**2) / 40_000))
    assert np.log(seen).std() == pytest.approx(noise, rel=0.02)


def test_the_same_seed_gives_the_same_sequence() -> None:
    """Same arguments, same seconds, to the last bit; another seed, others."""
    options: dict[str, Any] = {
        "noise": 0.1, "drift": Drift("wave", 0.2, 700), "hiccups": Hiccups(0.01, 0.2),
    }  # fmt: skip
    one = factors(3000, seed=5, **options)
    assert (one == factors(3000, seed=5, **options)).all()
    assert (one != factors(3000, seed=6, **options)).mean() > 0.99


def test_drift_linear() -> None:
    """A linear drift grows evenly to its amount and stays there."""
    seen = factors(300, drift=Drift("linear", 0.5, 100))
    assert seen[[0, 50, 100, 299]] == pytest.approx([1.0, 1.25, 1.5, 1.5])
    assert (np.diff(seen) >= 0).all()


def test_drift_wave() -> None:
    """A wave swings to both sides and leaves the mean of whole periods alone."""
    seen = factors(400, drift=Drift("wave", 0.3, 200))
    assert seen[[0, 50, 100, 150, 200]] == pytest.approx([1.0, 1.3, 1.0, 0.7, 1.0])
    assert seen.mean() == pytest.approx(1.0)


def test_drift_jump() -> None:
    """A jump sets in at its step, counted from 0."""
    seen = factors(20, drift=Drift("jump", 1.0, 10))
    assert seen[:10] == pytest.approx(1.0)
    assert seen[10:] == pytest.approx(2.0)


def test_hiccups_are_as_frequent_and_long_as_said() -> None:
    """One step in a hundred gets a pause of the mean length on top; the others none."""
    extra_s = (factors(50_000, hiccups=Hiccups(0.01, 0.2), seed=1) - 1.0) * BASE_S
    hit = extra_s > 1e-9
    assert hit.mean() == pytest.approx(0.01, abs=4 * math.sqrt(0.01 / 50_000))
    assert extra_s[hit].mean() == pytest.approx(0.2, rel=0.2)
    assert extra_s[~hit] == pytest.approx(0.0, abs=1e-12)


def test_hiccups_leave_the_noise_as_it_was() -> None:
    """The streams are apart: a pause adds the same seconds with noise and without."""
    quiet = factors(5000, noise=0.1, seed=2)
    rough = factors(5000, noise=0.1, hiccups=Hiccups(0.02, 0.1), seed=2)
    same = quiet == rough
    assert 0.9 < same.mean() < 1.0
    alone = factors(5000, hiccups=Hiccups(0.02, 0.1), seed=2)
    assert rough - quiet == pytest.approx(alone - 1.0, abs=1e-9)


def test_a_truth_is_monotone_between_twins() -> None:
    """With the same seed a bigger step takes longer at every position of the sequence."""
    bigger = dataclasses.replace(SHAPE, sum_context_tokens=90_000)
    one, two = (Truth(GPU, noise=0.3, seed=4) for _ in range(2))
    assert all(one(SHAPE) < two(bigger) for _ in range(2000))


BAD: list[tuple[Any, str]] = [
    (lambda: Truth(GPU, scale=0.0), "scale of step times must be above 0"),
    (lambda: Truth(GPU, scale=math.nan), "scale of step times must be above 0"),
    (lambda: Truth(GPU, noise=-0.1), "noise of step times must be from 0 to 2"),
    (lambda: Truth(GPU, noise=math.nan), "noise of step times must be from 0 to 2"),
    (lambda: Truth(GPU, seed=-1), "seed must be at least 0"),
    (lambda: Drift("sideways", 0.1, 10), "linear, wave or jump, not 'sideways'"),  # type: ignore[arg-type]
    (lambda: Drift("jump", -1.0, 10), "between -1 and inf"),
    (lambda: Drift("wave", 1.0, 10), "between -1 and 1"),
    (lambda: Drift("jump", 0.5, 0), "must be at least 1"),
    (lambda: Hiccups(1.5), "chance of a hiccup must be from 0 to 1"),
    (lambda: Hiccups(0.1, -1.0), "mean_s of hiccups must be at least 0"),
]


@pytest.mark.parametrize(("make", "says"), BAD, ids=[says for _, says in BAD])
def test_nonsense_is_named(make: Any, says: str) -> None:
    """Each impossible value is refused in one sentence."""
    with pytest.raises(UserError, match=says):
        make()
