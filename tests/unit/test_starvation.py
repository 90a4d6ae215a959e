"""The default policy at its worst: lasting overload, ten thousand at once, and a cold start."""

from __future__ import annotations

from itertools import pairwise
from statistics import mean

import pytest

from headway import registry
from headway.engines.sim.run import SimRun
from headway.engines.virtual import VirtualCall, VirtualEngine
from headway.latency import profile as profiles
from headway.latency.truth import Truth
from headway.slo import SloBook
from headway.study.requests import book_of, calls_of, requests_of
from headway.study.spec import Load, Machine, RunSpec
from headway.study.virtual_run import execute, record_of

GPU = "llama-3.1-8b@h100"
PRESSED = Machine(GPU, kv_tokens=41_408, noise=0.05)
CAPACITY_RPS = {"mixed": 8.0, "retrieval": 9.0}
"""About where the default policy keeps nine promises in ten on ``PRESSED``."""


def server(num_blocks: int, book: SloBook | None = None, **options: object) -> SimRun:
    """Return a simulated H100 under the default policy."""
    engine = VirtualEngine(num_blocks=num_blocks, max_num_batched_tokens=8192, max_num_seqs=1024)
    truth = Truth(profiles.load(GPU), noise=0.05, seed=1)
    return SimRun(engine, truth, registry.build("headway", options=options), book=book)


@pytest.mark.parametrize(
    ("name", "seed"), [("mixed", 2), ("mixed", 3), ("retrieval", 0), ("retrieval", 2)]
)
def test_nobody_waits_too_long_at_three_times_capacity(name: str, seed: int) -> None:
    """Between any two of its instants a request waits ``max_wait_s`` at most, or is told at once.

    The overload lasts six times that long, and the last waits are those of a full queue.
    Promises are kept all the while: the overdue do not take the server over.
    """
    max_wait_s = 10.0
    rate_rps = 3 * CAPACITY_RPS[name]
    load = Load(name, rate_rps, int(6 * max_wait_s * rate_rps), seed)
    book = book_of(load)
    calls, slos = calls_of(requests_of(load), book)
    run = server(41_408 // 16, book, max_wait_s=max_wait_s)
    outcomes = run.run(calls)
    waits, num_kept = [], 0
    for outcome in outcomes.values():
        instants = [outcome.call.arrived_at_s, *outcome.emitted_at_s]
        if outcome.finish_reason == "abort":
            assert not outcome.emitted_at_s, "nobody is refused after a token was given"
            instants.append(outcome.ended_at_s)
        else:
            assert len(outcome.emitted_at_s) == outcome.call.num_output_tokens
            num_kept += record_of(outcome, slos).attained
        waits.append(max(b - a for a, b in pairwise(instants)))
    assert max(waits) > max_wait_s / 2, "this was no overload"
    assert max(waits) <= max_wait_s
    assert num_kept > 0.3 * len(calls)


def test_ten_thousand_at_one_instant() -> None:
    """Promises of every kind, none possible for most: all are served to the last token."""
    wishes = ({"slo_ttft_ms": 500, "slo_tbt_ms": 50}, {"slo_jct_ms": 5000}, {}, {"slo_ttft_ms": 1})
    run = server(40, max_wait_s=3600.0)
    calls = [
        VirtualCall(f"r{i:05d}", 0.0, 5 + i % 60, 1 + i % 5, wishes[i % 4]) for i in range(10_000)
    ]
    outcomes = run.run(calls)
    assert len(outcomes) == 10_000
    for outcome in outcomes.values():
        assert len(outcome.emitted_at_s) == outcome.call.num_output_tokens
    assert not run.policy.live.requests


@pytest.mark.parametrize("name", CAPACITY_RPS)
def test_the_first_hundred_fare_as_well_as_the_next(name: str) -> None:
    """Nothing is known of steps and lengths at first: that costs two points at most."""
    first, following = [], []
    for seed in range(3):
        load = Load(name, 1.25 * CAPACITY_RPS[name], 200, seed)
        records = execute(RunSpec("headway", "sim", load, PRESSED)).records
        kept = [r.attained for r in sorted(records, key=lambda r: r.arrived_at_s)]
        first += kept[:100]
        following += kept[100:]
    assert mean(first) >= mean(following) - 0.02
