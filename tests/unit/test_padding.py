"""Padding by Hoeffding's bound."""

from __future__ import annotations

import math

import pytest

from headway.kit.lengths import MaxTokens
from headway.papers.cacheopt import c1_lengths
from headway.papers.cacheopt.c1_lengths import HoeffdingPadding
from headway.request import Request
from headway.slo import Slo


def arrive(name: str, at_s: float = 0.0, bound: int = 1000, output: int = 0) -> Request:
    request = Request(name, Slo(class_name="chat"), at_s, 10, bound)
    request.num_output_tokens = output
    return request


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
    predictor = HoeffdingPadding(Guess(200), min_errors=2)
    for i in range(20):
        predictor.predict(arrive(f"r{i}", float(i)))
    for name, length in (("r0", 900), ("r18", 210), ("r19", 210)):
        predictor.learn(arrive(name, output=length))
    assert predictor.padding_tokens(200) == 0, "two errors of +10 have no range; r0 is forgotten"
    predictor.learn(arrive("r17", output=310))
    assert predictor.padding_tokens(200) > 0
