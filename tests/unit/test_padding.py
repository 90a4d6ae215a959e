"""Padding by Hoeffding's bound, and levels corrected until they cover as often as they say."""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest

from headway.papers.cacheopt import c1_lengths
from headway.papers.cacheopt.c1_lengths import LEVELS, AdaptiveConformal, HoeffdingPadding
from headway.policy.lengths.histogram import ClassBucketHistogram
from headway.policy.predict import LengthDistribution, MaxTokens, Memoryless, Oracle
from headway.request import Request
from headway.slo import Slo
from headway.workloads import named


def arrive(name: str, at_s: float = 0.0, bound: int = 1000, output: int = 0) -> Request:
    request = Request(name, Slo(class_name="chat"), at_s, 10, bound)
    request.num_output_tokens = output
    return request


# -- Hoeffding --------------------------------------------------------------------------------


def padded_after(errors: list[int], rate_per_s: float, guess: int = 200) -> HoeffdingPadding:
    """Return a padding that saw outputs of *guess* + each error, arriving at an even rate."""
    truth = {f"r{i}": guess + error for i, error in enumerate(errors)}
    predictor = HoeffdingPadding(Guess(guess))
    for i, (name, length) in enumerate(truth.items()):
        predictor.predict(arrive(name, i / rate_per_s))
        predictor.learn(arrive(name, output=length))
    return predictor


class Guess(MaxTokens):
    """Always guesses the same."""

    def __init__(self, num_tokens: int) -> None:
        self._num_tokens = num_tokens

    def predict(self, request: Request) -> int:
        return max(self._num_tokens, request.num_output_tokens + 1)


def test_the_padding_is_the_papers_formula() -> None:
    """At 10 requests/s p = 0.95 / 1.01; a range of 90 errors above the guess adds 104.6."""
    predictor = padded_after([10, 100] * 10, rate_per_s=10.0)
    assert predictor.rate_per_s == pytest.approx(10.0)
    assert predictor.coverage_target == pytest.approx(0.95 / 1.01)
    size = 90 * math.sqrt(-0.5 * math.log(1 - 0.95 / 1.01))
    assert predictor.predict(arrive("new", 1.9)) == 200 + math.ceil(size) == 307


def test_over_prediction_is_padded_downwards() -> None:
    """Where outputs were shorter than predicted the padding is subtracted, until one outruns."""
    predictor = padded_after([-40, -20, -30] * 5, rate_per_s=1.0)
    assert predictor.predict(arrive("new", 14.0)) == 200 - 24
    assert predictor.predict(arrive("new", output=176)) == 200
    assert predictor.predict(arrive("new", output=300)) == 301


def test_the_faster_they_come_the_less_is_padded() -> None:
    """Confidence falls with the arrival rate, and with it the padding."""
    paddings = [padded_after([0, 90] * 10, rate).padding_tokens(200) for rate in (1, 100, 10_000)]
    assert paddings == sorted(paddings, reverse=True)
    assert paddings[0] > paddings[-1]


def test_too_few_errors_are_no_range() -> None:
    """Seven errors pad nothing, and errors of another bucket neither."""
    assert padded_after([0, 90, 0, 90, 0, 90, 0], 1.0).predict(arrive("new")) == 200
    assert padded_after([0, 90] * 10, 1.0).padding_tokens(300) == 0


def test_only_the_last_minute_counts_as_rate() -> None:
    """After a quiet hour the rate is that of the newcomers."""
    predictor = padded_after([0] * 20, rate_per_s=10.0)
    for i in range(3):
        predictor.predict(arrive(f"late{i}", 3600.0 + i))
    assert predictor.rate_per_s == pytest.approx(1.0)


