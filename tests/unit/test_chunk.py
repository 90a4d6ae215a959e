"""How many prompt tokens a step takes on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from drafts import draft_of
from hypothesis import given
from hypothesis import strategies as st

from headway.kit.simple import FixedChunk
from headway.latency.model import LatencyModel, StepShape
from headway.policy.chunk import SlackChunk
from headway.policy.draft import Draft
from headway.policy.live_requests import LiveRequests
from headway.policy.prices import DECIDE_EVERY, LEAST_CHUNK_TOKENS, GapPrices
from headway.policy.view import EngineView
from headway.request import Request, State
from headway.slo import NO_PROMISE, Slo


class Exact(LatencyModel):
    """A machine known exactly: 10 ms a step, 1 ms a decode, 0.1 ms a prompt token."""

    def __init__(self, spread: float = 0.0) -> None:
        self._spread = spread

    def predict_s(self, shape: StepShape) -> float:
        return 0.01 + 1e-3 * shape.num_decodes + 1e-4 * shape.num_prefill_tokens

    def margin(self, mixed: bool, miss_rate: float) -> float:
        return 1.0 + self._spread

    def exceeds(self, mixed: bool, ratio: float) -> float:
        return 1.0 if ratio <= 1.0 else 0.5 if ratio < 1.0 + self._spread else 0.0

    def observe(self, shape: StepShape, duration_s: float) -> None:
        pass


def context(
    gaps: dict[float, int] | None = None,
    num_decodes: int = 0,
    asked_s: Sequence[float] = (),
    max_step_tokens: int = 2048,
    pressure: float = 1.0,
    lagging_due_s: float = math.inf,
    model: LatencyModel | None = None,
    num_free_blocks: int = 1000,
    num_waiting: int = 0,
) -> Draft:
    live = LiveRequests()
    for i in range(num_waiting):
        live.arrive(Request(f"w{i}", NO_PROMISE, 0.0, 5000, 50))
    for i, gap_s in enumerate(g for g, n in (gaps or {}).items() for _ in range(n)):
        request = Request(f"d{i}", Slo(tbt_s=gap_s), 0.0, 10, 50)
        live.arrive(request)
        live.unqueue(request)
        request.num_computed_tokens = 10
        request.move(State.RUNNING, 0.0, "started")
        live.start_prefill(request)
        live.start_decode(request)
    price = GapPrices()
    for i, ttft_s in enumerate(asked_s):
        price.learn(Request(f"t{i}", Slo(ttft_s=ttft_s), 0.0, 100, 50), 0.5 * i, 1.0)
    for request in live.decoding.values():
        price.learn(request, 0.0, 1.0)
    view = EngineView(1000, num_free_blocks, 16, 64, max_step_tokens)
    return draft_of(
        live,
        view,
        10.0,
        step=DECIDE_EVERY,
        step_s=0.02,
        price=price,
        claim_tokens=300.0,
        lagging_due_s=lagging_due_s,
        latency=model or Exact(),
        shape=StepShape(0, 0, num_decodes, 20 * num_decodes),
        pressure=pressure,
    )


def test_fixed_chunk_is_a_budget() -> None:
    """Decodes and earlier chunks come out of the budget, the engine's own when none is given."""
    draft = context(num_decodes=3)
    assert FixedChunk(512).largest(draft, StepShape(100, 1, 3), 0, 1000) == 512 - 103
    assert FixedChunk(512).largest(draft, StepShape(600, 1, 3), 0, 1000) == 0
    assert FixedChunk().largest(draft, StepShape(0, 0, 3), 0, 5000) == 2045
    assert FixedChunk(512).step_limit_s(draft) == math.inf
    assert FixedChunk(512).upper_s(draft, draft.shape) == pytest.approx(0.013)


def test_without_a_promise_at_stake_the_whole_prompt_goes() -> None:
    """Nobody decodes under a promise and nobody tight arrives: the engine's limit decides."""
    assert SlackChunk().largest(context(), StepShape(), 0, 5000) == 2048


def test_a_gap_bounds_the_step() -> None:
    """With an exact model the chunk fills the tightest gap well and never exceeds it."""
    draft = context({0.1: 5}, num_decodes=5)
    chunker = SlackChunk()
    tokens = chunker.largest(draft, draft.shape, 0, 5000)
    seconds = draft.given.latency.predict_s(draft.shape.with_chunk(tokens, 0))
    assert 0.05 < seconds < 0.1


def test_the_tightest_gap_counts() -> None:
    """One stream with a gap of 30 ms bounds the step for all."""
    draft = context({0.03: 1, 0.5: 5}, num_decodes=6)
    tokens = SlackChunk().largest(draft, draft.shape, 0, 5000)
    assert 0 < draft.given.latency.predict_s(draft.shape.with_chunk(tokens, 0)) < 0.03


