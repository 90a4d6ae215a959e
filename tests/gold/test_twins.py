"""Beside every clever thing its slow and obvious twin."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import lsq_linear

from headway.errors import InvariantError
from headway.kit.ledger import KvLedger
from headway.kit.lengths import SlidingHistogram
from headway.kit.usage_curve import UsageCurve
from headway.latency import online
from headway.latency.conformal import GUESSED_SPREAD, NEAR_MISSES, RatioWindow
from headway.latency.laptop import LAPTOP
from headway.latency.model import StepShape
from headway.policy.admit import DueWork, largest_feasible
from headway.policy.chunk import largest_chunk
from headway.policy.finishes import Finishes
from headway.policy.live_requests import LiveRequests
from headway.request import Request, Standing, State
from headway.slo import Slo

# -- usage curve -----------------------------------------------------------------------------

resident = st.tuples(st.integers(0, 300), st.integers(0, 40), st.integers(0, 60))
"""Held tokens, the step they were held at, and how many steps later the resident finishes."""


def peak_token_by_token(
    residents: list[tuple[int, int, int]], now: int, newcomer: tuple[int, int] | None, slop: float
) -> float:
    """Walk every step from *now* on and add up what each resident holds then."""
    everyone = [(held - step, step + lasts) for held, step, lasts in residents]
    if newcomer is not None:
        everyone.append((newcomer[0] - now, newcomer[1]))
    peak = 0.0
    for step in range(now, max((f for _, f in everyone), default=now) + 1):
        there = [offset + step + slop for offset, finish in everyone if finish >= step]
        peak = max(peak, sum(there))
    return peak


@given(
    st.lists(resident, max_size=12),
    st.integers(0, 300),
    st.integers(40, 60),
    st.integers(-2, 30),
    st.sampled_from([0.0, 8.0]),
)
@settings(max_examples=300)
def test_peak_is_what_a_walk_finds(
    residents: list[tuple[int, int, int]], held: int, now: int, lasts: int, slop: float
) -> None:
    """The peak with a newcomer equals the one found token by token."""
    curve = UsageCurve()
    for i, (tokens, step, remaining) in enumerate(residents):
        curve.put(f"r{i}", tokens, step, step + remaining)
    joins = (held, now + lasts) if lasts >= 0 else None
    expected = peak_token_by_token(residents, now, joins, slop)
    assert curve.peak_with(held, now, now + lasts, slop) == pytest.approx(expected)


@given(st.lists(st.tuples(st.integers(0, 5), resident), max_size=30), st.integers(40, 80))
@settings(max_examples=100)
def test_moving_and_leaving_residents(
    moves: list[tuple[int, tuple[int, int, int]]], now: int
) -> None:
    """After any sequence of moves and departures the curve equals one built afresh."""
    curve, kept = UsageCurve(), {}
    for key, (held, step, lasts) in moves:
        if held % 4 == 0:
            curve.discard(f"r{key}")
            kept.pop(key, None)
        else:
            curve.put(f"r{key}", held, step, step + lasts)
            kept[key] = (held, step, lasts)
        curve.peak_with(0, now, now - 1, 0.0)
    expected = peak_token_by_token(list(kept.values()), now, None, 8.0)
    assert curve.peak_with(0, now, now - 1, 8.0) == pytest.approx(expected)
    assert len(curve) == len(kept)


# -- finishes --------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40), st.integers(0, 60)), max_size=30),
    st.integers(0, 80),
)
@settings(max_examples=100)
def test_who_should_have_finished_by_now(moves: list[tuple[int, int, int]], now: int) -> None:
    """After any sequence of entries and departures the overdue are those a scan finds."""
    finishes, kept = Finishes(), {}
    for key, step, lasts in moves:
        if lasts == 0:
            finishes.leave(f"r{key}")
            kept.pop(f"r{key}", None)
        else:
            finishes.enter(Request(f"r{key}", Slo(), 0.0, 10, lasts), step)
            kept[f"r{key}"] = step + lasts
    late = finishes.overdue(now)
    assert sorted(late) == sorted(key for key, finish in kept.items() if finish < now)
    assert len(finishes) == len(kept)


# -- chunk -----------------------------------------------------------------------------------


@given(
    st.integers(-20, 420),
    st.integers(0, 100),
    st.integers(0, 5000),
    st.integers(0, 400),
    st.floats(1e-6, 1e-3),
    st.floats(0.0, 1e-7),
)
def test_largest_chunk_is_what_a_scan_finds(
    about: int, decodes: int, prefix: int, most: int, per_token_s: float, per_pair_s: float
) -> None:
    """Bisection finds the chunk that trying every size finds, given slack for about one."""
    shape = StepShape(0, 0, decodes, 50 * decodes)

    def step_time_s(s: StepShape) -> float:
        seconds = 0.005 + 1e-4 * s.num_decodes + per_token_s * s.num_prefill_tokens
        return seconds + per_pair_s * s.chunk_context

    slack_s = step_time_s(shape.with_chunk(max(about, 0), prefix)) + min(about, 0) * 1e-3
    fitting = [n for n in range(1, most + 1) if step_time_s(shape.with_chunk(n, prefix)) <= slack_s]
    expected = max(fitting, default=0)
    assert largest_chunk(slack_s, shape, prefix, most, step_time_s) == expected


@given(st.integers(0, 3000), st.integers(0, 2000))
def test_no_slack_limit_takes_everything(prefix: int, most: int) -> None:
    """Nobody running has a promise: the whole prompt goes."""
    assert largest_chunk(math.inf, StepShape(), prefix, most, lambda s: 1.0) == most


# -- feasibility -----------------------------------------------------------------------------


def is_on_time(jobs: list[DueWork]) -> bool:
    total_s = 0.0
    for job in sorted(jobs, key=lambda j: j.due_s):
        total_s += job.work_s
        if total_s > job.due_s:
            return False
    return True


@given(st.lists(st.tuples(st.integers(-3, 30), st.integers(0, 12)), max_size=9))
@settings(max_examples=150)
def test_as_many_are_kept_as_any_subset_could(pairs: list[tuple[int, int]]) -> None:
    """Moore–Hodgson keeps as many equal jobs as trying all subsets does, all on time."""
    jobs = [DueWork(f"j{i}", float(due), float(work)) for i, (due, work) in enumerate(pairs)]
    dropped, pressure = largest_feasible(jobs)
    kept = [j for j in jobs if j.key not in dropped]
    assert is_on_time(kept)
    best = max(
        len(subset)
        for size in range(len(jobs) + 1)
        for subset in itertools.combinations(jobs, size)
        if is_on_time(list(subset))
    )
    assert len(kept) == best
    assert 0.0 <= pressure <= 1.0
    assert pressure == 1.0 or not dropped


@given(
    st.lists(
        st.tuples(st.integers(0, 30), st.integers(1, 12), st.sampled_from([0.5, 1.0, 5.0])),
        max_size=12,
    )
)
def test_weighted_jobs_kept_are_on_time(rows: list[tuple[int, int, float]]) -> None:
    """With weights what is kept still ends on time, and nothing is dropped without need."""
    jobs = [DueWork(f"j{i}", float(d), float(w), x) for i, (d, w, x) in enumerate(rows)]
    dropped, _ = largest_feasible(jobs)
    assert is_on_time([j for j in jobs if j.key not in dropped])
    if is_on_time(jobs):
        assert not dropped


# -- error ranks -----------------------------------------------------------------------------

seconds = st.floats(0.01, 10.0)


@given(st.lists(st.tuples(seconds, seconds), max_size=40), st.floats(0.001, 0.5), st.floats(0.2, 3))
def test_ratio_window_is_a_sorted_list(
    steps: list[tuple[float, float]], miss_rate: float, asked: float
) -> None:
    """Rank and tail equal those read from a plain list of the last steps."""
    window = RatioWindow(1, window=16, min_samples=5)
    for measured, predicted in steps:
        window.add(np.array([measured]), measured, predicted)
    ratios = sorted(m / p for m, p in steps[-16:])
    assert len(window) == len(ratios)
    if not ratios:
        assert window.upper(miss_rate) == math.exp(2 * GUESSED_SPREAD)
    else:
        rank = math.ceil((len(ratios) + 1) * (1 - miss_rate))
        expected = ratios[min(rank, len(ratios)) - 1]
        expected = max(expected, math.exp(2 * GUESSED_SPREAD)) if len(ratios) < 5 else expected
        assert window.upper(miss_rate) == expected
    beyond = np.mean([sum(r > asked * near for r in ratios) for near in NEAR_MISSES])
    guess = 0.5 * math.erfc(math.log(asked) / (GUESSED_SPREAD * math.sqrt(2)))
    assert window.exceeds(asked) == pytest.approx(
        (beyond + 5 * guess) / (len(ratios) + 5), abs=1e-6
    )


def test_ratio_window_forgets() -> None:
    """A step older than the window no longer counts, whether or not the model was refitted."""
    window = RatioWindow(1, window=8, min_samples=1)
    for measured in (9.0, *[1.0] * 8):
        window.add(np.array([1.0]), measured, 1.0)
    assert window.upper(1e-9) == 1.0


@given(st.lists(st.tuples(seconds, seconds), min_size=1, max_size=40), st.floats(0.1, 3))
def test_recomputing_compares_with_the_model_as_it_is(
    steps: list[tuple[float, float]], coefficient: float
) -> None:
    """After a refit every remembered step is measured against the new coefficients."""
    window = RatioWindow(1, window=16, min_samples=1)
    for size, measured in steps:
        window.add(np.array([size]), measured, 1.0)
    window.recompute(np.array([coefficient]))
    ratios = [m / max(size * coefficient, 1e-6) for size, m in steps[-16:]]
    assert window.upper(1e-9) == pytest.approx(max(ratios))


# -- length histogram ------------------------------------------------------------------------


def finished(num_output_tokens: int, class_name: str = "chat") -> Request:
    request = Request("r", Slo(class_name=class_name), 0.0, 10, 4000)
    request.num_output_tokens = num_output_tokens
    return request


@given(
    st.lists(st.tuples(st.integers(1, 30), st.sampled_from("aab")), min_size=10, max_size=80),
    st.integers(0, 31),
    st.sampled_from([0.1, 0.5, 0.9]),
    st.integers(25, 4000),
)
@settings(max_examples=200)
def test_histogram_is_a_list_of_recent_lengths(
    lengths: list[tuple[int, str]], so_far: int, quantile: float, bound: int
) -> None:
    """The prediction is the quantile of recent lengths of the class that ran longer."""
    histogram = SlidingHistogram(quantile, window=20, min_samples=8)
    for length, name in lengths:
        histogram.learn(finished(length, name))
    request = finished(so_far, "a")
    request.max_output_tokens = bound
    recent = [length for length, name in lengths if name == "a"][-20:]
    longer = sorted(length for length in recent if length > so_far)
    if len(recent) >= 8 and longer:
        expected = longer[min(int(quantile * len(longer)), len(longer) - 1)]
    else:
        expected = so_far + max(1, min(256, (bound - so_far + 1) // 2))
    expected = max(min(expected, bound), so_far + 1)
    assert histogram.predict(request) == expected


# -- the table of live requests and the ledger ------------------------------------------------


def a_table() -> tuple[LiveRequests, KvLedger]:
    """Return six requests: two waiting (one claim), one prefilling, three decoding."""
    live, ledger = LiveRequests(), KvLedger()
    for i in range(6):
        slo = Slo(ttft_s=1.0, tbt_s=0.1 * (1 + i % 2)) if i % 3 else Slo()
        request = Request(f"r{i}", slo, 0.1 * i, 50 + i, 100)
        request.due_at_s = 1.0 + 0.1 * i
        live.arrive(request)
        if i >= 2:
            live.unqueue(request)
            request.move(State.RUNNING, 1.0, "started")
            live.start_prefill(request)
            ledger.enter(request, 0)
        if i >= 3:
            request.num_computed_tokens = request.num_prompt_tokens
            live.start_decode(request)
    live.validate()
    ledger.validate({r.request_id: r for r in live.running()})
    return live, ledger


def lose_one(live: LiveRequests, ledger: KvLedger) -> None:
    del live.requests["r4"]


def queue_twice(live: LiveRequests, ledger: KvLedger) -> None:
    live.queue(live.requests["r5"])


def context_off(live: LiveRequests, ledger: KvLedger) -> None:
    live.requests["r3"].num_output_tokens += 1


def gap_off(live: LiveRequests, ledger: KvLedger) -> None:
    live.claim_gaps[0.3] = 1


def unclaimed_off(live: LiveRequests, ledger: KvLedger) -> None:
    live.num_unclaimed_decodes += 1


def standing_behind_its_back(live: LiveRequests, ledger: KvLedger) -> None:
    live.requests["r4"].standing = Standing.LOST


def state_off(live: LiveRequests, ledger: KvLedger) -> None:
    live.requests["r0"].state = State.RUNNING


def wrong_queue(live: LiveRequests, ledger: KvLedger) -> None:
    request = live.requests["r1"]
    live.unqueue(request)
    live.others.add(request)


def not_booked(live: LiveRequests, ledger: KvLedger) -> None:
    ledger.leave("r4")


def booked_twice(live: LiveRequests, ledger: KvLedger) -> None:
    ledger.enter(Request("ghost", Slo(), 0.0, 10, 10), 0)


def claim_not_booked(live: LiveRequests, ledger: KvLedger) -> None:
    ledger.claims.discard("r4")


def claim_of_none(live: LiveRequests, ledger: KvLedger) -> None:
    ledger.claims.put("r3", 10, 0, 10)


def claim_of_a_stranger(live: LiveRequests, ledger: KvLedger) -> None:
    ledger.claims.put("ghost", 10, 0, 10)


@pytest.mark.parametrize(
    "plant",
    [
        lose_one,
        queue_twice,
        context_off,
        gap_off,
        unclaimed_off,
        standing_behind_its_back,
        state_off,
        wrong_queue,
        not_booked,
        booked_twice,
        claim_not_booked,
        claim_of_none,
        claim_of_a_stranger,
    ],
)
def test_validate_finds_a_planted_error(plant) -> None:  # type: ignore[no-untyped-def]
    """Whatever book is falsified, recomputing it raises."""
    live, ledger = a_table()
    plant(live, ledger)

    def validate() -> None:
        live.validate()
        ledger.validate({r.request_id: r for r in live.running()})

    with pytest.raises(InvariantError):
        validate()


# -- the online fit --------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_online_fit_is_the_batch_fit(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without forgetting and without a prior the fit equals scipy's bounded least squares."""
    monkeypatch.setattr(online, "FORGET", 1.0)
    monkeypatch.setattr(online, "PRIOR_STEPS", 1e-9)
    monkeypatch.setattr(online, "REFIT_EVERY", 1)
    rng = np.random.default_rng(seed)
    model = online.OnlineModel(LAPTOP)
    truth = np.array([0.03, 0.02, 9e-4, 2e-3, 1.2e-6, 2.4e-7, 5e-3])
    rows, targets = [], []
    for _ in range(120):
        shape = StepShape(0, 0, int(rng.integers(0, 40)), int(rng.integers(0, 20_000)))
        for _ in range(int(rng.integers(0, 4))):
            shape = shape.with_chunk(int(rng.integers(1, 400)), int(rng.integers(0, 4000)))
        duration_s = float(truth @ shape.features() * np.exp(0.05 * rng.standard_normal()))
        unit_s = max(duration_s, model.predict_s(shape))
        rows.append(np.array(shape.features()) / unit_s)
        targets.append(duration_s / unit_s)
        model.observe(shape, duration_s)
    matrix, target = np.array(rows), np.array(targets)
    scale = np.linalg.norm(matrix, axis=0)
    batch = lsq_linear(matrix / scale, target, bounds=(0, np.inf)).x / scale
    ours = np.array(list(model.coefficients.values()))
    assert (ours >= 0).all()
    ours_left, batch_left = (float(np.sum((matrix @ c - target) ** 2)) for c in (ours, batch))
    assert ours_left <= batch_left * 1.001 + 1e-9
    assert matrix @ ours == pytest.approx(matrix @ batch, rel=0.01, abs=1e-3)
