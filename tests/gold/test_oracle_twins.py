"""What the oracle and its bound reckon with, beside slow twins that go token by token."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.latency.profile import StepCost
from headway.metrics import define
from headway.oracle.fast_model import Server, StepModel
from headway.oracle.least_demands import LatestGaps
from headway.oracle.told_policy import ToldLifetimes, improve
from headway.policy.kv.forecast import HORIZONS
from headway.slo import Slo
from headway.workloads.schema import WorkloadRequest

# -- how late a token may come -----------------------------------------------------------------

promises = st.builds(
    Slo,
    tbt_s=st.none() | st.sampled_from([0.125, 0.25]),
    pause_s=st.none() | st.sampled_from([0.25, 2.0, float("inf")]),
)


@given(promises, st.integers(1, 320), st.integers(-1, 1), st.integers(0, 99))
@settings(max_examples=80)
def test_no_kept_stream_is_later(slo: Slo, num_gaps: int, more: int, seed: int) -> None:
    """Of gaps drawn to be nearly too long each token of a kept stream comes by its latest instant;
    and with the late gaps at the beginning it comes exactly then, and the promise is kept."""
    latest = LatestGaps.of(slo, num_gaps)
    on_time_s = min(latest.gap_s, 4.0)
    late_s = min(latest.pause_s, 8.0)
    num_late = min(max(latest.num_late + more, 0), num_gaps)
    drawn = [late_s] * num_late + [on_time_s] * (num_gaps - num_late)
    drawn = np.random.default_rng(seed).permutation(drawn).tolist()
    is_kept, times_s = judged(slo, drawn)
    if is_kept:
        assert all(at_s <= latest.most_s(k) + 1e-9 for k, at_s in enumerate(times_s))
    worst = [late_s] * latest.num_late + [on_time_s] * (num_gaps - latest.num_late)
    is_kept, times_s = judged(slo, worst)
    assert is_kept
    if on_time_s == latest.gap_s and late_s == latest.pause_s:
        assert times_s[1:] == pytest.approx([latest.most_s(k) for k in range(1, num_gaps + 1)])


def judged(slo: Slo, gaps_s: list[float]) -> tuple[bool, list[float]]:
    """Return whether the metrics call a stream of these gaps kept, and when its tokens came."""
    times_s = [0.0, *itertools.accumulate(gaps_s)]
    return define.attained(slo, 0.0, times_s, finished=True), times_s


@given(promises, st.lists(st.sampled_from([0.1, 0.125, 0.2, 0.3, 3.0]), min_size=1, max_size=210))
@settings(max_examples=100)
def test_hopeless_gaps_are_those_the_metrics_break(slo: Slo, least_s: list[float]) -> None:
    """A stream whose gaps are as short as can be keeps its promise, or it is called hopeless."""
    is_kept, _ = judged(slo, least_s)
    assert LatestGaps.of(slo, len(least_s)).are_hopeless(least_s) == (not is_kept)


# -- lengths that are told -----------------------------------------------------------------------


@given(st.integers(0, 40), st.integers(1, 9000))
@settings(max_examples=50)
def test_told_lifetimes_end_when_the_tokens_do(so_far: int, ahead: int) -> None:
    """A request that takes a token a step lives until it has as many as its bound."""
    bound = so_far + ahead
    told = ToldLifetimes()
    told.learn("chat", 3)
    steps_left = sum(1 for _ in range(so_far, bound))
    twin = [float(steps < steps_left) for steps in HORIZONS]
    alive, mean = told.of_one("chat", so_far, bound)
    assert alive.tolist() == twin
    assert told.survive("chat", np.array([so_far]), np.array([bound])).tolist() == [twin]
    assert mean == told.mean_remaining("chat", so_far, bound) == steps_left


# -- whom to serve -------------------------------------------------------------------------------


class BySet(StepModel):
    """Serves by due time whoever is chosen: a player that orders by itself."""

    def play(self, order: object) -> set[int]:
        """See :class:`~headway.oracle.search.Player`."""
        chosen = sorted(order, key=lambda i: (self.due_at_s(i), i))  # type: ignore[call-overload]
        return super().play(chosen)


@pytest.mark.parametrize("seed", range(6))
def test_an_improvement_finds_what_all_choices_have(seed: int) -> None:
    """Of seven requests, each with a time that some others need, it keeps as many as the best of
    all 128 choices, from whatever start."""
    rng = np.random.default_rng(seed)
    at_s = np.cumsum(rng.exponential(0.01, 7))
    requests = [
        WorkloadRequest(f"r{i}", float(at_s[i]), int(rng.integers(20, 200)), 1) for i in range(7)
    ]
    slos = {r.id: Slo(ttft_s=float(rng.uniform(0.05, 0.12))) for r in requests}
    cost = StepCost(32, 0.01, 1e-4, 4e-4, 2e-6, 1e-4, 1e-6, 5e-4)
    player = BySet(requests, slos, Server(cost, 5000, 128))
    choices = itertools.chain.from_iterable(
        itertools.combinations(range(7), size) for size in range(8)
    )
    best = max(len(player.play(choice)) for choice in choices)
    assert best < 7
    for start in ([], range(7)):
        found = improve(player, [start], seed=seed, max_plays=100)
        assert round(7 * found.attainment) == best
