"""Guesses of output lengths."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.errors import UserError
from headway.policy.lengths.histogram import ClassBucketHistogram
from headway.policy.predict import AtQuantile, MaxTokens, Memoryless, Oracle, SlidingHistogram
from headway.request import Request
from headway.slo import Slo


def request_of(output: int = 0, bound: int = 1000, name: str = "chat") -> Request:
    request = Request("r", Slo(class_name=name), 0.0, 10, bound)
    request.num_output_tokens = output
    return request


def test_the_bound_is_a_prediction() -> None:
    """ORCA's predictor answers with the client's own bound."""
    predictor = MaxTokens()
    predictor.learn(request_of(5))
    assert predictor.predict(request_of(bound=77)) == 77


def test_without_history_half_of_a_modest_bound() -> None:
    """Before enough was seen, half of what the client allows, at most 256 tokens."""
    histogram = SlidingHistogram()
    assert histogram.predict(request_of(bound=100)) == 50
    assert histogram.predict(request_of(bound=100_000)) == 256
    assert histogram.predict(request_of(output=60, bound=100)) == 80


def test_who_has_run_long_is_compared_with_the_long() -> None:
    """The prediction grows with what was generated already."""
    histogram = SlidingHistogram(quantile=0.5)
    for length in (10,) * 50 + (400,) * 50:
        histogram.learn(request_of(length))
    assert histogram.predict(request_of(0)) == 400
    assert SlidingHistogram().predict(request_of(0, bound=2)) == 1
    assert histogram.predict(request_of(11)) == 400
    assert histogram.predict(request_of(500)) > 500


def test_classes_do_not_mix() -> None:
    """What summaries need says nothing about chats."""
    histogram = SlidingHistogram()
    for _ in range(20):
        histogram.learn(request_of(7, name="chat"))
        histogram.learn(request_of(300, name="summary"))
    assert histogram.predict(request_of(name="chat")) == 7
    assert histogram.predict(request_of(name="summary")) == 300


@given(st.lists(st.integers(1, 900), max_size=60), st.integers(0, 900), st.integers(1, 1000))
def test_a_prediction_lies_ahead_and_within_the_bound(
    lengths: list[int], so_far: int, bound: int
) -> None:
    """More than was generated; not more than allowed, unless that is reached already."""
    histogram = SlidingHistogram()
    for length in lengths:
        histogram.learn(request_of(length))
    predicted = histogram.predict(request_of(so_far, bound))
    assert predicted > so_far
    assert predicted <= max(bound, so_far + 1)


# -- distributions ----------------------------------------------------------------------------


def new(name: str = "chat", prompt: int = 10, bound: int = 4000, output: int = 0) -> Request:
    request = Request("r", Slo(class_name=name), 0.0, prompt, bound)
    request.num_output_tokens = output
    return request


def filled(lengths: Iterable[int], **fields: Any) -> ClassBucketHistogram:
    histogram = ClassBucketHistogram(window=1000)
    for length in lengths:
        histogram.learn(new(output=length, **fields))
    return histogram


def test_a_bucket_answers_once_it_knows_enough() -> None:
    """Below 40 members of its prompt bucket the class answers, from then on the bucket."""
    histogram = filled([10] * 100, prompt=100)
    for _ in range(39):
        histogram.learn(new(prompt=3000, output=900))
    assert histogram.quantile(new(prompt=3000), 0.5) == 10
    histogram.learn(new(prompt=3000, output=900))
    assert histogram.quantile(new(prompt=3000), 0.5) == 900
    assert histogram.quantile(new(prompt=100), 0.5) == 10


def test_an_unknown_class_asks_all_classes() -> None:
    """Eight outputs of anybody are better than nothing; seven are not."""
    assert filled([33] * 8).quantile(new("code"), 0.9) == 33
    assert filled([33] * 7).quantile(new("code"), 0.5) == Memoryless().quantile(new(), 0.5) == 256


def test_who_outran_the_class_is_not_compared_with_others() -> None:
    """A chat longer than any chat gets the memoryless guess, not the length of summaries."""
    histogram = filled([50] * 100)
    for _ in range(100):
        histogram.learn(new("summary", output=3000))
    assert histogram.quantile(new(output=49), 0.5) == 50
    assert histogram.quantile(new(output=50), 0.5) == 50 + 256


def test_the_window_forgets_per_class() -> None:
    """A rare prompt bucket forgets as fast as its class, not with its own arrivals."""
    histogram = ClassBucketHistogram(window=60)
    for _ in range(50):
        histogram.learn(new(prompt=3000, output=900))
    for _ in range(60):
        histogram.learn(new(prompt=100, output=20))
    assert histogram.quantile(new(prompt=3000), 0.99) == 20


def test_cut_outputs_count_as_at_least_so_long() -> None:
    """With half of the outputs cut at 100 of 50..149, the upper half is not taken for short."""
    lengths = list(range(50, 150)) * 2
    histogram = ClassBucketHistogram(window=1000)
    for i, length in enumerate(lengths):
        bound = 100 if i % 2 else 4000
        histogram.learn(new(bound=bound, output=min(length, bound)))
    assert histogram.quantile(new(), 0.8) == pytest.approx(129, abs=1)
    hung_up = filled(range(50, 150))
    for _ in range(50):
        hung_up.learn_cut(new(output=100))
    assert hung_up.quantile(new(), 0.6) > filled(range(50, 150)).quantile(new(), 0.6)
    hung_up.learn_cut(new(output=0))
    assert hung_up.survival(new(), 49) == 1.0


@given(
    st.lists(st.tuples(st.integers(1, 60), st.booleans()), max_size=80),
    st.integers(0, 60),
    st.integers(1, 70),
    st.floats(0.01, 0.99),
    st.floats(0.01, 0.99),
)
def test_a_quantile_and_the_survival_are_inverse(
    lengths: list[tuple[int, bool]], so_far: int, bound: int, p: float, q: float
) -> None:
    """The quantile is the least length whose survival is at most 1 - p; both are monotone."""
    histogram = ClassBucketHistogram(min_bucket=10)
    for length, is_cut in lengths:
        (histogram.learn_cut if is_cut else histogram.learn)(new(output=length))
    request = new(bound=max(bound, so_far + 1), output=so_far)
    for lengths_of in (histogram, Memoryless(), Oracle({"r": 40}, spread=0.3)):
        found = lengths_of.quantile(request, p)
        assert so_far < found <= request.max_output_tokens
        assert lengths_of.survival(request, found) <= 1 - p + 1e-6
        if found > so_far + 1:
            assert lengths_of.survival(request, found - 1) > 1 - p - 1e-6
        assert lengths_of.quantile(request, max(p, q)) >= lengths_of.quantile(request, min(p, q))
        assert lengths_of.quantile(request, 1.0) == request.max_output_tokens
        curve = [lengths_of.survival(request, n) for n in range(75)]
        assert curve == sorted(curve, reverse=True)
        assert curve[so_far] == 1.0
        assert curve[-1] == 0.0


def test_memoryless_agrees_with_the_first_guess() -> None:
    """Its median is what the histogram assumes before it has seen anything."""
    for request in (new(bound=100), new(bound=100_000), new(bound=100, output=60)):
        assert Memoryless().quantile(request, 0.5) == SlidingHistogram().predict(request)


def test_one_quantile_is_a_predictor() -> None:
    """AtQuantile predicts its quantile and passes lengths on."""
    predictor = AtQuantile(ClassBucketHistogram(), 0.9)
    for length in range(1, 101):
        predictor.learn(new(output=length))
    assert predictor.predict(new()) == 90
    assert predictor.predict(new(output=80)) == 98


# -- the oracle -------------------------------------------------------------------------------


def test_the_oracle_knows_the_truth_and_the_bound() -> None:
    """Any quantile is the true length, unless the client's bound ends it before."""
    oracle = Oracle({"r": 120})
    assert oracle.predict(new()) == oracle.quantile(new(), 0.01) == oracle.quantile(new(), 0.99)
    assert oracle.predict(new()) == 120
    assert oracle.predict(new(bound=70)) == 70
    assert [oracle.survival(new(), n) for n in (119, 120)] == [1.0, 0.0]
    with pytest.raises(UserError, match="no length for the request 'r'"):
        Oracle({}).predict(new())


def test_a_predictor_of_known_quality_is_calibrated() -> None:
    """With a spread, the share of truths within the quantile at p is p."""
    drawn = np.random.default_rng(3).integers(50, 900, 4000)
    truth = {f"r{i}": int(n) for i, n in enumerate(drawn)}
    oracle, other = Oracle(truth, spread=0.5, seed=1), Oracle(truth, spread=0.5, seed=1)
    requests = [Request(name, Slo(), 0.0, 10, 100_000) for name in truth]
    guesses = [oracle.predict(r) for r in requests]
    assert guesses == [other.predict(r) for r in reversed(requests)][::-1]
    errors = np.log(np.array(guesses) / np.array(list(truth.values())))
    assert np.std(errors) == pytest.approx(0.5, rel=0.05)
    for p in (0.2, 0.5, 0.9):
        covered = [truth[r.request_id] <= oracle.quantile(r, p) for r in requests]
        assert np.mean(covered) == pytest.approx(p, abs=0.02)
