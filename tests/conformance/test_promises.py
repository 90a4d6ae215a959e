"""Promises: impossible ones, refused ones, overload, and how long anyone may have to wait."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from headway.latency.model import StepShape
from headway.latency.online import OnlineModel

pytest.importorskip("vllm", reason="vLLM is not installed")

from headway.engines.vllm.model_roofline import roofline

OVERLOAD_RPS = 5.0
"""About twice what the lab's machine serves of its mixed traffic (see the first test)."""


def engine_of(lab: Any, **headway: Any) -> Any:
    return lab.Engine(
        num_blocks=160,
        block_size=32,
        max_num_batched_tokens=2048,
        max_num_seqs=64,
        headway={"policy": "headway", **headway},
    )


def test_the_overload_is_one(lab: Any) -> None:
    """The rate called overload takes at least 1.6 times as long to serve as to arrive."""
    run = lab.start(dataclasses.replace(engine_of(lab), headway={"policy": "fcfs"}))
    calls = lab.mixed(150, OVERLOAD_RPS, 0)
    run.run(calls)
    assert run.clock.time_s > 1.6 * calls[-1].arrived_at_s


IMPOSSIBLE = ({"slo_ttft_ms": 1}, {"slo_tbt_ms": 1}, {"slo_ttft_ms": 1, "slo_tbt_ms": 1})


@pytest.mark.parametrize("asynchronous", [False, True])
def test_impossible_promises_starve_nobody(lab: Any, asynchronous: bool) -> None:
    """With 1 ms asked for by half of the requests, the other half fares about as well."""
    calls = lab.mixed(100, 0.9, 3)
    possible = [c.request_id for c in calls[::2]]
    engine = dataclasses.replace(engine_of(lab), asynchronous=asynchronous)
    plain = lab.start(engine).run(calls)
    before = lab.attainment(plain[i] for i in possible)
    assert before > 0.9
    for wishes in IMPOSSIBLE[-1:] if asynchronous else IMPOSSIBLE:
        spoilt = [
            dataclasses.replace(c, xargs={**c.xargs, **wishes}) if i % 2 else c
            for i, c in enumerate(calls)
        ]
        run = lab.start(engine)
        outcomes = run.run(spoilt)
        lab.all_served(outcomes)
        lab.is_clean(run)
        after = lab.attainment(outcomes[i] for i in possible)
        assert after >= before - 0.05, wishes
        waits = [o.emitted_at_s[0] - o.call.arrived_at_s for o in outcomes.values()]
        assert max(waits) < 10.0, "light load: nobody has reason to wait long"


@pytest.mark.parametrize(("seed", "asynchronous"), [(0, True), (1, False)])
def test_nobody_waits_beyond_the_bound(lab: Any, seed: int, asynchronous: bool) -> None:
    """At twice the load no one waits longer than ``max_wait_s`` and their own service.

    The load lasts 50 s, much longer than the bound. Who cannot be served within it is told so
    in time; every request is answered, and those that asked for nothing are served.
    """
    max_wait_s = 20.0
    engine = dataclasses.replace(
        engine_of(lab, options={"max_wait_s": max_wait_s}), asynchronous=asynchronous
    )
    calls = [
        dataclasses.replace(c, xargs={}) if i % 20 == 0 else c
        for i, c in enumerate(lab.mixed(int(50 * OVERLOAD_RPS), OVERLOAD_RPS, seed))
    ]
    run = lab.start(engine, seed)
    outcomes = run.run(calls)
    lab.is_clean(run)
    for outcome in outcomes.values():
        instants = [outcome.call.arrived_at_s, *outcome.emitted_at_s]
        if outcome.finish_reason == "abort":
            assert outcome.call.xargs, "who asked for no promise is never refused"
            assert outcome.stop_reason.startswith("headway:refused:")
            assert not outcome.emitted_at_s, "nobody is refused after a token was given"
            instants.append(outcome.ended_at_s)
        else:
            assert len(outcome.emitted_at_s) == outcome.call.num_output_tokens
        own_s = 0.2 + 0.002 * (outcome.call.num_prompt_tokens + len(outcome.emitted_at_s))
        assert max(np.diff(instants)) <= max_wait_s + own_s, outcome


def test_a_short_overload_refuses_nobody(lab: Any) -> None:
    """When the backlog can be served within the longest wait, every request gets its tokens."""
    run = lab.start(engine_of(lab, options={"max_wait_s": 120}))
    outcomes = run.run(lab.mixed(int(20 * OVERLOAD_RPS), OVERLOAD_RPS, 5))
    lab.all_served(outcomes)
    lab.is_clean(run)


def test_overload_keeps_promises(lab: Any) -> None:
    """At twice the load ``slack`` keeps many times the promises that ``fcfs`` keeps."""
    calls = lab.mixed(150, OVERLOAD_RPS, 0)
    ours = lab.start(engine_of(lab)).run(calls)
    fcfs = lab.start(dataclasses.replace(engine_of(lab), headway={"policy": "fcfs"})).run(calls)
    assert lab.attainment(ours.values()) > 0.3
    assert lab.attainment(ours.values()) > 2 * lab.attainment(fcfs.values())


