"""Arrival processes have the rate, the variability and the shape that theory gives them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from headway.errors import UserError
from headway.workloads import arrivals
from headway.workloads.arrivals import Arrivals, with_arrivals
from headway.workloads.schema import WorkloadRequest

MANY = 200_000


def cv_of(gaps_s: np.ndarray) -> float:
    return float(gaps_s.std() / gaps_s.mean())


def requests(count: int) -> list[WorkloadRequest]:
    return [WorkloadRequest(f"r{i}", 0.0, 1, 1) for i in range(count)]


def test_poisson_gaps_are_exponential() -> None:
    """Kolmogorov-Smirnov cannot tell the gaps from an exponential with mean 1/rate."""
    times_s = arrivals.poisson_times_s(np.random.default_rng(1), 20_000, 3.0)
    gaps_s = np.diff(times_s, prepend=0.0)
    assert stats.kstest(gaps_s, "expon", args=(0, 1 / 3.0)).pvalue > 0.01


@pytest.mark.parametrize("cv", [0.3, 1.0, 2.5])
def test_gamma_gaps_have_the_quantiles_of_a_gamma(cv: float) -> None:
    """Shape 1/CV², mean 1/rate: quantiles within 3 %, so the whole shape, not only its CV."""
    times_s = arrivals.gamma_times_s(np.random.default_rng(2), MANY, 5.0, cv)
    gaps_s = np.diff(times_s, prepend=0.0)
    wanted = stats.gamma(1 / cv**2, scale=cv**2 / 5.0)
    for probability in (0.5, 0.9, 0.99):
        assert np.quantile(gaps_s, probability) == pytest.approx(wanted.ppf(probability), rel=0.03)


@pytest.mark.parametrize(("on_s", "off_s"), [(1.0, 1.0), (2.0, 6.0), (0.5, 10.0)])
def test_on_off_arrivals_have_the_rate_and_cv_of_an_interrupted_poisson(
    on_s: float, off_s: float
) -> None:
    """Mean gap 1/rate; squared CV 1 + 2 · rate · off² / (on + off) (Kuczura 1973)."""
    rate_rps = 4.0
    times_s = arrivals.onoff_times_s(np.random.default_rng(3), 4 * MANY, rate_rps, on_s, off_s)
    gaps_s = np.diff(times_s)
    assert (gaps_s >= 0).all()
    assert 1 / gaps_s.mean() == pytest.approx(rate_rps, rel=0.03)
    theory = math.sqrt(1 + 2 * rate_rps * off_s**2 / (on_s + off_s))
    assert cv_of(gaps_s) == pytest.approx(theory, rel=0.04)


def test_on_off_begins_on_as_often_as_it_is_on() -> None:
    """Some 400 a second in bursts: the first comes at once in on / (on + off) of all runs."""
    firsts_s = [
        float(arrivals.onoff_times_s(np.random.default_rng(seed), 4_000, 100.0, 3.0, 9.0)[0])
        for seed in range(1_500)
    ]
    assert np.mean(np.array(firsts_s) < 0.03) == pytest.approx(0.25, abs=0.04)


@pytest.mark.parametrize("seed", range(20))
def test_on_off_stays_bursty_and_on_rate_when_there_are_few_bursts(seed: int) -> None:
    """200 requests in 50 s whatever the cycle of 40 s does; silences stay silences."""
    times_s = arrivals.onoff_times_s(np.random.default_rng(seed), 200, 4.0, 10.0, 30.0)
    assert 0.0 <= times_s.min() <= times_s.max() <= 50.0
    assert (np.diff(times_s) >= 0).all()


def test_on_off_is_on_for_its_share_of_the_time() -> None:
    """Of 50 s by 40 s cycles, over 300 runs: a second holds a request in a quarter of them.

    A run without any burst cannot hold its requests and is drawn again, which lifts the share
    by the odds of that: 0.25 / (1 - 0.75 * exp(-50 / 30)).
    """
    busy = [
        len(np.unique(np.floor(arrivals.onoff_times_s(
            np.random.default_rng(seed), 5_000, 100.0, 10.0, 30.0
        )))) / 50
        for seed in range(300)
    ]  # fmt: skip
    assert np.mean(busy) == pytest.approx(0.25 / (1 - 0.75 * math.exp(-50 / 30)), abs=0.05)


def test_diurnal_arrivals_are_poisson_once_time_is_stretched_by_their_rate() -> None:
    """Time rescaling: the integral of the rate between arrivals is exponential with mean 1."""
    rate_rps, period_s, depth = 6.0, 50.0, 0.9
    times_s = arrivals.diurnal_times_s(np.random.default_rng(4), 20_000, rate_rps, period_s, depth)
    phase = 2 * np.pi * times_s / period_s
    expected = rate_rps * (times_s + depth * period_s / (2 * np.pi) * (1 - np.cos(phase)))
    steps = np.diff(expected, prepend=0.0)
    assert stats.kstest(steps, "expon").pvalue > 0.01
    assert steps.mean() == pytest.approx(1.0, rel=0.03)


def test_diurnal_rush_hours_have_their_share() -> None:
    """The first half of each period gets 1/2 + depth/π of the requests."""
    times_s = arrivals.diurnal_times_s(np.random.default_rng(5), MANY, 10.0, 20.0, 0.6)
    assert np.mean(times_s % 20.0 < 10.0) == pytest.approx(0.5 + 0.6 / math.pi, abs=0.005)


@pytest.mark.parametrize("text", ["poisson", "gamma:3", "onoff:2:6", "diurnal:60:0.8"])
def test_the_same_seed_gives_the_same_times_and_the_rate_scales_them(text: str) -> None:
    """Equal seeds, equal times; times are in order; the mean rate is near the one asked for."""
    process = Arrivals.parse(text)
    made, again, other = (
        with_arrivals(requests(5_000), process, 8.0, np.random.default_rng(seed))
        for seed in (1, 1, 2)
    )
    assert made == again
    assert made != other
    times_s = [r.arrived_at_s for r in made]
    assert times_s == sorted(times_s)
    assert 4_999 / (times_s[-1] - times_s[0]) == pytest.approx(8.0, rel=0.15)


def test_a_part_of_a_day_has_exactly_the_rate_asked_for() -> None:
    """The morning is stretched to the mean rate."""
    process = Arrivals.parse("diurnal:86400:1")
    made = with_arrivals(requests(50), process, 2.0, np.random.default_rng(0))
    assert made[0].arrived_at_s == 0.0
    assert 49 / made[-1].arrived_at_s == pytest.approx(2.0, rel=1e-9)


def test_bursts_too_short_to_matter_are_refused() -> None:
    """A thousand bursts between two requests are Poisson, and endless work."""
    with pytest.raises(UserError, match="use --arrivals poisson"):
        arrivals.onoff_times_s(np.random.default_rng(0), 10, 1.0, 1e-4, 1e-4)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gamma:2.5", Arrivals("gamma", cv=2.5)),
        ("onoff:10:30", Arrivals("onoff", on_s=10.0, off_s=30.0)),
        ("diurnal:3600:0.8", Arrivals("diurnal", period_s=3600.0, depth=0.8)),
    ],
)
def test_parameters_are_read(text: str, expected: Arrivals) -> None:
    """Each form fills its own fields."""
    assert Arrivals.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    ["onoff", "onoff:1", "onoff:1:0", "onoff:1:2:3", "diurnal:60", "diurnal:60:1.5",
     "diurnal:nan:0.5", "gamma:1:2", "poisson:3", "trace:1"],
)  # fmt: skip
def test_bad_forms_get_one_sentence(text: str) -> None:
    """The sentence names the option and stays on one line."""
    with pytest.raises(UserError, match="--arrivals") as caught:
        Arrivals.parse(text)
    assert "\n" not in str(caught.value)


def test_silences_far_longer_than_the_run_are_refused() -> None:
    """Else one would wait for ever for a run with a burst in it."""
    with pytest.raises(UserError, match="silent for far longer"):
        arrivals.onoff_times_s(np.random.default_rng(0), 1, 1000.0, 1e-3, 1e6)
