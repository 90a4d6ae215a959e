"""Guesses of output lengths."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.errors import UserError
from headway.kit.lengths import MaxTokens, Oracle, SlidingHistogram
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


# -- the oracle -------------------------------------------------------------------------------


def test_the_oracle_knows_the_truth_and_the_bound() -> None:
    """It answers with the true length, unless the client's bound ends it before."""
    oracle = Oracle({"r": 120})
    assert oracle.predict(request_of()) == 120
    assert oracle.predict(request_of(bound=70)) == 70
    with pytest.raises(UserError, match="no length for the request 'r'"):
        Oracle({}).predict(request_of())


def test_the_error_of_a_guess_is_what_was_asked_for() -> None:
    """With a spread it is the deviation of the error's logarithm, whatever the order of asking."""
    drawn = np.random.default_rng(3).integers(50, 900, 4000)
    truth = {f"r{i}": int(n) for i, n in enumerate(drawn)}
    oracle, other = Oracle(truth, spread=0.5, seed=1), Oracle(truth, spread=0.5, seed=1)
    requests = [Request(name, Slo(), 0.0, 10, 100_000) for name in truth]
    guesses = [oracle.predict(r) for r in requests]
    assert guesses == [other.predict(r) for r in reversed(requests)][::-1]
    errors = np.log(np.array(guesses) / np.array(list(truth.values())))
    assert np.std(errors) == pytest.approx(0.5, rel=0.05)
