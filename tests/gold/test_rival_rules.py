"""The slow obvious twin of each clever computation of the rivals."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from drafts import draft_of
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.latency.model import StepShape
from headway.policy.admit import DueWork
from headway.policy.draft import Draft
from headway.policy.live_requests import LiveRequests
from headway.policy.view import EngineView
from headway.request import Request, State
from headway.rivals.fastserve import SkipJoin
from headway.rivals.pastfuture import RecentLengths, future_peak
from headway.rivals.reserved import Reserved, reserved_blocks
from headway.rivals.sliding import SHARES, best_first_chunk, most_weight_on_time
from headway.slo import NO_PROMISE

# -- Past-Future ------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 40)), max_size=12))
@settings(max_examples=200)
def test_future_peak_is_what_a_walk_finds(residents: list[tuple[int, int]]) -> None:
    """Growing everyone token by token until it ends finds the same most tokens."""
    peak = 0
    for step in range(1, 41):
        there = [held + step for held, remaining in residents if remaining >= step]
        peak = max(peak, sum(there))
    held = np.array([h for h, _ in residents], float)
    remaining = np.array([r for _, r in residents], float)
    assert future_peak(held, remaining) == peak


@given(
    st.lists(st.integers(1, 50), max_size=30),
    st.lists(st.tuples(st.integers(0, 60), st.integers(1, 60)), min_size=1, max_size=8),
)
def test_draws_come_from_the_longer_ones(lengths: list[int], asked: list[tuple[int, int]]) -> None:
    """Each draw is one of the last lengths above what was generated, or the bound."""
    history = RecentLengths(window=20, seed=3)
    for length in lengths:
        done = Request("done", NO_PROMISE, 0.0, 1, 99)
        done.num_output_tokens = length
        history.learn(done)
    requests = []
    for so_far, more in asked:
        request = Request("r", NO_PROMISE, 0.0, 1, so_far + more)
        request.num_output_tokens = so_far
        requests.append(request)
    for request, drawn in zip(requests, history.draw(requests), strict=True):
        longer = [n for n in lengths[-20:] if n > request.num_output_tokens]
        bound = request.max_output_tokens
        allowed = {min(n, bound) for n in longer} or {bound}
        assert drawn in allowed
        median = sorted(longer)[int(0.5 * len(longer))] if longer else bound
        assert history.predict(request) == min(median, bound)


def test_draws_are_spread_like_the_past() -> None:
    """Over many draws each remembered length above the progress comes up equally often."""
    history = RecentLengths(window=10, seed=1)
    for length in range(1, 11):
        done = Request("done", NO_PROMISE, 0.0, 1, 99)
        done.num_output_tokens = length
        history.learn(done)
    request = Request("r", NO_PROMISE, 0.0, 1, 99)
    request.num_output_tokens = 5
    drawn, counts = np.unique(history.draw([request] * 5000), return_counts=True)
    assert list(drawn) == [6, 7, 8, 9, 10]
    assert counts.min() > 900
    assert counts.max() < 1100


# -- SlidingServe ------------------------------------------------------------------------------

job = st.tuples(st.integers(1, 40), st.integers(1, 30), st.integers(1, 5))
"""Due instant and work in tenths of a second, and weight."""


@given(st.lists(job, max_size=9))
@settings(max_examples=150)
def test_knapsack_is_the_best_subset(raw: list[tuple[int, int, int]]) -> None:
    """On a grid that fits the jobs, no subset that is all on time weighs more."""
    jobs = [
        DueWork(f"j{i}", due / 10, work / 10, weight) for i, (due, work, weight) in enumerate(raw)
    ]
    best = 0.0
    for size in range(len(jobs) + 1):
        for subset in itertools.combinations(jobs, size):
            if on_time(subset):
                best = max(best, sum(j.weight for j in subset))
    last = max((due for due, work, _ in raw if work <= due), default=1)
    chosen = most_weight_on_time(jobs, grid=last)
    kept = [j for j in jobs if j.key in chosen]
    assert on_time(kept)
    assert sum(j.weight for j in kept) == best


@given(st.lists(st.tuples(st.floats(0.01, 4), st.floats(0.001, 3), st.floats(0.1, 9)), max_size=12))
def test_knapsack_on_a_coarse_grid_keeps_its_word(raw: list[tuple[float, float, float]]) -> None:
    """Rounded to a grid it may choose less, never a set that is late."""
    jobs = [DueWork(f"j{i}", *values) for i, values in enumerate(raw)]
    chosen = most_weight_on_time(jobs, grid=16)
    assert on_time([j for j in jobs if j.key in chosen])


def on_time(jobs: object) -> bool:
    """Serve in order of due times and look whether anyone ends late."""
    total = 0.0
    for one in sorted(jobs, key=lambda j: j.due_s):  # type: ignore[call-overload]
        total += one.work_s
        if total > one.due_s + 1e-6:
            return False
    return True


@given(
    st.floats(0.0, 0.4),
    st.floats(0.0, 0.4),
    st.integers(0, 300),
    st.integers(1, 200),
    st.floats(0.001, 0.05),
    st.floats(1e-4, 3e-3),
    st.floats(0.0, 1e-5),
)
@settings(max_examples=150)
def test_first_chunk_is_the_best_of_its_candidates(
    first_s: float,
    more_s: float,
    backlog: int,
    most: int,
    fixed_s: float,
    token_s: float,
    square_s: float,
) -> None:
    """Trying every pair of chunks token by token finds no better rate among the candidates."""

    def step_s(shape: StepShape) -> float:
        tokens = shape.num_prefill_tokens + shape.num_decodes
        return fixed_s + token_s * tokens + square_s * shape.chunk_context

    shape = StepShape(0, 0, 3, 30)

    def longest(limit_s: float, prefix: int, bound: int) -> int:
        fits = [n for n in range(1, bound + 1) if step_s(shape.with_chunk(n, prefix)) <= limit_s]
        return max(fits, default=0)

    def rate(chunk: int) -> float:
        length_s = step_s(shape.with_chunk(chunk, 0))
        left_s = first_s + more_s - length_s
        after = longest(left_s, chunk, min(backlog - chunk, most))
        return (chunk + after) / (length_s + step_s(shape.with_chunk(after, chunk)))

    greedy = longest(first_s, 0, min(backlog, most))
    found = best_first_chunk(first_s, first_s + more_s, shape, backlog, most, step_s)
    if greedy == 0:
        assert found == 0
        return
    assert 1 <= found <= greedy
    candidates = {max(round(share * greedy), 1) for share in SHARES}
    assert found in candidates
    assert rate(found) == pytest.approx(max(rate(c) for c in candidates))
    assert rate(found) >= rate(greedy) * (1 - 1e-9)


# -- reservations and queues -------------------------------------------------------------------


class Line:
    """10 ms a step and 1 ms a token."""

    def predict_s(self, shape: StepShape) -> float:
        return 0.01 + 0.001 * (shape.num_prefill_tokens + shape.num_decodes)


def context(live: LiveRequests, now_s: float = 0.0, num_blocks: int = 40) -> Draft:
    view = EngineView(num_blocks, num_blocks, 4, 64, 512)
    return draft_of(live, view, now_s, step_s=0.01, latency=Line(), num_spare_blocks=num_blocks)


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), max_size=6),
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), max_size=6),
)
def test_reservations_add_up(
    running: list[tuple[int, int]], waiting: list[tuple[int, int]]
) -> None:
    """Adding every block of everyone by hand admits the same requests in a row."""
    live = LiveRequests()
    for i, (prompt, bound) in enumerate([*running, *waiting]):
        request = Request(f"r{i}", NO_PROMISE, 0.0, prompt, bound)
        live.arrive(request)
        if i < len(running):
            live.unqueue(request)
            request.move(State.RUNNING, 0.0, "started")
            live.start_prefill(request)
    draft, gate = context(live), Reserved()
    inside = list(live.running())
    for request in list(live.others):
        blocks = sum(-(-(r.num_prompt_tokens + r.max_output_tokens) // 4) for r in inside)
        own = reserved_blocks(draft, request)
        expected = not inside or blocks + own <= 40
        assert gate.fits(draft, request) is expected
        if expected:
            inside.append(request)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 60)), min_size=1, max_size=60))
def test_queues_are_what_the_rules_say(happened: list[tuple[int, int]]) -> None:
    """Levels kept incrementally equal those replayed for each request from its own history.

    Every 11 ms one of four requests runs (or all do, when its number is out of range of the
    arrived); request *k* arrives at plan *k*.
    """
    live, queue = LiveRequests(), SkipJoin(num_levels=4, quantum_s=0.02, starve_s=0.08)
    told: dict[str, list[tuple[float, bool]]] = {}
    for number, (who, prompt) in enumerate(happened):
        now_s = 0.011 * number
        ran = f"r{who}"
        if ran in live.requests:
            live.requests[ran].num_output_tokens += 1
        for name, seen in told.items():
            seen.append((now_s, name == ran))
        if number < 4:
            live.arrive(Request(f"r{number}", NO_PROMISE, now_s, prompt, 1000))
            told[f"r{number}"] = []
        draft = context(live, now_s)
        queue.begin(draft)
        queue.order(draft)
        for name, request in live.requests.items():
            assert queue.level(request) == replayed(request, told[name])


def replayed(request: Request, seen: list[tuple[float, bool]]) -> int:
    """Walk one request through the rules: skip-join, demotion, promotion."""
    quanta = [0.02, 0.04, 0.08]
    first_s = 0.01 + 0.001 * request.num_prompt_tokens
    level = sum(q < first_s for q in quanta)
    service_s, ran_at_s = 0.0, request.arrived_at_s
    before_s = request.arrived_at_s
    for now_s, ran in seen:
        if ran:
            service_s, ran_at_s = service_s + now_s - before_s, now_s
            while level < 3 and service_s >= quanta[level]:
                service_s, level = service_s - quanta[level], level + 1
        elif level and now_s - ran_at_s >= 0.08:
            level, service_s, ran_at_s = 0, 0.0, now_s
        before_s = now_s
    return level
