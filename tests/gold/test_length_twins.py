"""Predictors of output lengths beside slow twins that start from the whole past each time."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.papers.cacheopt.c1_lengths import LEVELS, MOST_LEVEL, HoeffdingPadding, Track
from headway.policy.lengths.curve import SurvivalCurve
from headway.policy.lengths.histogram import ClassBucketHistogram
from headway.policy.predict import MaxTokens, Memoryless
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


def quantile(sample: list[tuple[int, bool]], p: Fraction, so_far: int) -> int | None:
    for length in sorted({length for length, is_cut in sample if not is_cut}):
        if length > so_far and survival(sample, length) <= (1 - p) * survival(sample, so_far):
            return length
    return None


@given(st.lists(outcome, min_size=1, max_size=40), st.lists(outcome, max_size=10))
@settings(max_examples=50)
def test_the_curve_is_the_product_limit(
    sample: list[tuple[int, bool]], gone: list[tuple[int, bool]]
) -> None:
    """Whatever came and went, the curve is Kaplan and Meier's of what is there now."""
    curve = SurvivalCurve()
    for one in sample + gone:
        curve.add(*one)
    curve.survival(5, 0)  # Builds it, so that removing must take it down again.
    for one in gone:
        curve.remove(*one)
    for so_far in (0, 3, 12):
        if not any(length > so_far for length, _ in sample):
            continue
        for p in (Fraction(0), Fraction(1, 10), Fraction(7, 10), Fraction(19, 20)):
            assert curve.quantile(float(p), so_far) == quantile(sample, p, so_far)
        for n in range(so_far, 27):
            expected = float(survival(sample, n) / survival(sample, so_far))
            assert curve.survival(n, so_far) == pytest.approx(expected, abs=1e-12)


def finished(length: int, name: str, prompt: int, bound: int = 4000) -> Request:
    request = Request("r", Slo(class_name=name), 0.0, prompt, bound)
    request.num_output_tokens = length
    return request


past = st.lists(
    st.tuples(
        st.integers(1, 30),
        st.booleans(),
        st.sampled_from("aab"),
        st.sampled_from([5, 20, 25, 40]),
    ),
    max_size=90,
)


@given(past, st.integers(0, 31), st.sampled_from([5, 20, 40]), st.sampled_from("abc"))
@settings(max_examples=100)
def test_the_histogram_is_a_list_of_the_past(
    history: list[tuple[int, bool, str, int]], so_far: int, prompt: int, name: str
) -> None:
    """Bucket, class, all, nothing: whichever knows enough, from lists filtered anew."""
    window, min_bucket = 12, 3
    histogram = ClassBucketHistogram(window=window, min_bucket=min_bucket, min_samples=8)
    for length, is_cut, of_class, of_prompt in history:
        if is_cut:
            histogram.learn_cut(finished(length, of_class, of_prompt))
        else:
            histogram.learn(finished(length, of_class, of_prompt))
    request = finished(so_far, name, prompt)
    mine = [row for row in history if row[2] == name][-window:]
    kin = [r for r in mine if int(math.log2(r[3]) + 1) // 2 == int(math.log2(prompt) + 1) // 2]
    if len(mine) >= 8 and sum(row[0] > so_far for row in kin) >= min_bucket:
        asked = kin
    else:
        asked = mine if len(mine) >= 8 else history[-window:]
    sample = [row[:2] for row in asked]
    knows = len(sample) >= 8 and any(length > so_far for length, _ in sample)
    for p in (Fraction(1, 10), Fraction(1, 2), Fraction(9, 10)):
        expected = quantile(sample, p, so_far) if knows else None
        if knows:
            assert histogram.quantile(request, float(p)) == (expected or 4000)
        else:
            assert histogram.quantile(request, float(p)) == Memoryless().quantile(request, float(p))


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


@pytest.mark.parametrize("seed", range(3))
def test_a_track_is_the_sum_of_its_moves(seed: int) -> None:
    """Levels follow Gibbs and Candès step by step; asked levels lie on a sorted line."""
    rng = np.random.default_rng(seed)
    track, raw, ps = Track(LEVELS, 0.05), np.array(LEVELS), np.array(LEVELS)
    for _ in range(400):
        misses = rng.choice([0.0, 0.5, 1.0], len(LEVELS), p=[0.5, 0.1, 0.4])
        track.move(misses.tolist())
        raw = np.clip(raw + 0.05 * 4 * ps * (1 - ps) * (misses - (1 - ps)), 0.0, MOST_LEVEL)
        line = np.maximum.accumulate(raw)
        for p in rng.random(3):
            expected = np.interp(p, [0.0, *ps, 1.0], [0.0, *line, MOST_LEVEL])
            assert track.level(p) == pytest.approx(expected, abs=1e-9)
            assert track.level(track.asked(float(expected))) == pytest.approx(expected, abs=1e-9)


Node = tuple[int, float, int, int, float]


def random_tree(rng: np.random.Generator, splits: int) -> list[Node]:
    """Return (feature, threshold, left, right, value) rows; a leaf points at itself."""
    tree: list[Node] = [(0, 0.0, 0, 0, float(rng.standard_normal()))]
    for _ in range(splits):
        leaves = [i for i, row in enumerate(tree) if row[2] == i]
        at, end = int(rng.choice(leaves)), len(tree)
        for child in (end, end + 1):
            tree.append((0, 0.0, child, child, float(rng.standard_normal())))
        tree[at] = (int(rng.integers(0, 4)), float(rng.integers(0, 8)), end, end + 1, 0.0)
    return tree


def depth_of(tree: list[Node], at: int) -> int:
    _, _, left, right, _ = tree[at]
    return 0 if left == at else 1 + max(depth_of(tree, left), depth_of(tree, right))
