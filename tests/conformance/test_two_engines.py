"""Two engines, one truth: the simulator schedules what vLLM's own scheduler schedules.

Ten seeded workloads that differ in KV pressure, lengths, promises, aborts and limits, each under
five policies, planned step by step and one step ahead: the same tokens of the same requests at
the same instants, to the bit, and the same answers to the clients.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from headway import registry
from headway.engines.sim.run import SimRun
from headway.engines.virtual import VirtualCall, VirtualEngine
from headway.engines.vllm.model_roofline import roofline
from headway.latency.online import OnlineModel
from headway.slo import SloBook
from headway.study.requests import calls_of
from headway.workloads import named

POLICIES = ("fcfs", "sarathi", "slack", "accelgen", "headway", "vllm_v0")


@dataclass(frozen=True)
class Workload:
    """What a seed makes calls from, and the engine they meet."""

    num: int = 30
    rate_rps: float = 4.0
    prompt: tuple[int, int] = (20, 300)
    output: tuple[int, int] = (1, 50)
    promised: tuple[Mapping[str, float], ...] = ({"slo_ttft_ms": 1000, "slo_tbt_ms": 200}, {})
    max_output: int | None = None
    abort_every: int = 0
    engine: Mapping[str, Any] = field(default_factory=dict)
    overload: str = "demote"

    def calls(self, seed: int) -> list[VirtualCall]:
        rng = np.random.default_rng(seed)
        at_s = 0.0
        calls = []
        for i in range(self.num):
            at_s += float(rng.exponential(1 / self.rate_rps))
            aborted = self.abort_every and i % self.abort_every == 0
            calls.append(
                VirtualCall(
                    f"r{i:03d}",
                    at_s,
                    int(rng.integers(*self.prompt)),
                    int(rng.integers(*self.output)),
                    self.promised[int(rng.integers(len(self.promised)))],
                    self.max_output,
                    abort_at_s=at_s + float(rng.uniform(0, 3)) if aborted else None,
                )
            )
        return calls


CHAT = {"slo_ttft_ms": 1000, "slo_tbt_ms": 150}
JOB = {"slo_jct_ms": 20000}
WORKLOADS = {
    "roomy": Workload(),
    "pressed": Workload(rate_rps=12.0, engine={"num_blocks": 45}),
    "starved": Workload(
        num=20, rate_rps=8.0, prompt=(20, 90), output=(40, 80), engine={"num_blocks": 25}
    ),
    "long prompts": Workload(num=16, prompt=(500, 3000), promised=(CHAT, JOB, {})),
    "short and many": Workload(num=60, rate_rps=30.0, prompt=(1, 40), output=(1, 12)),
    "few seats": Workload(engine={"max_num_seqs": 4}, promised=(CHAT, JOB)),
    "hang-ups": Workload(abort_every=3, rate_rps=8.0, engine={"num_blocks": 60}),
    "cut off": Workload(max_output=20, output=(10, 40), engine={"num_blocks": 50}),
    "refusing": Workload(rate_rps=20.0, promised=(CHAT,), overload="refuse"),
    "tiny blocks": Workload(rate_rps=8.0, engine={"num_blocks": 500, "block_size": 2}),
}
MISTAKES = {"slo_ttft_ms": -1}


def pair(
    lab: Any, workload: Workload, policy: str, seed: int, *, asynchronous: bool
) -> tuple[Any, SimRun, Any, Any]:
    """Serve one workload on both engines; return both runs and both sets of outcomes."""
    engine = lab.Engine(
        **{"num_blocks": 2000, "max_num_batched_tokens": 512, **workload.engine},
        asynchronous=asynchronous,
        headway={"policy": policy, "overload": workload.overload},
    )
    theirs = lab.VirtualRun(engine, lab.truth(seed), keep_steps=True)
    core = registry.build(
        policy,
        overload=workload.overload,
        latency=OnlineModel(roofline(theirs.scheduler.vllm_config)),
    )
    sim = SimRun(sim_engine(engine), lab.truth(seed), core, keep_schedule=True, keep_steps=True)
    calls = workload.calls(seed)
    return theirs, sim, theirs.run(calls), sim.run(calls)


def sim_engine(engine: Any) -> VirtualEngine:
    return VirtualEngine(
        num_blocks=engine.num_blocks - 1,  # vLLM keeps one as its null block
        block_size=engine.block_size,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        max_num_seqs=engine.max_num_seqs,
        asynchronous=engine.asynchronous,
        prefix_caching=engine.prefix_caching,
    )


def assert_same(theirs: Any, sim: SimRun, served: Any, simulated: Any) -> None:
    for number, (a, b) in enumerate(zip(theirs.steps, sim.schedule, strict=False)):
        assert a == b, f"step {number} differs"
        assert list(a[1]) == list(b[1]), f"the order in step {number} differs"
    assert len(theirs.steps) == len(sim.schedule)
    assert theirs.rows == sim.steps, "the timelines of a report"
    assert sum(sim.num_preemptions.values()) >= theirs.num_preemptions
    assert list(served) == list(simulated)
    for request_id, one in served.items():
        other = simulated[request_id]
        assert list(other.emitted_at_s) == one.emitted_at_s
        for name in ("finish_reason", "stop_reason", "ended_at_s", "phases"):
            assert getattr(other, name) == getattr(one, name), (request_id, name)
    pool = sim.machine.pool
    assert pool.num_free == pool.num_total
    assert not sim.machine.jobs
    assert not sim.machine.waiting
    assert not sim.policy.live.requests


CASES = [
    pytest.param(name, policy, seed, asynchronous, id=f"{name}-{policy}-{asynchronous}")
    for seed, name in enumerate(WORKLOADS)
    for number, policy in enumerate(POLICIES)
    for asynchronous in (False, True)
    if policy in ("fcfs", "headway") or asynchronous is bool((seed + number) % 2)
]
"""The other three policies meet every workload, half of them step by step and half one ahead."""


@pytest.mark.parametrize(("name", "policy", "seed", "asynchronous"), CASES)
def test_two_engines_one_truth(
    lab: Any, name: str, policy: str, seed: int, asynchronous: bool
) -> None:
    """The simulator computes the same tokens at the same instants as vLLM, to the bit."""
    assert_same(*pair(lab, WORKLOADS[name], policy, seed, asynchronous=asynchronous))


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_the_pressed_workloads_preempt(lab: Any, asynchronous: bool) -> None:
    """The comparison covers preemption, planned and met inside the loop: it happens often."""
    for name in ("pressed", "starved"):
        _, sim, *_ = pair(lab, WORKLOADS[name], "fcfs", 3, asynchronous=asynchronous)
        assert sim.num_preemptions["recompute"] >= 3, name


def caching(
    lab: Any, policy: str, seed: int, book: SloBook | None = None, **shape: Any
) -> tuple[Any, SimRun]:
    """Return both engines with prefix caching on, of one shape and one truth, before any call."""
    shape = {"max_num_batched_tokens": 512, "prefix_caching": True, **shape}
    engine = lab.Engine(**shape, headway={"policy": policy})
    theirs = lab.VirtualRun(engine, lab.truth(seed))
    if book is not None:
        theirs.scheduler.headway_book = book
    core = registry.build(policy, latency=OnlineModel(roofline(theirs.scheduler.vllm_config)))
    return theirs, SimRun(sim_engine(engine), lab.truth(seed), core, book=book, keep_schedule=True)


def sharing(calls: list[VirtualCall], prefix_tokens: int) -> list[VirtualCall]:
    """Let calls share three prefixes."""
    return [
        replace(
            call,
            hash_ids=("abc"[i % 3],),
            hash_tokens=prefix_tokens,
            num_prompt_tokens=40 + 7 * (i // 2),
        )
        for i, call in enumerate(calls)
    ]


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize(("num_blocks", "prefix_tokens"), [(2000, 10_000), (60, 100)])
@pytest.mark.parametrize("policy", POLICIES)
def test_with_a_prefix_cache(
    lab: Any, policy: str, num_blocks: int, prefix_tokens: int, asynchronous: bool
) -> None:
    """Hits, evictions and the hits of resumed requests on their own old blocks agree too."""
    theirs, sim = caching(lab, policy, 5, num_blocks=num_blocks, asynchronous=asynchronous)
    calls = sharing(Workload(rate_rps=8.0).calls(5), prefix_tokens)
    assert_same(theirs, sim, theirs.run(calls), sim.run(calls))
    computed = sum(sum(tokens.values()) for _, tokens in sim.schedule)
    assert computed < sum(c.num_prompt_tokens + c.num_output_tokens for c in calls)


CHAINS: dict[str, tuple[int, dict[str, int]]] = {
    # Tokens an id stands for, and the cache.
    "as large as blocks": (16, {"num_blocks": 2000}),
    "not a multiple": (24, {"num_blocks": 2000}),
    "many to a block": (5, {"num_blocks": 2000}),
    "larger than blocks": (100, {"num_blocks": 2000}),
    "pressed": (24, {"num_blocks": 45}),
    "pressed, tiny blocks": (7, {"num_blocks": 210, "block_size": 3}),
}
"""Workloads of chains: sizes that fit blocks and that do not, room and pressure."""


def chained(calls: list[VirtualCall], hash_tokens: int, seed: int) -> list[VirtualCall]:
    """Give calls chains that part at random depths; one in three repeats an earlier prompt."""
    rng = np.random.default_rng([seed, hash_tokens])
    made: list[VirtualCall] = []
    for i, call in enumerate(calls):
        if i % 3 == 2:
            ids, length = made[-2].hash_ids, made[-2].num_prompt_tokens
        else:
            ids = tuple(
                int(j) for j in rng.integers(0, 2, 1 + int(rng.integers(300)) // hash_tokens)
            )
            length = len(ids) * hash_tokens + int(rng.choice([-2, 0, 1, 30]))
        made.append(replace(call, num_prompt_tokens=length, hash_ids=ids, hash_tokens=hash_tokens))
    return made


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("policy", ["fcfs", "headway"])
def test_with_chains_in_the_cache(lab: Any, policy: str, name: str, asynchronous: bool) -> None:
    """Nested prefixes of many lengths are found alike, also under pressure, and by the resumed."""
    hash_tokens, shape = CHAINS[name]
    theirs, sim = caching(lab, policy, 6, **shape, asynchronous=asynchronous)
    calls = chained(Workload(num=40, rate_rps=8.0).calls(6), hash_tokens, 6)
    found = cached_tokens(theirs)
    assert_same(theirs, sim, theirs.run(calls), sim.run(calls))
    assert len(set(found.values()) - {0}) >= 3, "few lengths of hits were covered"
    if name.startswith("pressed"):
        assert sim.num_preemptions["recompute"] >= 3


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize(("name", "num_blocks"), [("turns", 500), ("agents", 3000)])
def test_with_sessions(lab: Any, name: str, num_blocks: int, asynchronous: bool) -> None:
    """The named workloads of sessions are served alike, with room for some of them only."""
    shape = {"num_blocks": num_blocks, "max_num_batched_tokens": 2048}
    theirs, sim = caching(lab, "headway", 7, named.BOOK, **shape, asynchronous=asynchronous)
    calls, _ = calls_of(named.make(name, 40, 1.0, 7), named.BOOK)
    found = cached_tokens(theirs)
    assert_same(theirs, sim, theirs.run(calls), sim.run(calls))
    assert len(set(found.values()) - {0}) >= 8


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_asked_while_it_is_read(lab: Any, asynchronous: bool) -> None:
    """Claims about a document in progress let it go on, and compute what is their own only."""
    theirs, sim = caching(lab, "headway", 8, num_blocks=2000, asynchronous=asynchronous)
    read = {"hash_ids": ("document",), "hash_tokens": 100_000}
    calls = [VirtualCall("a", 0.0, 3000, 1, {}, **read)]
    asked = {"slo_ttft_ms": 60_000}
    calls += [VirtualCall(f"b{i}", 0.05 + i / 10, 3100 + i, 3, asked, **read) for i in range(4)]
    assert_same(theirs, sim, theirs.run(calls), sim.run(calls))
    computed = sum(sum(tokens.values()) for _, tokens in sim.schedule)
    assert computed < 3000 + 4 * 150


def cached_tokens(run: Any) -> dict[str, int]:
    """Return a table that fills with what vLLM's cache gave each request when it first began."""
    found: dict[str, int] = {}
    schedule = run.scheduler.schedule

    def watched(*args: Any, **kwargs: Any) -> Any:
        output = schedule(*args, **kwargs)
        found.update({one.req_id: one.num_computed_tokens for one in output.scheduled_new_reqs})
        return output

    run.scheduler.schedule = watched
    return found


@pytest.mark.parametrize("asynchronous", [False, True], ids=["sync", "async"])
def test_a_mistaken_promise_is_answered_alike(lab: Any, asynchronous: bool) -> None:
    """A bad ``slo_*`` field gets the same sentence from both, and no token."""
    workload = Workload(num=8, promised=({}, MISTAKES))
    theirs, sim, served, simulated = pair(lab, workload, "slack", 2, asynchronous=asynchronous)
    assert_same(theirs, sim, served, simulated)
    answers = [o.stop_reason for o in simulated.values() if o.stop_reason is not None]
    assert answers
    assert all(answer.startswith("headway:invalid:slo_ttft_ms must be") for answer in answers)
