"""Slow, obvious twins of what targets, tenants and turns are reckoned by."""

from __future__ import annotations

import math
from collections import defaultdict

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headway.latency.fixed import FixedModel
from headway.latency.model import StepShape
from headway.policy.admit import DueWork, largest_feasible
from headway.policy.live_requests import LiveRequests
from headway.policy.pace import Pace
from headway.policy.targets import ASCENT, FORGET, MOST_TIMES, Targets
from headway.policy.tenants import AS_MUCH, LATELY_S, Tenants
from headway.policy.turns import Turns
from headway.policy.view import EngineView
from headway.policy.work_rate import WorkRate
from headway.request import Request
from headway.slo import Slo

rows = st.lists(
    st.tuples(
        st.integers(0, 30), st.integers(1, 12), st.sampled_from([0.5, 1.0, 1e6]), st.booleans()
    ),
    max_size=14,
)


@given(rows)
def test_of_those_who_do_not_give_way_the_same_are_kept_as_alone(
    drawn: list[tuple[int, int, float, bool]],
) -> None:
    """Whatever a tenant who gives way promises, and at what weight, takes nothing from others."""
    jobs = [
        DueWork(f"j{i}", float(due), float(work), weight, gives_way)
        for i, (due, work, weight, gives_way) in enumerate(drawn)
    ]
    together, _ = largest_feasible(jobs)
    others = [job for job in jobs if not job.gives_way]
    alone, _ = largest_feasible(others)
    assert {job.key for job in others} & together == alone


steps = st.lists(
    st.tuples(
        st.floats(0.01, 20.0),  # Seconds since the last.
        st.integers(0, 3),  # Whose prompt has tokens in it.
        st.integers(1, 900),
        st.booleans(),  # Whether that prompt is complete with it.
        st.booleans(),  # Whether the oldest decode ends before it.
    ),
    max_size=25,
)


@given(steps)
def test_accounts_are_sums_of_faded_charges(
    drawn: list[tuple[float, int, int, bool, bool]],
) -> None:
    """Every step is charged by the second, to whose tokens it has; what was used fades."""
    latency, capacity = FixedModel((0.01, 2e-3, 1e-4, 1e-3, 1e-7, 1e-9, 1e-3)), 5000
    tenants = Tenants()
    owners = [
        Request(f"r{i}", Slo(ttft_s=1.0, tenant=f"t{i}", share=1.0 + i), 0.0, 10, 10)
        for i in range(4)
    ]
    for request in owners:  # They stay, so that all accounts are looked at.
        tenants.arrived(request, 0.0)
    tenants.weigh(0.0, capacity)
    charges: dict[str, list[tuple[float, float, float]]] = defaultdict(list)
    decodes: list[tuple[Request, int]] = []
    now_s = 0.0
    for i, (later_s, whose, num_tokens, is_complete, one_ends) in enumerate(drawn):
        now_s += later_s
        if one_ends and decodes:
            ended, _ = decodes.pop(0)
            tenants.stopped(ended)
            tenants.left(ended)
        tenant = f"t{whose}"
        request = Request(f"n{i}", Slo(ttft_s=1.0, tenant=tenant, share=1.0 + whose), 0.0, 999, 10)
        tenants.arrived(request, now_s)
        beside = StepShape(0, 0, len(decodes), 0)
        step_s = latency.predict_s(beside.with_chunk(num_tokens, 0))
        decode_s = min(latency.predict_s(beside), step_s)
        request.num_computed_tokens = num_tokens
        shape, took_s = beside.with_chunk(num_tokens, 0), 1.5 * step_s
        tenants.begun(i, latency, beside, shape, [(request, num_tokens)])
        tenants.done(now_s, took_s)
        for decode, began in decodes:
            held = decode.num_tokens + i - began
            share_s = 1.5 * decode_s / len(decodes)
            charges[decode.slo.tenant].append((now_s, share_s, took_s * held / capacity))
        charges[tenant].append((now_s, took_s - 1.5 * decode_s, took_s * num_tokens / capacity))
        if is_complete:
            tenants.decodes(request, i)
            decodes.append((request, i))
        else:
            tenants.left(request)
    tenants.weigh(now_s, capacity)
    used = {}
    for i in range(4):
        faded = [(math.exp((at - now_s) / LATELY_S), e, kv) for at, e, kv in charges[f"t{i}"]]
        engine, kv = sum(f * e for f, e, _ in faded), sum(f * kv for f, _, kv in faded)
        used[f"t{i}"] = max(engine, kv) / (1.0 + i)
        assert tenants.used(f"t{i}", now_s) == pytest.approx(used[f"t{i}"], rel=1e-6)
    most = max(used.values())
    margin = min(abs(u * AS_MUCH - most) for u in used.values())
    if margin > 1e-6:
        heavy = {name for name, u in used.items() if u * AS_MUCH >= most}
        assert tenants.heavy == (heavy if len(heavy) < 4 else set())


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abc"), st.sampled_from(["", "x"]), st.booleans(), st.floats(0.1, 9.0)
        ),
        max_size=60,
    )
)
def test_what_a_target_weighs_is_the_sum_of_its_shortfalls(
    drawn: list[tuple[str, str, bool, float]],
) -> None:
    """Each broken promise adds, each kept one takes away, and what there is is forgotten slowly."""
    aims = {"class a": 0.9, "class b": 0.99, "tenant x": 0.8}
    targets, logs, mean = Targets(), dict[str, float](), 0.0
    for name, tenant, is_kept, weight in drawn:
        slo = Slo(
            ttft_s=1.0,
            class_name=name,
            weight=weight,
            target=aims.get(f"class {name}"),
            tenant=tenant,
            tenant_target=aims.get(f"tenant {tenant}"),
        )
        targets.ended(slo, is_kept=is_kept)
        groups = [g for g in (f"class {name}", f"tenant {tenant}") if g in aims]
        if groups:
            mean = weight if not mean else 0.95 * mean + 0.05 * weight
        for group in groups:
            old = logs.get(group, 0.0)
            short = (aims[group] - (1.0 if is_kept else 0.0)) * weight / mean
            logs[group] = max(0.0, old * (1 - ASCENT * FORGET) + ASCENT * short)
    top = max(logs.values(), default=0.0)
    over = max(top - math.log(MOST_TIMES), 0.0)
    expected = {group: math.exp(max(log - over, 0.0)) for group, log in logs.items()}
    assert targets.times == pytest.approx(expected)