def test_an_unsure_model_makes_shorter_steps() -> None:
    """The wider the errors measured, the further from the gap the step stays."""
    sure, unsure = (context({0.1: 5}, num_decodes=5, model=Exact(spread)) for spread in (0.0, 0.8))
    assert SlackChunk().largest(unsure, unsure.shape, 0, 5000) < SlackChunk().largest(
        sure, sure.shape, 0, 5000
    )


@pytest.mark.parametrize(
    ("num_free_blocks", "pressure", "is_short"),
    [(500, 0.5, False), (300, 0.5, True), (300, 1.0, False)],
)
def test_a_crowded_cache_keeps_steps_short(
    num_free_blocks: int, pressure: float, is_short: bool
) -> None:
    """Within twice the decodes' time: but not while there is room, nor while prefill is pressed."""
    draft = context({0.1: 5}, num_decodes=5, pressure=pressure, num_free_blocks=num_free_blocks)
    tokens = SlackChunk().largest(draft, draft.shape, 0, 5000)
    decode_s = draft.given.latency.predict_s(draft.shape)
    length_s = draft.given.latency.predict_s(draft.shape.with_chunk(tokens, 0))
    assert (length_s <= 2 * decode_s) is is_short
    assert tokens >= LEAST_CHUNK_TOKENS


def test_a_decode_out_of_step_is_waited_for() -> None:
    """A stream whose token is due sooner than a whole gap bounds the step too."""
    draft = context({0.1: 5}, num_decodes=5, lagging_due_s=10.03)
    tokens = SlackChunk().largest(draft, draft.shape, 0, 5000)
    assert draft.given.latency.predict_s(draft.shape.with_chunk(tokens, 0)) < 0.03


def test_first_tokens_to_come_cut_no_prompt() -> None:
    """It would be slowed for certain, for the sake of a chat that may never come."""
    draft = context({5.0: 1}, num_decodes=1, asked_s=[0.15] * 20, num_waiting=2)
    assert SlackChunk().largest(draft, draft.shape, 0, 5000) == 2047


@pytest.mark.parametrize("gaps", [{}, {0.1: 5}])
def test_an_impossible_first_token_does_not_stop_prefill(gaps: dict[float, int]) -> None:
    """A TTFT shorter than any step costs is no reason to compute nothing."""
    draft = context(gaps, num_decodes=5 * len(gaps), asked_s=[0.001] * 20, num_waiting=2)
    assert SlackChunk().largest(draft, draft.shape, 0, 5000) >= 16


@pytest.mark.parametrize("others", [{}, {0.1: 5}])
def test_an_impossible_gap_does_not_stop_prefill(others: dict[float, int]) -> None:
    """A gap that the decodes alone exceed is broken anyway, and does not bind the others."""
    gaps = {0.001: 1, **others}
    draft = context(gaps, num_decodes=sum(gaps.values()))
    tokens = SlackChunk().largest(draft, draft.shape, 0, 5000)
    assert tokens >= 16
    if others:
        assert draft.given.latency.predict_s(draft.shape.with_chunk(tokens, 0)) <= 0.1


def test_who_waited_too_long_makes_progress() -> None:
    """Where no token fits the promises, an overdue prompt still gets a small chunk."""
    draft = context({0.016: 5}, num_decodes=5, pressure=0.0)
    chunker = SlackChunk()
    forced = chunker.largest(draft, draft.shape, 0, 5000, must_go_on=True)
    assert forced >= LEAST_CHUNK_TOKENS
    assert chunker.largest(draft, draft.shape, 0, 5, must_go_on=True) == 5


@given(
    st.dictionaries(st.sampled_from([0.001, 0.015, 0.05, 0.2]), st.integers(1, 20), max_size=3),
    st.integers(0, 400),
    st.integers(0, 3000),
    st.floats(0.0, 1.0),
    st.sampled_from([16, 64, 2048]),
    st.booleans(),
)
def test_a_chunk_is_within_the_engines_limits(
    gaps: dict[float, int],
    taken: int,
    most: int,
    pressure: float,
    max_step_tokens: int,
    must_go_on: bool,
) -> None:
    """Never negative, never more than asked for, never more than the step has room for."""
    num_decodes = sum(gaps.values())
    draft = context(gaps, num_decodes, pressure=pressure, max_step_tokens=max_step_tokens)
    shape = draft.shape.with_chunk(taken, 0)
    tokens = SlackChunk().largest(draft, shape, 0, most, must_go_on=must_go_on)
    assert 0 <= tokens <= most
    assert tokens <= max(max_step_tokens - num_decodes - taken, 0)
