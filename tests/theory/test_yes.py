"""A server that says yes means it: who is let in on its word is on time if nobody follows."""

from __future__ import annotations

import copy
import os
import random

from headway import registry
from headway.engines.sim.run import SimRun
from headway.latency import profile as profiles
from headway.study.on_sim import engine_of
from headway.study.requests import book_of, calls_of, requests_of
from headway.study.spec import Load, Machine
from headway.study.virtual_run import record_of, truth_of

SEEDS = 5 if os.environ.get("HEADWAY_LONG") else 1
ASKED = 20
"""Instants of a run at which the next arrival is asked about."""

GROUNDS = (("mixed", 35.0, None), ("mixed", 15.0, 41_408), ("retrieval", 12.0, 41_408))
"""Workload, rate (requests a second) and tokens of KV: busy, and beyond what can be kept."""


def kept_yes(source: str, rate_rps: float, kv_tokens: int | None, seed: int) -> list[bool]:
    """Return, for each yes of one run, whether the promise was kept with no later arrivals."""
    machine = Machine("llama-3.1-8b@h100", kv_tokens=kv_tokens, noise=0.05)
    load = Load(source, num_requests=200, seed=seed, rate_rps=rate_rps)
    book, profile = book_of(load), profiles.load(machine.gpu)
    calls, slos = calls_of(requests_of(load), book, by_class=False)
    calls = sorted(calls, key=lambda c: (c.arrived_at_s, c.request_id))
    policy = registry.build("headway")
    truth = truth_of(profile, machine, seed)
    run = SimRun(engine_of(machine, profile), truth, policy, book=book)
    chosen = set(random.Random(seed).sample(range(30, len(calls)), ASKED))
    kept = []
    for index, call in enumerate(calls):
        run.advance(call.arrived_at_s)
        if index in chosen:
            slo = slos[call.request_id]
            if policy.quote(call.num_prompt_tokens, 0, slo, call.arrived_at_s).feasible:
                alone = copy.deepcopy(run)
                alone.submit(call)
                alone.advance(float("inf"))
                kept.append(bool(record_of(alone.outcomes[call.request_id], slos).attained))
        run.submit(call)
    return kept


def test_a_yes_is_kept() -> None:
    """Nineteen of twenty, where the server is busy and where it is pressed."""
    kept = [one for ground in GROUNDS for seed in range(SEEDS) for one in kept_yes(*ground, seed)]
    assert len(kept) >= 20 * SEEDS
    assert sum(kept) >= 0.95 * len(kept)