FREE = (0.0, 1, 1, False, False)
"""A request without a promise, as the next test draws it."""


@example([(0.0, 1, 1, True, False), FREE], False)
@example([*[FREE] * 6, (0.0, 1, 1, True, True), FREE], False)
@given(
    st.lists(
        st.tuples(
            st.floats(0.0, 3.0),
            st.integers(1, 3000),
            st.integers(1, 500),
            st.booleans(),
            st.booleans(),  # Whether everybody who waits has started meanwhile.
        ),
        min_size=1,
        max_size=20,
    ),
    st.booleans(),
)
def test_turns_are_a_queue_served_in_order_of_arrival(
    drawn: list[tuple[float, int, int, bool, bool]], knows_lengths: bool
) -> None:
    """One after the other, each for as long as it keeps the engine or its part of the cache."""
    latency, turns, live = (
        FixedModel((0.01, 2e-3, 1e-4, 1e-3, 1e-7, 1e-9, 1e-3)),
        Turns(),
        LiveRequests(),
    )
    pace, rate = Pace(latency), WorkRate()
    for i in range(32 if knows_lengths else 31):
        rate.add(float(i), 1.0, False, 1)
    turns.saw(EngineView(600, 600, 16, 256, 1024))
    full_s = latency.predict_s(StepShape().with_chunk(1024, 0))
    decode_s = latency.predict_s(StepShape())
    free_s = now_s = 0.0
    for i, (later_s, prompt, output, is_promised, have_started) in enumerate(drawn):
        now_s += later_s
        if have_started:
            for request in list(live.waiting()):
                live.unqueue(request)
                live.leave(request)
            free_s = 0.0
        request = Request(f"r{i}", Slo(ttft_s=1.0) if is_promised else Slo(), now_s, prompt, output)
        turns.arrived(request, latency, live, pace, rate)
        live.arrive(request)
        token_s = full_s / (full_s - decode_s)
        engine_s = (latency.predict_s(StepShape().with_chunk(prompt, 0)) - decode_s) * token_s
        kv_s = (prompt + output / 2) / (600 * 16) * output * pace.step_s if knows_lengths else 0.0
        free_s = max(free_s, now_s) + max(engine_s, kv_s)
        assert request.turn_at_s == (math.inf if is_promised else pytest.approx(free_s))


@given(
    st.lists(st.tuples(st.integers(0, 30), st.integers(0, 9)), max_size=7),
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, 6)), max_size=3),
)
def test_turns_take_their_time_from_claims_that_came_after(
    drawn: list[tuple[int, int]], turns: list[tuple[int, int]]
) -> None:
    """What is kept is on time behind the turns before it, served one after the other."""
    jobs = [
        DueWork(f"j{i}", float(due), float(work), order=i) for i, (due, work) in enumerate(drawn)
    ]
    ahead = sorted((rank - 0.5, float(work)) for rank, work in turns)
    dropped, _ = largest_feasible(jobs, ahead)
    now_s, left = 0.0, list(ahead)
    for job in sorted((j for j in jobs), key=lambda j: (j.due_s, j.key)):
        while left and left[0][0] < job.order:
            now_s += left.pop(0)[1]
        if job.key not in dropped:
            now_s += job.work_s
            assert now_s <= job.due_s