def test_who_never_ends_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused and aborted requests do not pile up; the newest are kept."""
    monkeypatch.setattr(c1_lengths, "MOST_WATCHED", 5)
    predictor = HoeffdingPadding(Guess(200), min_errors=1)
    conformal = AdaptiveConformal(ClassBucketHistogram())
    for i in range(20):
        for one in (predictor, conformal):
            one.predict(arrive(f"r{i}", float(i)))
    for one in (predictor, conformal):
        one.learn(arrive("r0", output=900))
        one.learn(arrive("r19", output=210))
    assert predictor.padding_tokens(200) == 0  # One error of +10: no range, though known.
    assert conformal.coverage("chat")[0.5] == 1.0


# -- adaptive conformal -----------------------------------------------------------------------

ASKED = (0.3, 0.5, 0.8, 0.95)


@dataclass(frozen=True, slots=True)
class Lived:
    """Whether each finished request was covered on arrival, per asked level, in finish order."""

    covered: npt.NDArray[np.float64]
    num_before: int

    def steady(self) -> npt.NDArray[np.float64]:
        """Coverage before the drift, without the first 300."""
        return self.covered[300 : self.num_before].mean(axis=0)

    def shocked(self) -> npt.NDArray[np.float64]:
        """Coverage of the first 300 finished after the drift."""
        return self.covered[self.num_before : self.num_before + 300].mean(axis=0)

    def recovered(self) -> npt.NDArray[np.float64]:
        """Coverage from the 300th request finished after the drift on, all that were served."""
        return self.covered[self.num_before + 300 :].mean(axis=0)


def live_through(
    lengths: LengthDistribution, workload: str, seed: int, num_requests: int = 3600
) -> Lived:
    """Feed a named workload, about 20 requests running at once, every token equally long.

    From the middle on outputs are twice as long. One in twenty is refused on arrival, one in ten
    hangs up somewhere, one in ten is preempted half-way (asked about again, with its tokens).
    """
    drawn = named.make(workload, num_requests, 1.0, seed)
    rng = np.random.default_rng(seed)
    token_s = 20 / (1.5 * np.mean([r.num_output_tokens for r in drawn]))
    running: list[tuple[float, int, Request, int, bool]] = []
    first: dict[str, list[bool]] = {}
    covered: list[list[bool]] = []
    num_before = 0

    def until(now_s: float) -> None:
        while running and running[0][0] <= now_s:
            _, _, request, length, hangs_up = heapq.heappop(running)
            request.num_output_tokens = length
            if hangs_up:
                lengths.learn_cut(request)
                continue
            lengths.learn(request)
            covered.append([length <= n for n in first[request.request_id]])

    for i, row in enumerate(drawn):
        until(row.arrived_at_s)
        slo = Slo(class_name=row.slo_class or "none")
        request = Request(row.id, slo, row.arrived_at_s, row.num_prompt_tokens, 8192)
        first[row.id] = [lengths.quantile(request, p) for p in ASKED]
        if i == num_requests // 2:
            num_before = len(covered)
        fate = rng.random()
        length = row.num_output_tokens * (2 if i >= num_requests // 2 else 1)
        if fate < 0.05:
            continue
        hangs_up = fate < 0.15
        if hangs_up:
            length = math.ceil(length * rng.random())
        elif fate < 0.25:
            request.num_output_tokens = length // 2
            lengths.quantile(request, 0.5)
        ends_at_s = row.arrived_at_s + length * token_s
        heapq.heappush(running, (ends_at_s, i, request, length, hangs_up))
    return Lived(np.array(covered, np.float64), num_before)


@pytest.mark.parametrize("workload", ["long-outputs", "retrieval", "mixed"])
def test_coverage_is_what_was_asked_for(workload: str) -> None:
    """Within 2 points of p in the long run, and again 300 finished requests after a drift."""
    lengths = AdaptiveConformal(ClassBucketHistogram())
    lived = live_through(lengths, workload, seed=0)
    assert lived.steady() == pytest.approx(ASKED, abs=0.02)
    assert lived.recovered() == pytest.approx(ASKED, abs=0.02)
    live = lengths.coverage()
    assert [live[p] for p in ASKED] == pytest.approx(lived.covered[-1000:].mean(axis=0), abs=0.03)


def test_without_correction_a_drift_is_not_covered() -> None:
    """Of the first 300 after a drift the bare histogram misses many more than it should."""
    bare = live_through(ClassBucketHistogram(), "long-outputs", seed=0)
    corrected = live_through(AdaptiveConformal(ClassBucketHistogram()), "long-outputs", seed=0)
    assert (bare.shocked() < np.array(ASKED) - 0.1).all()
    assert corrected.shocked() == pytest.approx(ASKED, abs=0.05)


def test_what_preempted_and_hung_up_requests_do() -> None:
    """A preemption keeps the first prediction; who hangs up is not judged."""
    lengths = AdaptiveConformal(Oracle({"a": 100, "b": 100, "c": 100}))
    lengths.predict(arrive("a"))
    lengths.predict(arrive("a", output=60))
    lengths.learn(arrive("a", output=100))
    assert lengths.coverage() == dict.fromkeys(LEVELS, 1.0)
    lengths.predict(arrive("b"))
    lengths.learn_cut(arrive("b", output=7))
    lengths.learn(arrive("c", output=900))  # Never asked about: nothing to judge.
    assert lengths.coverage() == dict.fromkeys(LEVELS, 1.0)
    assert lengths.coverage("other") == {}


@pytest.mark.parametrize(("watches_again", "covered"), [(False, 0.0), (True, 1.0)])
def test_judged_is_the_first_prediction_or_the_one_watched(
    watches_again: bool, covered: float
) -> None:
    """Asking again while a request waits changes nothing; watching again does."""
    inner = ClassBucketHistogram()
    for i in range(10):
        inner.learn(arrive(f"old{i}", output=100))
    lengths = AdaptiveConformal(inner)
    assert lengths.quantile(arrive("a"), 0.5) == 100
    for i in range(100):
        inner.learn(arrive(f"new{i}", output=900))
    assert lengths.quantile(arrive("a"), 0.5) == 900
    if watches_again:
        lengths.watch(arrive("a"))
    lengths.learn(arrive("a", output=500))
    assert lengths.coverage("chat")[0.5] == covered


def test_levels_beyond_the_longest_grow_step_by_step() -> None:
    """After misses beyond everything known the answer doubles towards the bound, no jump."""
    lengths = AdaptiveConformal(Oracle({f"r{i}": 100 for i in range(200)}))
    seen = []
    for i in range(200):
        seen.append(lengths.quantile(arrive(f"r{i}", bound=6400), 0.8))
        lengths.learn(arrive(f"r{i}", bound=6400, output=5000))
    assert seen[0] == 100
    climb = seen[: next(i for i, n in enumerate(seen) if n >= 5000) + 1]
    assert climb == sorted(climb)
    assert len(climb) > 20
    assert max(seen) <= 6400
    assert max(b / a for a, b in pairwise(seen)) < 1.3
    assert np.mean(np.array(seen[100:]) >= 5000) == pytest.approx(0.8, abs=0.03)


def test_the_corrected_survival_is_the_inverse_of_the_corrected_quantile() -> None:
    """The corrected survival falls to 1 - p at the corrected quantile of p, and not before."""
    rng = np.random.default_rng(4)
    lengths = AdaptiveConformal(Memoryless())
    for i in range(300):
        lengths.predict(arrive(f"r{i}", bound=8000))
        lengths.learn(arrive(f"r{i}", bound=8000, output=int(rng.integers(600, 900))))
    for output in (0, 400):
        request = arrive("new", bound=8000, output=output)
        curve = [lengths.survival(request, n) for n in range(0, 8001, 25)]
        assert curve == sorted(curve, reverse=True)
        assert (curve[0], curve[-1]) == (1.0, 0.0)
        for p in (0.2, 0.5, 0.8):
            n = lengths.quantile(request, p)
            assert lengths.survival(request, n) <= 1 - p + 1e-9
            assert lengths.survival(request, n - 1) > 1 - p - 0.01


def test_the_same_past_gives_the_same_predictions() -> None:
    """Two that lived through the same answer alike, to the token."""
    one, two = (AdaptiveConformal(ClassBucketHistogram()) for _ in range(2))
    for lengths in (one, two):
        live_through(lengths, "mixed", seed=3, num_requests=300)
    new = arrive("new", bound=8192)
    assert [one.quantile(new, p / 50) for p in range(51)] == [
        two.quantile(new, p / 50) for p in range(51)
    ]
    assert one.coverage() == two.coverage()