@pytest.mark.parametrize("asynchronous", [False, True])
def test_refuse_mode(lab: Any, asynchronous: bool) -> None:
    """In refuse mode the hopeless are told at once when to come back, the others served."""
    engine = dataclasses.replace(engine_of(lab, overload="refuse"), asynchronous=asynchronous)
    run = lab.start(engine)
    outcomes = run.run(lab.mixed(150, OVERLOAD_RPS, 1))
    lab.is_clean(run)
    refused = [o for o in outcomes.values() if o.finish_reason == "abort"]
    served = [o for o in outcomes.values() if o.finish_reason != "abort"]
    assert refused
    assert served
    for outcome in refused:
        assert outcome.stop_reason.startswith("headway:refused:")
        assert float(outcome.stop_reason.split(":")[2]) > 0
        assert not outcome.emitted_at_s
    for outcome in served:
        assert len(outcome.emitted_at_s) == outcome.call.num_output_tokens
    assert lab.attainment(served) > 0.7


def test_a_bad_promise_ends_only_its_request(lab: Any) -> None:
    """A mistake in ``vllm_xargs`` that slipped past the edge is answered with a sentence."""
    run = lab.start(engine_of(lab))
    bad = [
        lab.Call("word", 0.0, 30, 5, {"slo_ttft_ms": "soon"}),
        lab.Call("negative", 0.0, 30, 5, {"slo_tbt_ms": -4}),
        lab.Call("unknown", 0.1, 30, 5, {"slo_speed": 1}),
        lab.Call("noclass", 0.1, 30, 5, {"slo_class": "gold"}),
        lab.Call("listed", 0.1, 30, 5, {"slo_ttft_ms": [1.0]}),
    ]
    good = [lab.Call(f"g{i}", 0.05 * i, 30, 5, {"slo_ttft_ms": 900}) for i in range(6)]
    outcomes = run.run([*bad, *good])
    for call in bad:
        outcome = outcomes.pop(call.request_id)
        assert outcome.finish_reason == "abort"
        assert outcome.stop_reason.startswith("headway:invalid:")
        assert next(iter(call.xargs)) in outcome.stop_reason
    lab.all_served(outcomes)
    lab.is_clean(run)


def test_a_bad_promise_alone_is_answered(lab: Any) -> None:
    """The answer comes although nothing else makes the engine step."""
    run = lab.start(engine_of(lab))
    outcome = run.run([lab.Call("bad", 0.0, 30, 5, {"slo_ttft_ms": 0})], max_steps=20)["bad"]
    assert outcome.stop_reason.startswith("headway:invalid:")


class Blind(OnlineModel):
    """A model that does not see how long the context is that a chunk attends to."""

    @staticmethod
    def _blind(shape: StepShape) -> StepShape:
        return dataclasses.replace(shape, chunk_context=0.0)

    def predict_s(self, shape: StepShape) -> float:
        return super().predict_s(self._blind(shape))

    def observe(self, shape: StepShape, duration_s: float) -> None:
        super().observe(self._blind(shape), duration_s)


def test_a_model_without_chunk_context_fails_on_long_prompts(lab: Any) -> None:
    """Beside 10,000-token prompts short chats keep their gaps only if attention is counted."""
    ours = [long_prompts(lab, seed, blind=False) for seed in range(2)]
    blind = [long_prompts(lab, seed, blind=True) for seed in range(2)]
    assert np.mean(ours) >= 0.9
    assert np.mean(ours) >= np.mean(blind) + 0.2
    assert 1 - np.mean(blind) >= 2 * (1 - np.mean(ours)), "at least twice the broken promises"


def long_prompts(lab: Any, seed: int, *, blind: bool) -> float:
    """Attainment of 30 % 10,000-token prompts among short chats with gaps of 35 ms."""
    noise = np.random.default_rng(seed)

    def truth(shape: StepShape) -> float:
        seconds = (
            0.006
            + 4e-5 * shape.num_decodes
            + 2e-5 * shape.num_prefill_tokens
            + 2e-8 * shape.sum_context_tokens
            + 6e-8 * shape.chunk_context
        )
        return seconds * float(np.exp(0.04 * noise.standard_normal()))

    rng = np.random.default_rng(seed)
    at_s, calls = 0.0, []
    for i in range(100):
        at_s += float(rng.exponential(1 / 0.6))
        if rng.random() < 0.3:
            wishes = {"slo_ttft_ms": 8000, "slo_tbt_ms": 200}
            calls.append(lab.Call(f"long{i}", at_s, 10_000, 60, wishes))
        else:
            wishes = {"slo_ttft_ms": 1000, "slo_tbt_ms": 35}
            calls.append(lab.Call(f"chat{i}", at_s, int(rng.integers(50, 300)), 80, wishes))
    engine = lab.Engine(num_blocks=8000, max_num_batched_tokens=2048, headway={"policy": "headway"})
    run = lab.VirtualRun(engine, truth)
    if blind:
        model = Blind(roofline(run.scheduler.vllm_config))
        run.scheduler.headway = run.scheduler.headway_settings.build(latency=model)
    return float(lab.attainment(run.run(calls).values()))
