"""Predictors of output lengths beside slow twins that start from the whole past each time."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.kit.lengths import MaxTokens
from headway.papers.cacheopt.c1_lengths import HoeffdingPadding
from headway.policy.lengths.survival import SurvivalCurve
from headway.request import Request
from headway.slo import Slo

outcome = st.tuples(st.integers(1, 25), st.booleans())


def survival(sample: list[tuple[int, bool]], num_tokens: int) -> Fraction:
    """Return Kaplan and Meier's estimate by its definition, exactly."""
    alive = Fraction(1)
    for at in sorted({length for length, is_cut in sample if not is_cut}):
        if at <= num_tokens:
            ends = sum(length == at and not is_cut for length, is_cut in sample)
            at_risk = sum(length >= at for length, _ in sample)
            alive *= 1 - Fraction(ends, at_risk)
    return alive


@given(st.lists(outcome, min_size=1, max_size=40), st.lists(outcome, max_size=10))
@settings(max_examples=50)
def test_the_curve_is_the_product_limit(
    sample: list[tuple[int, bool]], gone: list[tuple[int, bool]]
) -> None:
    """Whatever came and went, the curve is Kaplan and Meier's of what is there now."""
    curve = SurvivalCurve()
    for one in sample + gone:
        curve.add(*one)
    curve.at(np.array([5.0]))  # Builds it, so that removing must take it down again.
    for one in gone:
        curve.remove(*one)
    expected = [float(survival(sample, n)) for n in range(27)]
    assert curve.at(np.arange(27.0)) == pytest.approx(expected, abs=1e-12)


@given(
    st.lists(
        st.tuples(st.floats(0, 30), st.integers(1, 300), st.sampled_from([40, 60, 200])),
        max_size=60,
    ),
    st.sampled_from([40, 60, 200]),
)
@settings(max_examples=50)
def test_hoeffding_padding_from_the_whole_past(
    past_calls: list[tuple[float, int, int]], bound: int
) -> None:
    """Rate, range, sign and padding, each from a list of everything that ever happened."""
    padded = HoeffdingPadding(MaxTokens(), beta=0.5, window=20, min_errors=4, rate_window_s=60.0)
    now_s, arrivals, errors = 0.0, [], []
    for i, (gap_s, length, guess) in enumerate(past_calls):
        now_s += gap_s
        request = Request(f"r{i}", Slo(), now_s, 10, guess)
        padded.predict(request)
        arrivals.append(now_s)
        request.num_output_tokens = length
        padded.learn(request)
        errors.append((guess, length - guess))
    recent = [at for at in arrivals if at >= now_s - 60.0]
    span_s = recent[-1] - recent[0] if recent else 0.0
    rate = (len(recent) - 1) / span_s if span_s > 0 else 0.0
    confidence = 0.95 / (1 + 0.5 * rate)
    alike = [e for guess, e in errors if int(math.log2(guess)) == int(math.log2(bound))][-20:]
    padding = 0
    if len(alike) >= 4:
        size = math.sqrt(-((max(alike) - min(alike)) ** 2) / 2 * math.log(1 - confidence))
        padding = math.ceil(size - 1e-9) if sum(alike) > 0 else -math.floor(size + 1e-9)
    assert padded.padding_tokens(bound) == pytest.approx(padding, abs=1e-9)
