"""Why requests were late: exact figures on made-up lives, and books that balance on random ones."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.metrics.kept import KeptRequest, Timeline
from headway.metrics.lateness import (
    CAUSES,
    by_class,
    heard_at_s,
    late_spans,
    lateness_of,
    seconds_by_cause,
)
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


def nonzero(seconds: Any) -> dict[str, float]:
    return {cause: value for cause, value in seconds.items() if value}


def test_a_wait_splits_into_queue_and_kv() -> None:
    """While less is free than the prompt needs it waits for KV, else for its turn."""
    steps = timeline((0.0, 1.0, 2.0, 10.0), (1.0, 3.0, 4.0, 80.0), (3.0, 4.0, 4.0, 10.0))
    life = ((0.0, "queued"), (3.0, "prefill"), (4.0, "decode"))
    late = lateness_of(request(Slo(ttft_s=2.0), life, (4.0,)), steps)
    assert late.total_s == 2.0
    assert nonzero(late.by_cause_s) == {"queueing": 0.5, "kv_wait": 1.0, "prefill": 0.5}


def test_the_wait_before_the_engine_looked_is_queueing() -> None:
    """A request that arrives during a step is queued from its arrival on."""
    life = ((1.0, "queued"), (2.0, "prefill"))
    assert nonzero(seconds_by_cause(request(Slo(), life, (4.0,)), 0.0, 4.0)) == {
        "queueing": 2.0,
        "prefill": 2.0,
    }


def test_a_step_beyond_its_promise_is_model_error() -> None:
    """Of a step of 2 s that was promised 1.5 s, half a second is the model's."""
    steps = timeline((0.0, 2.0, 1.5, 0.0))
    life = ((0.0, "prefill"), (2.0, "decode"))
    late = lateness_of(request(Slo(ttft_s=1.0), life, (2.0,)), steps)
    assert nonzero(late.by_cause_s) == {"prefill": 0.75, "model_error": 0.25}


def test_a_gap_splits_into_own_and_foreign_steps() -> None:
    """Steps that end without a token for it were skipped; the one that brought it was its own."""
    steps = timeline(
        (0.0, 1.0, 9.0, 0.0), (1.0, 2.0, 9.0, 0.0), (2.0, 4.0, 1.0, 0.0), (5.0, 6.0, 9.0, 0.0)
    )
    life = ((0.0, "prefill"), (1.0, "decode"))
    asked = request(Slo(tbt_s=1.5), life, (1.0, 4.0, 6.0))
    late = lateness_of(asked, steps)
    assert late.total_s == 2.0
    gap = {"skipped": 0.5, "long_step": 0.5, "model_error": 0.5}
    assert nonzero(seconds_by_cause(asked, 1.0, 4.0, steps)) == {k: 2 * v for k, v in gap.items()}
    assert nonzero(seconds_by_cause(asked, 4.0, 6.0, steps)) == {"other": 1.0, "long_step": 1.0}
    assert nonzero(late.by_cause_s) == {
        "skipped": 0.5, "long_step": 0.75, "model_error": 0.5, "other": 0.25,
    }  # fmt: skip


@pytest.mark.parametrize(("phase", "cause"), [("preempted", "preemption"), ("swapped", "swap")])
def test_a_preemption_lasts_until_it_decodes_again(phase: str, cause: str) -> None:
    """The wait after it and the second computation of the prompt are both its price."""
    life = (
        (0.0, "prefill"),
        (1.0, "decode"),
        (2.0, phase),
        (4.0, "prefill"),
        (5.0, "decode"),
    )
    late = lateness_of(request(Slo(tbt_s=2.0), life, (1.0, 2.0, 6.0)))
    assert late.total_s == 2.0
    assert nonzero(late.by_cause_s) == {cause: 1.5, "long_step": 0.5}


def test_each_preemption_is_charged_by_its_kind() -> None:
    """Moved out, thrown out while its prompt resumed: the seconds of each until the next."""
    life = (
        (0.0, "decode"),
        (1.0, "swapped"),
        (3.0, "prefill"),
        (4.0, "preempted"),
        (5.0, "decode"),
    )
    found = seconds_by_cause(request(Slo(), life, (6.0,)), 0.0, 6.0)
    assert nonzero(found) == {"long_step": 2.0, "swap": 3.0, "preemption": 1.0}


def test_promises_are_counted_one_by_one() -> None:
    """A slow first token is late for itself and again in a job that ends late."""
    slo = Slo(ttft_s=1.0, jct_s=2.0)
    spans = late_spans(slo, 0.0, (3.0, 4.0))
    assert [(span.promise, span.late_s) for span in spans] == [("ttft", 2.0), ("jct", 2.0)]
    life = ((0.0, "queued"), (3.0, "decode"))
    late = lateness_of(request(slo, life, (3.0, 4.0)))
    assert nonzero(late.by_cause_s) == {"queueing": 3.5, "long_step": 0.5}


