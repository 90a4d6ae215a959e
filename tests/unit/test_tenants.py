"""Who gives way when promises cannot all be kept: whoever has had the most lately."""

from __future__ import annotations

import math
import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
from drafts import draft_of

from headway import registry
from headway.engines.sim.run import SimRun
from headway.engines.virtual import VirtualCall, VirtualEngine
from headway.latency import profile as profiles
from headway.latency.truth import Truth
from headway.policy.events import Arrived, Finished, StepDone, StepScheduled
from headway.policy.live_requests import LiveRequests
from headway.policy.plan import SharedPrices
from headway.policy.prioritize import ByDeadline
from headway.policy.scheduler import Scheduler
from headway.policy.tenants import Tenants
from headway.policy.view import EngineView
from headway.request import Request
from headway.slo import NO_PROMISE, STAMP, Slo, SloBook
from headway.study.virtual_run import record_of
from headway.workloads import named
from headway.workloads.schema import slo_of

LONG = os.environ.get("HEADWAY_LONG") == "1"
VIEW = EngineView(2000, 2000, 16, 256, 2048)
CHAT = Slo(ttft_s=1.0, tbt_s=0.1, class_name="chat")


def of(tenant: str, slo: Slo = CHAT, share: float = 1.0) -> Slo:
    """Return the same promise, paid by a tenant."""
    return replace(slo, tenant=tenant, share=share)


def used_core(uses: Mapping[str, int], shares: Mapping[str, float] | None = None) -> Scheduler:
    """Return a core whose tenants had so many prompts of 2,000 tokens, and another one waits."""
    core = registry.build("headway")
    now_s = 0.0
    for tenant in uses:
        slo = of(tenant, share=(shares or {}).get(tenant, 1.0))
        core.observe(Arrived(now_s, f"{tenant}0", now_s, 2000, 400, slo))
    for tenant, num in uses.items():
        for i in range(1, num + 1):
            slo = of(tenant, share=(shares or {}).get(tenant, 1.0))
            name = f"{tenant}{i}"
            core.observe(Arrived(now_s, name, now_s, 2000, 400, slo))
            core.observe(StepScheduled(now_s, {name: 2000}, {name: 0}))
            core.observe(StepDone(now_s + 0.1, {name: 1}))
            core.observe(Finished(now_s + 0.1, name, "stopped"))
            now_s += 0.1
    core.validate()
    return core


def heavy(core: Scheduler, now_s: float = 2.0) -> frozenset[str]:
    """Return who gives way in the next plan."""
    core.plan(VIEW, now_s)
    return core.known.tenants.heavy


def test_whoever_had_the_most_gives_way() -> None:
    """Half as much again as another; with as much nobody does, nor does a tenant alone."""
    assert heavy(used_core({"a": 6, "b": 1})) == {"a"}
    assert heavy(used_core({"a": 6, "b": 6, "c": 1})) == {"a", "b"}
    assert heavy(used_core({"a": 6, "b": 5})) == frozenset()
    assert heavy(used_core({"a": 6})) == frozenset()


def test_a_larger_share_gives_way_later() -> None:
    """Three times another's use is no more than a share of three."""
    assert heavy(used_core({"a": 6, "b": 2})) == {"a"}
    assert heavy(used_core({"a": 6, "b": 2}, {"a": 3.0})) == frozenset()
    assert heavy(used_core({"a": 6, "b": 2}, {"b": 0.1})) == {"b"}


def test_what_was_used_is_forgotten() -> None:
    """Five minutes later nobody is held to a flood that is over."""
    tenants = used_core({"a": 6, "b": 1}).known.tenants
    before_s = tenants.used("a", 2.0)
    assert before_s > 0.1
    assert tenants.used("a", 302.0) == pytest.approx(before_s * math.exp(-10))


def test_the_log_says_who_gives_way() -> None:
    """In the prices of each plan; with one tenant a plan's line is as it was."""
    prices = used_core({"a": 6, "b": 1}).plan(VIEW, 2.0).prices
    assert isinstance(prices, SharedPrices)
    assert prices.gives_way == ("a",)
    alone = used_core({"a": 6}).plan(VIEW, 2.0).prices
    assert alone is not None
    assert not isinstance(alone, SharedPrices)


def table(*rows: tuple[str, Slo, float]) -> LiveRequests:
    """Return waiting requests, by name, promise and due time."""
    live = LiveRequests()
    for name, slo, due_s in rows:
        request = Request(name, slo, 0.0, 100, 20)
        request.due_at_s = due_s
        live.arrive(request)
    return live


