"""Why requests of a finished run were late: exact figures on made-up lives, sums on random ones."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from late_rule import heard_at_s, late_spans

from headway.metrics.kept import KeptRequest, Timeline
from headway.metrics.lateness import by_class, by_request
from headway.metrics.request_lateness import Lateness
from headway.slo import Slo


def timeline(*steps: tuple[float, float, float, float], capacity_tokens: int = 100) -> Timeline:
    """Steps as (begins, ends, promised, held)."""
    begins_s, ends_s, promised_s, held = (
        np.array(column, dtype=float) for column in zip(*steps, strict=True)
    )
    zeros = np.zeros(len(begins_s))
    return Timeline(
        begins_s,
        ends_s,
        zeros,
        promised_s,
        zeros,
        zeros,
        zeros,
        zeros,
        held,
        zeros,
        capacity_tokens,
    )


def request(
    slo: Slo,
    phases: tuple[tuple[float, str], ...],
    emitted_at_s: tuple[float, ...],
    **changes: Any,
) -> KeptRequest:
    given = {"outcome": "finished", "attained": False, "num_prompt_tokens": 60, **changes}
    return KeptRequest("r", slo, 0.0, emitted_at_s, phases=phases, **given)


def lateness(asked: KeptRequest, steps: Timeline | None = None) -> Lateness:
    return by_request([asked], steps)[asked.id]


def causes(found: Lateness) -> dict[str, float]:
    return {cause: value for cause, value in found.late_s.items() if value}


def test_a_wait_splits_into_queue_and_kv() -> None:
    """While less is free than the prompt needs it waits for KV, else for its turn."""
    steps = timeline((0.0, 1.0, 2.0, 10.0), (1.0, 3.0, 4.0, 80.0), (3.0, 4.0, 4.0, 10.0))
    life = ((0.0, "queued"), (3.0, "prefill"), (4.0, "decode"))
    late = lateness(request(Slo(ttft_s=2.0), life, (4.0,)), steps)
    assert causes(late) == {"queueing": 0.5, "kv_wait": 1.0, "prefill": 0.5}


def test_a_step_beyond_its_promise_is_model_error() -> None:
    """Of a step of 2 s that was promised 1.5 s, half a second is the model's."""
    steps = timeline((0.0, 2.0, 1.5, 0.0))
    late = lateness(request(Slo(ttft_s=1.0), ((0.0, "prefill"),), (2.0,)), steps)
    assert causes(late) == {"prefill": 0.75, "model_error": 0.25}


def test_a_gap_splits_into_own_and_foreign_steps() -> None:
    """Steps that end without a token for it were skipped; the one that brought it was its own."""
    steps = timeline(
        (0.0, 1.0, 9.0, 0.0), (1.0, 2.0, 9.0, 0.0), (2.0, 4.0, 1.0, 0.0), (5.0, 6.0, 9.0, 0.0)
    )
    life = ((0.0, "prefill"), (1.0, "decode"))
    late = lateness(request(Slo(tbt_s=1.5), life, (1.0, 4.0, 6.0)), steps)
    assert causes(late) == pytest.approx(
        {"skipped": 0.5, "long_step": 0.75, "model_error": 0.5, "other": 0.25}
    )


@pytest.mark.parametrize(("phase", "cause"), [("preempted", "preemption"), ("swapped", "swap")])
def test_a_preemption_lasts_until_the_next_token(phase: str, cause: str) -> None:
    """The wait after it and the second computation of the prompt are both its price."""
    life = (
        (0.0, "prefill"),
        (1.0, "decode"),
        (2.0, phase),
        (4.0, "prefill"),
        (5.0, "decode"),
    )
    assert causes(lateness(request(Slo(tbt_s=2.0), life, (1.0, 2.0, 6.0)))) == {cause: 2.0}


def test_promises_are_counted_one_by_one() -> None:
    """A slow first token is late for itself and again in a job that ends late."""
    life = ((0.0, "queued"), (2.0, "prefill"), (3.0, "decode"))
    late = lateness(request(Slo(ttft_s=1.0, jct_s=2.0), life, (3.0, 4.0)))
    assert causes(late) == pytest.approx(
        {"queueing": 2 * 2 / 3 + 1.0, "prefill": 2 / 3 + 0.5, "long_step": 0.5}
    )