def test_a_gap_promise_that_is_kept_as_a_whole_has_no_late_gap() -> None:
    """One late gap in a hundred keeps the promise; two break it, and then both count."""
    emitted = [0.0]
    for index in range(100):
        emitted.append(emitted[-1] + (2.0 if index == 50 else 0.5))
    assert late_spans(Slo(tbt_s=1.0), 0.0, tuple(emitted)) == []
    emitted.append(emitted[-1] + 2.0)
    assert [span.late_s for span in late_spans(Slo(tbt_s=1.0), 0.0, tuple(emitted))] == [1.0, 1.0]


def test_unanswered_requests_are_counted_without_seconds() -> None:
    """Refused and cut-off requests broke their promise; there is no span to measure."""
    chat = Slo(ttft_s=1.0, class_name="chat")
    queued = ((0.0, "queued"),)
    found = by_class(
        [
            request(chat, queued, (), outcome="refused"),
            request(chat, queued, (0.5,), outcome="aborted"),
            request(chat, queued, (0.5,), attained=True),
            request(chat, queued, (1.5,)),
        ]
    )["chat"]
    assert (found.num_requests, found.num_late, found.num_unanswered) == (4, 1, 2)
    assert (found.total_s, nonzero(found.by_cause_s)) == (0.5, {"queueing": 0.5})


@pytest.mark.parametrize("outcome", ["aborted", "failed", "timed_out"])
def test_the_end_stands_in_for_the_token_that_never_came(outcome: str) -> None:
    """Given up after 60 s of a promised second: 59 s late; or in a pause, late by the pause."""
    queued = ((0.0, "queued"),)
    late = lateness_of(request(Slo(ttft_s=1.0), queued, (), outcome=outcome, ended_at_s=60.0))
    assert nonzero(late.by_cause_s) == {"queueing": 59.0}
    stream = request(
        Slo(tbt_s=1.0),
        ((0.0, "decode"), (2.0, "preempted")),
        (1.0, 2.0),
        outcome=outcome,
        ended_at_s=6.0,
    )
    assert nonzero(lateness_of(stream).by_cause_s) == {"preemption": 3.0}


def test_the_refused_and_those_whose_end_is_not_known_have_no_seconds() -> None:
    """Nobody waited for a token after a refusal; a run that does not tell the end has no span."""
    chat, queued = Slo(ttft_s=1.0), ((0.0, "queued"),)
    refused = request(chat, queued, (), outcome="refused", ended_at_s=60.0)
    unknown = request(chat, queued, (), outcome="aborted")
    assert lateness_of(refused).total_s == lateness_of(unknown).total_s == 0.0


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
def test_the_causes_add_up(life: tuple[KeptRequest, Timeline]) -> None:
    """Whatever happened, no cause is negative and together they are the whole lateness."""
    asked, steps = life
    spent = seconds_by_cause(asked, 0.0, asked.emitted_at_s[-1], steps)
    assert math.fsum(spent.values()) == pytest.approx(asked.emitted_at_s[-1], abs=1e-9)
    late = lateness_of(asked, steps)
    assert late.by_cause_s.keys() == CAUSES.keys()
    assert min(late.by_cause_s.values()) >= -1e-12
    assert math.fsum(late.by_cause_s.values()) == pytest.approx(late.total_s, abs=1e-9)
    assert late.total_s == math.fsum(
        span.late_s for span in late_spans(asked.slo, 0.0, heard_at_s(asked))
    )


@settings(max_examples=50, deadline=None)
@given(lives())
def test_cause_by_cause_as_a_slow_twin(life: tuple[KeptRequest, Timeline]) -> None:
    """Cutting a life into short pieces and asking each for its cause gives the same seconds."""
    asked, steps = life
    end_s = asked.emitted_at_s[-1]
    cuts = sorted(
        {0.0, end_s, *(at_s for at_s, _ in asked.phases), *steps.begins_s, *steps.ends_s,
         *(steps.begins_s + steps.planned_s)}
    )  # fmt: skip
    cuts = [float(at_s) for at_s in cuts if 0 <= at_s <= end_s]
    slow = dict.fromkeys(CAUSES, 0.0)
    for low_s, high_s in pairwise(cuts):
        slow[twin_cause(asked, steps, (low_s + high_s) / 2)] += high_s - low_s
    fast = seconds_by_cause(asked, 0.0, end_s, steps)
    assert fast == pytest.approx(slow, abs=1e-9)


def twin_cause(asked: KeptRequest, steps: Timeline, at_s: float) -> str:
    """The rule of the module, for one instant, read aloud."""
    stage, lost_to = "queued", ""
    for begins_s, phase in asked.phases:
        if begins_s <= at_s:
            stage = phase
            lost_to = "" if phase == "decode" else lost_to
            lost_to = {"preempted": "preemption", "swapped": "swap"}.get(phase, lost_to)
    if lost_to:
        return lost_to
    step = next((i for i in range(len(steps)) if steps.begins_s[i] < at_s < steps.ends_s[i]), None)
    if stage == "queued":
        is_short = step is not None and steps.free_tokens[step] < asked.num_prompt_tokens
        return "kv_wait" if is_short else "queueing"
    if stage == "decode" and step is None:
        return "other"
    if stage == "decode" and steps.ends_s[step] not in asked.emitted_at_s:
        return "skipped"
    if step is not None and at_s > steps.begins_s[step] + steps.planned_s[step]:
        return "model_error"
    return "prefill" if stage == "prefill" else "long_step"
