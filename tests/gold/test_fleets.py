"""A fleet against its slow twins: all servers at every instant, caches looked at block by block."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from headway import registry
from headway.engines.sim.blocks import PrefixPool, num_cached_tokens
from headway.engines.sim.fleet import Fleet, FleetResult
from headway.engines.sim.job import Job
from headway.engines.sim.routers import ROUTERS, Router
from headway.engines.sim.run import SimRun
from headway.engines.sim.signals import Signals
from headway.engines.virtual import Outcome, VirtualCall, VirtualEngine
from headway.latency.fixed import FixedModel
from headway.latency.laptop import LAPTOP
from headway.latency.model import StepShape

NUM_SERVERS = 3


def step_s(shape: StepShape) -> float:
    """Seconds of a step on a machine as the policy believes it to be."""
    return LAPTOP.predict_s(shape)


def server(index: int, caching: bool, policy: str = "headway") -> SimRun:
    """Two are as fast as the policy believes, so that their steps end together; one is slower."""
    core = registry.build(policy, overload="refuse", latency=FixedModel(LAPTOP.coefficients()))
    engine = VirtualEngine(num_blocks=400 + 100 * (index == 2), prefix_caching=caching)
    return SimRun(engine, lambda shape: (1.5 if index == 2 else 1.0) * step_s(shape), core)


def calls(seed: int, num: int = 70) -> list[VirtualCall]:
    """Bursts of promises, some of them hard to keep, some clients gone soon."""
    rng = np.random.default_rng(seed)
    at_s = np.round(np.cumsum(rng.exponential(0.08, num)) / 0.5) * 0.5  # Several at an instant.
    made = []
    for i in range(num):
        chain = tuple(range(100 * (i % 4), 100 * (i % 4) + 12))
        promise = {"slo_ttft_ms": int(rng.choice([300, 800, 2000])), "slo_tbt_ms": 200}
        call = VirtualCall(
            f"r{i:03d}", float(at_s[i]), int(rng.integers(200, 700)), int(rng.integers(1, 40)),
            promise if i % 7 else {}, hash_ids=chain, hash_tokens=16,
        )  # fmt: skip
        made.append(replace(call, abort_at_s=call.arrived_at_s + 0.4) if i % 11 == 0 else call)
    return made


def stepped(
    servers: list[SimRun], router: Router, sent: list[VirtualCall], num_retries: int, age_s: float
) -> FleetResult:
    """The slow twin: at every instant at which anything happens, every server stands."""
    result = FleetResult(routed=[0] * len(servers))
    signals = Signals(servers, age_s, lets_time_pass=False)
    waiting = sorted(sent, key=lambda c: (c.arrived_at_s, c.request_id))
    tried: dict[str, list[int]] = {}
    heard = {id(one): 0 for one in servers}
    num_tries = min(num_retries + 1, len(servers))

    def send(call: VirtualCall, now_s: float) -> None:
        before = tried.setdefault(call.request_id, [])
        signals.now_s = now_s
        among = [i for i in range(len(servers)) if i not in before]
        chosen = router.choose(call, signals, among)
        before.append(chosen)
        servers[chosen].submit(call, now_s, float(len(before) == num_tries))
        result.routed[chosen] += 1

    while True:
        arrives_s = waiting[0].arrived_at_s if waiting else math.inf
        due_s = min(one.due_s for one in servers)
        if arrives_s == due_s == math.inf:
            break
        if arrives_s < due_s:
            send(waiting.pop(0), arrives_s)
            continue
        if due_s > signals.next_sample_s:
            signals.sample_if_due(due_s)
        for one in servers:
            one.advance(due_s)
        for one in servers:
            for name in one.refused[heard[id(one)] :]:
                outcome = one.outcomes[name]
                call, heard_s = outcome.call, outcome.ended_at_s or 0.0
                is_gone = call.abort_at_s is not None and call.abort_at_s <= heard_s
                if len(tried[name]) < num_tries and not is_gone:
                    send(call, heard_s)
            heard[id(one)] = len(one.refused)
    for one in servers:
        result.take(one)
    result.outcomes = {n: servers[at[-1]].outcomes[n] for n, at in tried.items()}
    return result


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize(
    ("num_retries", "age_s", "caching"),
    [(0, 0.0, True), (0, 0.3, False), (1, 0.3, True), (5, 0.0, False)],
)
def test_a_fleet_equals_all_servers_at_every_instant(
    router: str, num_retries: int, age_s: float, caching: bool
) -> None:
    """Whoever is looked at, and whenever: the same tokens, refusals and places."""
    sent = calls(num_retries)
    fast = Fleet(
        lambda index: server(index, caching),
        ROUTERS[router](),
        NUM_SERVERS,
        num_retries=num_retries,
        signal_age_s=age_s,
    ).run(sent)
    servers = [server(index, caching) for index in range(NUM_SERVERS)]
    slow = stepped(servers, ROUTERS[router](), sent, num_retries, age_s)
    assert (fast.routed, fast.refused) == (slow.routed, slow.refused)
    assert sum(fast.refused) > 10
    assert bool(fast.elsewhere) == bool(num_retries)
    for name, outcome in slow.outcomes.items():
        other = fast.outcomes[name]
        assert list(other.emitted_at_s) == list(outcome.emitted_at_s)
        assert (other.stop_reason, other.ended_at_s) == (outcome.stop_reason, outcome.ended_at_s)


@pytest.mark.parametrize("seed", range(4))
def test_the_longest_prefix_equals_a_walk(seed: int) -> None:
    """Whatever chains were cached and evicted since: the blocks that an admission would find."""
    rng = np.random.default_rng(seed)
    pool = PrefixPool(60, 16)
    for i in range(200):
        length = int(rng.integers(1, 14))
        chain = tuple(int(one) for one in rng.integers(0, 2, length))
        rest = int(rng.choice([0, 5]))
        call = VirtualCall(f"r{i}", 0.0, 16 * length + rest, 4, hash_ids=chain, hash_tokens=16)
        job = Job(call, Outcome(call))
        hits = pool.find(job)
        assert num_cached_tokens(pool.cached, job, 16) == 16 * len(hits)
        pool.adopt(job, hits)
        assert pool.allocate(job, job.num_tokens)
        pool.note_full(job, job.num_tokens)
        pool.release(job)
