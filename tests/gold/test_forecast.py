"""The KV forecast against plain loops, and the decision it feeds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats

from headway.kv_layout import KvLayout
from headway.policy.kv.forecast import HORIZONS, Forecast, Lifetimes, expected_victims
from headway.request import Request
from headway.slo import Slo

CHAT = Slo(ttft_s=1.0, tbt_s=0.1, class_name="chat")


def request(name: str, prompt: int, so_far: int, bound: int = 4000) -> Request:
    one = Request(name, CHAT, 0.0, prompt, bound)
    one.num_output_tokens = so_far
    one.num_computed_tokens = prompt + so_far
    return one


def alive_by_counting(lengths: list[int], so_far: int, ahead: int, bound: int) -> float:
    """Of the remembered lengths that got this far, the share that gets *ahead* steps further.

    A guess counts as one more length: a constant hazard with a quarter of the bound for a mean.
    """
    if so_far + ahead >= bound:
        return 0.0
    longer = [length for length in lengths if length > so_far]
    if longer:
        known = sum(length > so_far + ahead for length in longer) / len(longer)
    else:
        known = math.exp(-ahead / max(sum(lengths) / len(lengths), 1.0))
    guess = math.exp(-ahead / min(max(bound / 4, 1), 256))
    return (len(lengths) * known + guess) / (len(lengths) + 1)


@given(
    st.lists(st.integers(1, 500), min_size=1, max_size=60),
    st.lists(st.tuples(st.integers(1, 300), st.integers(0, 500), st.integers(1, 900)), max_size=6),
)
@settings(max_examples=100)
def test_mean_and_variance_are_sums_over_residents(
    lengths: list[int], residents: list[tuple[int, int, int]]
) -> None:
    """Each resident is a coin at each horizon: it holds its tokens or it is gone."""
    lifetimes = Lifetimes()
    for length in lengths:
        lifetimes.learn("chat", length)
    forecast = Forecast(lifetimes, KvLayout(16))
    forecast.add(request(f"r{i}", p, s, s + b) for i, (p, s, b) in enumerate(residents))
    for k, ahead in enumerate(HORIZONS.tolist()):
        mean = variance = 0.0
        for prompt, so_far, more in residents:
            alive = alive_by_counting(lengths, so_far, ahead, so_far + more)
            use = prompt + so_far + ahead + 8.0
            mean += use * alive
            variance += use * use * alive * (1 - alive)
        assert forecast.mean[k] == pytest.approx(mean)
        assert forecast.variance[k] == pytest.approx(variance, abs=1e-6)


@given(
    st.floats(0.0, 5e4), st.floats(1.0, 1e8), st.floats(0.0, 3.0), st.floats(1.0, 5e4),
    st.floats(1.0, 5e3),
)  # fmt: skip
@settings(max_examples=60)
def test_expected_victims_are_an_integral(
    mean: float, variance: float, cut: float, capacity: float, victim_tokens: float
) -> None:
    """Tokens beyond capacity over a victim's; U a normal cut at most."""
    deviation = math.sqrt(variance)
    most = mean + cut * deviation
    low = max(capacity, mean - 9 * deviation)  # Below lies nothing that counts.
    high = max(capacity, mean + 9 * deviation)
    normal = stats.norm(mean, deviation)
    exact, _ = integrate.quad(
        lambda u: (min(u, most) - capacity) * normal.pdf(u),
        low,
        high,
        limit=200,
        points=[most] if low < most < high else None,
    )
    exact = exact / victim_tokens if most > capacity else 0.0
    found = expected_victims(
        np.array([mean]), np.array([variance]), np.array([most]), capacity, victim_tokens
    )
    assert found == pytest.approx(exact, rel=1e-3, abs=1e-3 * (deviation / victim_tokens + 1))


def test_a_handful_cannot_exceed_what_all_of_them_hold() -> None:
    """Five residents that would fit even if all lived on need no victim, however unsure each is."""
    lifetimes = Lifetimes()
    for length in range(1, 40):
        lifetimes.learn("chat", length)
    forecast = Forecast(lifetimes, KvLayout(0))
    forecast.add(request(f"r{i}", 4000, 5, bound=40) for i in range(4))
    assert forecast.victims(20_500) == 0.0
    assert forecast.victims_with(request("new", 4000, 0, bound=40), 20_500) == 0.0
    assert forecast.victims_with(request("new", 5000, 0, bound=40), 20_500) > 0.05


def test_the_forecast_is_what_happens() -> None:
    """Ten thousand futures drawn from the window: their mean and spread are the forecast's."""
    rng = np.random.default_rng(1)
    lengths = rng.geometric(1 / 120, 300)
    lifetimes = Lifetimes()
    for length in lengths.tolist():
        lifetimes.learn("chat", length)
    residents = [request(f"r{i}", 100 + 10 * i, 7 * i) for i in range(12)]
    forecast = Forecast(lifetimes, KvLayout(0))
    forecast.add(residents)
    k = int(np.flatnonzero(HORIZONS == 64)[0])
    totals = np.zeros(10_000)
    for one in residents:
        longer = lengths[lengths > one.num_output_tokens]
        drawn = rng.choice(longer, len(totals))
        totals += np.where(drawn > one.num_output_tokens + 64, one.num_tokens + 64, 0)
    assert forecast.mean[k] == pytest.approx(totals.mean(), rel=0.01)
    assert math.sqrt(forecast.variance[k]) == pytest.approx(totals.std(), rel=0.03)


def test_room_comes_when_residents_leave() -> None:
    """Nothing fits a full cache now; it does once most residents are expected to be gone."""
    lifetimes = Lifetimes()
    for length in range(100, 140):
        lifetimes.learn("chat", length)
    forecast = Forecast(lifetimes, KvLayout(0))
    forecast.add(request(f"r{i}", 100, 60) for i in range(10))
    assert forecast.steps_until(500, 2100) == 64
    assert forecast.steps_until(10, 2100) == 1
    assert forecast.steps_until(3000, 2100) == math.inf
