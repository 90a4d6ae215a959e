"""The slow obvious twins of AccelGen's packing, time left and saturating size."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.latency.model import StepShape
from headway.papers.accelgen.a1_chunk import GRAIN_TOKENS, SATURATED, saturating_tokens
from headway.papers.accelgen.a2_order import time_left_s
from headway.papers.accelgen.a3_packing import (
    MOST_EXACT,
    Aligned,
    Amount,
    BestSubset,
    Nearest,
    distance,
)
from headway.request import Request
from headway.slo import Slo

amounts = st.builds(Amount, st.integers(1, 40), st.integers(0, 40))
lefts = st.builds(Amount, st.integers(0, 60), st.integers(0, 60))
CAPACITY = Amount(64, 80)


def total(chosen: list[Amount]) -> Amount:
    return Amount(sum(a.num_tokens for a in chosen), sum(a.num_blocks for a in chosen))


def fits(chosen: list[Amount], left: Amount) -> bool:
    sums = total(chosen)
    return sums.num_tokens <= left.num_tokens and sums.num_blocks <= left.num_blocks


def away(chosen: list[Amount], left: Amount) -> float:
    """The distance written out, squared roots and all."""
    sums = total(chosen)
    tokens = (left.num_tokens - sums.num_tokens) / CAPACITY.num_tokens
    blocks = (left.num_blocks - sums.num_blocks) / CAPACITY.num_blocks
    return (tokens**2 + blocks**2) ** 0.5


@given(st.lists(amounts, max_size=9), lefts)
@settings(max_examples=200)
def test_the_best_subset_is_the_best_of_all(demands: list[Amount], left: Amount) -> None:
    """No subset that fits ends nearer to what is left."""
    best = math.inf
    for size in range(len(demands) + 1):
        for subset in itertools.combinations(demands, size):
            if fits(list(subset), left):
                best = min(best, away(list(subset), left))
    chosen = BestSubset().pick(demands, left, CAPACITY)
    assert len(set(chosen)) == len(chosen)
    assert fits([demands[i] for i in chosen], left)
    assert away([demands[i] for i in chosen], left) == pytest.approx(best)


@given(st.lists(amounts, max_size=9), lefts)
@settings(max_examples=200)
def test_one_at_a_time_takes_the_first_best_that_fits(demands: list[Amount], left: Amount) -> None:
    """Looking at each candidate alone finds the same, for either rule; ties go to the earlier."""
    nearest: int | None = None
    aligned: int | None = None
    for i, demand in enumerate(demands):
        if not fits([demand], left):
            continue
        if nearest is None or distance(demand, left, CAPACITY) < distance(
            demands[nearest], left, CAPACITY
        ):
            nearest = i
        if aligned is None or dot(demand, left) > dot(demands[aligned], left) * (1 + 1e-12):
            aligned = i
    assert Nearest().pick(demands, left, CAPACITY) == ([] if nearest is None else [nearest])
    found = Aligned().pick(demands, left, CAPACITY)
    assert len(found) == (aligned is not None)
    if aligned is not None:
        assert dot(demands[found[0]], left) == pytest.approx(dot(demands[aligned], left))


def dot(demand: Amount, left: Amount) -> float:
    return (demand.num_tokens / 64) * (left.num_tokens / 64) + (demand.num_blocks / 80) * (
        left.num_blocks / 80
    )


@given(st.lists(amounts, min_size=1, max_size=9), lefts)
@settings(max_examples=200)
def test_the_nearest_again_and_again_never_beats_the_best_subset(
    demands: list[Amount], left: Amount
) -> None:
    """Greedy fills a step; the exact rule ends at least as near. Both respect both limits."""
    taken: list[Amount] = []
    rest, room = list(demands), left
    while picked := Nearest().pick(rest, room, CAPACITY):
        taken.append(rest.pop(picked[0]))
        room = Amount(*(has - took for has, took in zip(room, taken[-1], strict=True)))
    assert fits(taken, left)
    exact = [demands[i] for i in BestSubset().pick(demands, left, CAPACITY)]
    assert away(exact, left) <= away(taken, left) + 1e-12


@given(st.lists(amounts, min_size=2, max_size=9), lefts)
def test_a_token_alone_is_taken_last(demands: list[Amount], left: Amount) -> None:
    """A decode (one token, no block) is never picked before a prompt that fits: the step
    composes decodes after the prompts of their window and relies on this."""
    decode = Amount(1, 0)
    prompts = [d for d in demands if d != decode and fits([d], left)]
    if not prompts or not fits([decode], left):
        return
    candidates = [decode, *prompts]
    assert Nearest().pick(candidates, left, CAPACITY) != [0]
    assert BestSubset().pick(candidates, left, CAPACITY) != [0]


def test_the_exact_rule_looks_at_so_many() -> None:
    """Beyond that it stays affordable, and what it chooses still fits."""
    demands = [Amount(3 + i % 5, 2 + i % 7) for i in range(40)]
    chosen = BestSubset().pick(demands, Amount(60, 60), CAPACITY)
    assert max(chosen) < MOST_EXACT
    assert fits([demands[i] for i in chosen], Amount(60, 60))


# -- time left --------------------------------------------------------------------------------


@given(
    st.floats(0.1, 5),
    st.floats(0, 3),
    st.floats(0.01, 0.3),
    st.integers(1, 400),
    st.integers(0, 399),
    st.integers(1, 100),
)
def test_a_prompt_that_begins_when_its_time_is_up_is_just_on_time(
    ttft_s: float, waited_s: float, step_s: float, prompt: int, computed: int, chunk: int
) -> None:
    """Walking the chunks one step each from then on ends at the promised first token."""
    request = Request("r", Slo(ttft_s=ttft_s), 10.0, prompt, 8)
    request.num_computed_tokens = min(computed, prompt - 1)
    left_s, promise_s = time_left_s(
        request.slo, request, 10.0 + waited_s, step_s, float(chunk), decodes=False
    )
    at_s, remaining = 10.0 + waited_s + left_s, request.remaining_prefill_tokens
    while remaining > 0:
        remaining -= chunk
        at_s += step_s
    assert at_s == pytest.approx(10.0 + ttft_s)
    assert promise_s == ttft_s


@given(
    st.floats(1, 20),
    st.lists(st.floats(0, 1), min_size=1, max_size=12),
    st.integers(1, 12),
    st.floats(0.01, 0.2),
)
def test_earliness_and_lateness_are_carried(
    jct_s: float, used: list[float], more: int, step_s: float
) -> None:
    """However much of each iteration's allowance was used, using up all that is left of them
    ends exactly at the promised completion."""
    request = Request("r", Slo(jct_s=jct_s), 0.0, 1, 100)
    request.predicted_output_tokens = len(used) + more
    at_s = 0.0
    for token in range(len(used) + more):
        left_s, allowance_s = time_left_s(
            request.slo, request, at_s, step_s, 64.0, decodes=token > 0
        )
        assert left_s + step_s == pytest.approx(allowance_s)
        share = used[token] if token < len(used) else 1.0
        at_s += share * allowance_s
        request.num_output_tokens += 1
        request.last_token_at_s = at_s
    assert at_s == pytest.approx(jct_s)


# -- the saturating size -----------------------------------------------------------------------


@given(st.floats(0.001, 0.05), st.floats(1e-5, 1e-3), st.floats(0, 1e-7), st.integers(1, 3000))
def test_the_saturating_size_is_the_first_on_the_grid(
    fixed_s: float, token_s: float, pair_s: float, most: int
) -> None:
    """Trying every size finds no smaller one that is as fast."""

    def step_s(shape: StepShape) -> float:
        return fixed_s + token_s * shape.num_prefill_tokens + pair_s * shape.chunk_context

    def speed(size: int) -> float:
        return size / step_s(StepShape().with_chunk(size, 0))

    sizes = [n for n in range(1, most + 1) if n % GRAIN_TOKENS == 0 or n == most]
    best = max(speed(n) for n in sizes)
    found = saturating_tokens(step_s, most)
    assert found in sizes
    assert speed(found) >= SATURATED * best
    assert all(speed(n) < SATURATED * best for n in sizes if n < found)
