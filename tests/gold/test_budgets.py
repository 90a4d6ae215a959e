"""Error budgets and engine seconds by tenant, against twins that keep every outcome and token."""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.metrics.budgets import WINDOWS, ErrorBudgets, together
from headway.metrics.scheduler_counts import SchedulerCounts
from headway.policy.events import Arrived, Finished, StepDone, StepScheduled
from headway.slo import Slo

NAMES = ("chat", "code")

SLOW = {"5m": (5, 60), "1h": (60, 60), "6h": (360, 60), "28d": (672, 3600)}
"""Window → how many whole minutes or hours it reaches back, and how many seconds these have."""


def slow_counts(outcomes: list[tuple[float, bool]], window: str, now_s: float) -> tuple[int, int]:
    """Return ended and broken promises of a window, of every outcome there ever was."""
    num, unit_s = SLOW[window]
    inside = [kept for at_s, kept in outcomes if at_s // unit_s >= now_s // unit_s - num]
    return len(inside), inside.count(False)


def slow_burn(ended: int, broken: int, target: float) -> float:
    return 0.0 if ended == 0 else (broken / ended) / (1 - target)


outcomes = st.lists(
    st.tuples(
        st.sampled_from(NAMES),
        st.booleans(),
        st.sampled_from([0.0, 1.0, 59.0, 60.0, 299.0, 301.0, 3599.0, 7e3, 2e4, 9e4, 3e5, 2.5e6]),
    ),
    max_size=60,
)


@given(outcomes, st.floats(0.5, 0.999), st.sets(st.integers(0, 60)))
@settings(deadline=None)
def test_burn_rates_and_budgets(
    drawn: list[tuple[str, bool, float]], target: float, restarts: set[int]
) -> None:
    """Over minutes and over months, told at every outcome, the process begun anew in between."""
    budgets, now_s = ErrorBudgets(), 1.7e9
    ever: dict[str, list[tuple[float, bool]]] = defaultdict(list)
    for name in NAMES:
        budgets.aim("class", name, target)
    for index, (name, is_kept, later_s) in enumerate(drawn):
        now_s += later_s
        if index in restarts:
            state, budgets = json.loads(json.dumps(budgets.state(now_s))), ErrorBudgets()
            budgets.restore(state, now_s)
        budgets.ended("class", name, now_s, is_kept=is_kept)
        ever[name].append((now_s, is_kept))
        for other in NAMES:
            told = budgets.snapshot(now_s)["class"][other]
            slow = {window: slow_counts(ever[other], window, now_s) for window in SLOW}
            assert {w: tuple(c) for w, c in told["windows"].items()} == slow
            found = together([(told, 0.0)])
            assert found is not None
            left = 1 - slow_burn(*slow["28d"], target)
            assert found["budget_left"] == pytest.approx(left)
            for window in ("5m", "1h", "6h"):
                rate = slow_burn(*slow[window], target)
                assert found["burn_rate"][window] == pytest.approx(rate)
    assert set(WINDOWS) == set(SLOW)


# -- engine seconds by tenant ------------------------------------------------------------------

steps = st.lists(
    st.tuples(
        st.floats(0.01, 1.0),  # How long it takes.
        st.lists(st.integers(0, 7), max_size=3, unique=True),  # Who arrives and begins.
        st.lists(st.integers(0, 7), max_size=2, unique=True),  # Who is preempted.
        st.lists(st.integers(0, 7), max_size=2, unique=True),  # Who ends.
    ),
    min_size=1,
    max_size=25,
)


@given(steps, st.integers(1, 3))
@settings(deadline=None)
def test_engine_seconds_are_shared_by_tokens(
    drawn: list[tuple[float, list[int], list[int], list[int]]], chunks: int
) -> None:
    """Prompts of several chunks, preempted and resumed, of three tenants and of nobody: as the
    twin has it that splits every step's seconds by each request's tokens."""
    observed, at_s = SchedulerCounts(), 0.0
    live: dict[str, tuple[str, int]] = {}  # Id → tenant, chunks of its prompt left.
    twin: Counter[str] = Counter()
    paused: set[str] = set()
    requests = {}
    first = Arrived(0.0, "warm", 0.0, 10, 9, Slo(tenant="t0"))
    observed.arrived(first, 5)
    for span_s, begin, preempt, end in drawn:
        admitted = {}
        gone = tuple(i for i in (f"r{n}" for n in preempt) if i in live and i not in paused)
        for n in begin:
            name = f"r{n}"
            if name not in live:
                tenant = ("t0", "t1", "t2", "")[n % 4]
                event = Arrived(at_s, name, at_s, 10, 99, Slo(tenant=tenant))
                observed.arrived(event, 5)
                requests[name] = event.request()
                live[name] = (tenant or "none", chunks)
                admitted[name] = 0
            elif name in paused and name not in gone:
                paused.discard(name)
                live[name] = (live[name][0], chunks)
                admitted[name] = 0
        paused |= set(gone)
        running = [name for name in live if name not in paused]
        tokens = {name: 7 if live[name][1] else 1 for name in running}
        observed.scheduled(StepScheduled(at_s, tokens, admitted, gone))
        if tokens:
            at_s += span_s
            emitted = {}
            for name in running:
                tenant, left = live[name]
                twin[tenant] += span_s * tokens[name] / sum(tokens.values())
                live[name] = (tenant, max(left - 1, 0))
                if left <= 1:
                    emitted[name] = 1
            observed.done(StepDone(at_s, emitted))
        for name in (f"r{n}" for n in end):
            if name in live:
                observed.finished(Finished(at_s, name, "stopped"), requests[name])
                del live[name]
                paused.discard(name)
    counted = {name: tally.engine_s for name, tally in observed.tenants.by_name.items()}
    assert {name: s for name, s in counted.items() if s} == pytest.approx(dict(twin))
    assert math.fsum(counted.values()) == pytest.approx(math.fsum(twin.values()))