def test_a_gap_promise_that_is_kept_as_a_whole_has_no_late_gap() -> None:
    """One late gap in a hundred keeps the promise; two break it, and then both count."""
    emitted = [0.5]
    for index in range(100):
        emitted.append(emitted[-1] + (2.0 if index == 50 else 0.5))
    assert causes(lateness(request(Slo(tbt_s=1.0), ((0.0, "prefill"),), tuple(emitted)))) == {}
    emitted.append(emitted[-1] + 2.0)
    late = lateness(request(Slo(tbt_s=1.0), ((0.0, "prefill"),), tuple(emitted)))
    assert causes(late) == pytest.approx({"long_step": 2.0})


def test_unanswered_requests_are_counted_without_seconds() -> None:
    """Refused and cut-off requests broke their promise; there is no span to measure."""
    chat, life = Slo(ttft_s=1.0, class_name="chat"), ((0.0, "queued"), (0.25, "prefill"))
    rows = [
        request(chat, life[:1], (), outcome="refused"),
        request(chat, life, (0.5,), outcome="aborted"),
        request(chat, life, (0.5,), attained=True),
        request(chat, life, (1.5,)),
    ]
    rows = [replace(row, id=f"r{i}") for i, row in enumerate(rows)]
    found = by_class(rows, by_request(rows))["chat"]
    assert (found.num_requests, found.num_late, found.num_unanswered) == (4, 1, 2)
    assert found.total_s == pytest.approx(0.5)
    assert found.by_cause_s["prefill"] == 5 * found.by_cause_s["queueing"] > 0


@pytest.mark.parametrize("outcome", ["aborted", "failed", "timed_out"])
def test_the_end_stands_in_for_the_token_that_never_came(outcome: str) -> None:
    """Given up after 60 s of a promised second: 59 s late; or in a pause, late by the pause."""
    queued = ((0.0, "queued"),)
    late = lateness(request(Slo(ttft_s=1.0), queued, (), outcome=outcome, ended_at_s=60.0))
    assert causes(late) == {"queueing": 59.0}
    stream = request(
        Slo(tbt_s=1.0),
        ((0.0, "prefill"), (1.0, "decode"), (2.0, "preempted")),
        (1.0, 2.0),
        outcome=outcome,
        ended_at_s=6.0,
    )
    assert causes(lateness(stream)) == {"preemption": 3.0}


def test_the_refused_and_those_whose_end_is_not_known_have_no_seconds() -> None:
    """Nobody waited for a token after a refusal; a run that does not tell the end has no span."""
    chat, queued = Slo(ttft_s=1.0), ((0.0, "queued"),)
    refused = request(chat, queued, (), outcome="refused", ended_at_s=60.0)
    unknown = request(chat, queued, (), outcome="aborted")
    assert lateness(refused).total_late_s == lateness(unknown).total_late_s == 0.0


@st.composite
def lives(draw: st.DrawFn) -> tuple[KeptRequest, Timeline]:
    """A request and a run, both random: steps with pauses, phases in any order."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    n = int(rng.integers(1, 40))
    spans_s = rng.uniform(0.01, 0.5, n)
    begins_s = np.cumsum(spans_s + rng.choice([0.0, 0.1], n)) - spans_s
    steps = timeline(
        *zip(begins_s, begins_s + spans_s, rng.choice([0.0, 0.2], n), rng.integers(0, 101, n),
             strict=True)
    )  # fmt: skip
    emitted = sorted(rng.choice(steps.ends_s, int(rng.integers(1, n + 1)), replace=False).tolist())
    names = ["queued", *rng.choice(["prefill", "decode", "preempted", "swapped"], 5)]
    starts = [rng.uniform(0, 0.1), *sorted(rng.uniform(0.1, steps.ends_s[-1] + 0.1, 5))]
    slo = Slo(ttft_s=0.2, tbt_s=0.1, jct_s=1.0)
    life = tuple((float(at_s), str(name)) for at_s, name in zip(starts, names, strict=True))
    ended = {"outcome": "aborted", "ended_at_s": emitted[-1] + rng.uniform(0, 0.5)}
    return request(slo, life, tuple(emitted), **(ended if rng.random() < 0.5 else {})), steps


@settings(max_examples=80, deadline=None)
@given(lives())
def test_the_lateness_is_that_of_its_spans(life: tuple[KeptRequest, Timeline]) -> None:
    """Whatever happened, no cause is negative and together they are the late spans' seconds."""
    asked, steps = life
    for late in (lateness(asked, steps), lateness(asked)):
        assert min(late.late_s.values()) >= -1e-9
        spans = late_spans(asked.slo, asked.arrived_at_s, heard_at_s(asked))
        assert late.total_late_s == pytest.approx(math.fsum(s.late_s for s in spans), abs=1e-9)