def test_who_gives_way_comes_after_the_others_claims_and_best_effort() -> None:
    """Though due before; both queues, each in its own order."""
    live = table(
        ("a1", of("a"), 10.0),
        ("b1", of("b"), 20.0),
        ("a2", of("a", NO_PROMISE), 30.0),
        ("b2", of("b", NO_PROMISE), 30.0),
    )
    tenants = Tenants()
    tenants.heavy = frozenset({"a"})
    draft = draft_of(live, VIEW, 1.0, tenants=tenants)
    order = [request.request_id for request in ByDeadline().candidates(draft)]
    assert order == ["b1", "a1", "b2", "a2"]


def test_a_hundred_thousand_tenants_take_no_more_memory_than_those_of_late() -> None:
    """Accounts end when their use has faded; the live ones are all there is to look at."""
    tenants, most = Tenants(), 0
    for i in range(100_000):
        request = Request(f"r{i}", of(f"t{i}"), 0.01 * i, 10, 10)
        tenants.arrived(request, 0.01 * i)
        tenants.left(request)
        most = max(most, len(tenants._accounts))
    assert most <= 64
    tenants.validate({})


# -- floods ----------------------------------------------------------------------------------


def tricks(slo: Slo, kind: str) -> Slo:
    """Return a promise as a tenant makes it who wants more than its share."""
    return {
        "many": slo,
        "weighty": replace(slo, weight=1e6),
        "hasty": replace(slo, ttft_s=0.05),
        "tight": replace(slo, tbt_s=0.03),
        "aimed": replace(slo, class_name="gold", target=0.99),
        "none": Slo(tenant=slo.tenant),
        "whole": Slo(jct_s=3.0, class_name="job", tenant=slo.tenant),
    }[kind]


def load(
    quiet_rps: float, flood_rps: float, seconds: float, seed: int
) -> list[tuple[VirtualCall, Slo]]:
    """Return what four quiet tenants and a flooder ask for, the flooder with drawn tricks."""
    drawn = random.Random(seed)
    kinds = drawn.sample(["many", "weighty", "hasty", "tight", "aimed", "none", "whole"], 2)
    rates = {f"quiet{i}": quiet_rps for i in range(4)}
    calls = []
    for i, (tenant, rate) in enumerate({**rates, "flood": flood_rps}.items()):
        for r in named.make("mixed", max(int(rate * seconds), 2), rate, seed * 10 + i):
            slo = of(tenant, slo_of(r, named.BOOK))
            if tenant == "flood":
                slo = tricks(slo, drawn.choice(kinds))
            name, xargs = f"{tenant}-{r.id}", {STAMP: slo.stamp()}
            sizes = (r.arrived_at_s, r.num_prompt_tokens, r.num_output_tokens)
            calls.append((VirtualCall(name, *sizes, xargs, 4096), slo))
    return sorted(calls, key=lambda pair: pair[0].arrived_at_s)


def num_kept(calls: Sequence[tuple[VirtualCall, Slo]], kv_tokens: int) -> int:
    """Serve them on a simulated H100, and return how many promises of the quiet were kept."""
    engine = VirtualEngine(kv_tokens // 16, max_num_batched_tokens=8192, max_num_seqs=1024)
    truth = Truth(profiles.load("llama-3.1-8b@h100"), noise=0.05, seed=1)
    run = SimRun(engine, truth, registry.build("headway"), book=SloBook.empty())
    slos = {call.request_id: slo for call, slo in calls}
    outcomes = run.run([call for call, _ in calls])
    assert all(outcome.finish_reason for outcome in outcomes.values()), "nobody is lost"
    records = [record_of(outcome, slos) for outcome in outcomes.values()]
    return sum(r.attained for r in records if r.slo.tenant != "flood")


@pytest.mark.parametrize("seed", range(60 if LONG else 4))
def test_no_flood_takes_what_the_others_could_keep(seed: int) -> None:
    """Whatever it promises itself and weighs: the quiet keep nine in ten of what they do alone."""
    kv_tokens, capacity_rps = ((400_000, 20.0), (41_408, 11.0))[seed % 2]
    calls = load(0.15 * capacity_rps, 4 * capacity_rps, 8.0, seed)
    alone = [pair for pair in calls if pair[1].tenant != "flood"]
    assert num_kept(calls, kv_tokens) >= 0.9 * num_kept(alone, kv_tokens)
