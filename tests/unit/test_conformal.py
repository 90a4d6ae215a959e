"""How far above its prediction a step may land."""

from __future__ import annotations

import math

import numpy as np
import pytest

from headway.latency.conformal import GUESSED_SPREAD, RatioWindow


def filled(ratios: np.ndarray, window: int = 400) -> RatioWindow:
    errors = RatioWindow(1, window=window)
    for ratio in ratios:
        errors.add(np.array([1.0]), float(ratio), 1.0)
    return errors


@pytest.mark.parametrize("miss_rate", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("sigma", [0.02, 0.1, 0.5])
def test_steps_exceed_the_margin_as_rarely_as_asked(miss_rate: float, sigma: float) -> None:
    """Of fresh steps about *miss_rate* land beyond the margin, whatever the spread."""
    rng = np.random.default_rng(0)
    missed = []
    for _ in range(30):
        window = filled(np.exp(sigma * rng.standard_normal(400)))
        fresh = np.exp(sigma * rng.standard_normal(500))
        missed.append(float(np.mean(fresh > window.upper(miss_rate))))
    assert np.mean(missed) <= miss_rate * 1.25
    assert np.mean(missed) >= miss_rate * 0.6


def test_few_samples_are_not_trusted() -> None:
    """Before enough steps were seen the margin is at least the guess, or the worst seen."""
    assert filled(np.array([])).upper(0.01) == math.exp(2 * GUESSED_SPREAD)
    assert filled(np.array([1.01])).upper(0.01) == math.exp(2 * GUESSED_SPREAD)
    assert filled(np.array([1.9])).upper(0.01) == 1.9


def test_a_drift_is_forgotten() -> None:
    """One window later nothing is left of an old regime once the model was refitted."""
    window = filled(np.concatenate([np.full(50, 5.0), np.full(50, 1.1)]), window=50)
    window.recompute(np.array([1.0]))
    assert window.upper(0.01) == pytest.approx(1.1)


def test_exceeding_is_monotone_and_a_probability() -> None:
    """The larger the ratio, the rarer; always between 0 and 1."""
    window = filled(np.exp(0.1 * np.random.default_rng(1).standard_normal(200)))
    chances = [window.exceeds(r) for r in np.linspace(-0.5, 4, 60)]
    assert all(0.0 <= c <= 1.0 for c in chances)
    assert chances == sorted(chances, reverse=True)
    assert window.exceeds(2.0) < 0.01


def test_near_misses_count() -> None:
    """A ratio just above everything seen is riskier than one far above."""
    window = filled(np.full(100, 1.0))
    assert window.exceeds(1.02) > window.exceeds(1.2) > window.exceeds(2.0)
