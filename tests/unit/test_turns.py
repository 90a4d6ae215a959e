"""Requests without a promise have their turn, beside those that have one and in light load."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from drafts import draft_of

from headway import registry
from headway.engines.sim.run import SimRun
from headway.engines.virtual import VirtualCall, VirtualEngine
from headway.latency import profile as profiles
from headway.latency.fixed import FixedModel
from headway.latency.truth import Truth
from headway.policy.events import Arrived
from headway.policy.live_requests import LiveRequests
from headway.policy.preempt import BestEffortFirst
from headway.policy.prioritize import ByDeadline
from headway.policy.tenants import Tenants
from headway.policy.view import EngineView
from headway.request import Request
from headway.slo import NO_PROMISE, STAMP, Slo, SloBook
from headway.workloads import named
from headway.workloads.schema import slo_of

VIEW = EngineView(2000, 2000, 16, 256, 2048)
CHAT = Slo(ttft_s=1.0, tbt_s=0.1, class_name="chat")
LAST = replace(NO_PROMISE, share=0.0)
WARM = FixedModel((0.005, 0.0, 2e-5, 0.0, 0.0, 0.0, 0.0))


def table(*rows: tuple[str, Slo, float]) -> LiveRequests:
    """Return waiting requests: name, promise, and when it is their turn or their token due."""
    live = LiveRequests()
    for name, slo, at_s in rows:
        request = Request(name, slo, 0.0, 100, 20)
        if slo.is_promise:
            request.due_at_s = at_s
        else:
            request.turn_at_s = at_s
        live.arrive(request)
    return live


def order(live: LiveRequests, now_s: float, heavy: Sequence[str] = ()) -> list[str]:
    """Return who comes before whom in a plan."""
    tenants = Tenants()
    tenants.heavy = frozenset(heavy)
    draft = draft_of(live, VIEW, now_s, tenants=tenants, latency=WARM)
    return [request.request_id for request in ByDeadline().candidates(draft)]


def test_whose_turn_it_is_goes_before_claims_that_came_after() -> None:
    """Not before its turn, nor before a claim that came earlier and is due before the others."""
    live = table(
        ("early", CHAT, 2.0),
        ("first", NO_PROMISE, 1.0),
        ("claim", CHAT, 5.0),
        ("second", NO_PROMISE, 3.0),
        ("patient", CHAT, 9.0),
    )
    assert order(live, 0.5) == ["early", "claim", "patient", "first", "second"]
    assert order(live, 1.5) == ["early", "first", "claim", "patient", "second"]
    assert order(live, 4.0) == ["early", "first", "claim", "second", "patient"]


def test_an_early_claim_that_is_due_late_holds_nobody_up() -> None:
    """The claims that came after are due before it, and behind those whose turn it is."""
    live = table(("patient", CHAT, 9.0), ("mine", NO_PROMISE, 1.0), ("hasty", CHAT, 3.0))
    assert order(live, 2.0) == ["mine", "hasty", "patient"]


def test_a_tenant_who_gives_way_has_no_turn() -> None:
    """What it asks without a promise waits for what the others leave."""
    theirs = replace(NO_PROMISE, tenant="flood")
    live = table(("theirs", theirs, 1.0), ("other", NO_PROMISE, 2.0), ("claim", CHAT, 5.0))
    assert order(live, 4.0, ["flood"]) == ["other", "claim", "theirs"]


def test_who_has_no_turn_holds_up_nobody_s() -> None:
    """A flood's requests came first, and wait for what is left; the others' turns come as ever."""
    theirs = replace(NO_PROMISE, tenant="flood")
    live = table(("theirs", theirs, math.inf), ("mine", NO_PROMISE, 1.0), ("claim", CHAT, 5.0))
    assert order(live, 2.0) == ["mine", "claim", "theirs"]
    live.validate()


def test_last_is_last() -> None:
    """Where the operator wants it so, and nobody is given a turn."""
    core = registry.build("headway")
    core.plan(VIEW, 0.0)
    core.observe(Arrived(0.0, "r", 0.0, 100, 20, LAST))
    assert core.live.requests["r"].turn_at_s == math.inf
    core.observe(Arrived(0.0, "s", 0.0, 100, 20, NO_PROMISE))
    assert core.live.requests["s"].turn_at_s < math.inf


def test_a_claim_takes_no_kv_from_one_whose_turn_it_was() -> None:
    """It would have to compute its prompt again, and be before the claims once more."""
    live = table(("mine", NO_PROMISE, 1.0), ("lost", replace(NO_PROMISE, share=0.0), math.inf))
    for request in list(live.requests.values()):
        live.unqueue(request)
        live.start_prefill(request)
    claim = Request("claim", CHAT, 0.0, 100, 20)
    draft = draft_of(live, VIEW, 2.0, latency=WARM)
    victims = [r.request_id for r in BestEffortFirst().for_claim(draft, claim)]
    assert victims == ["lost"]


def test_a_cold_server_gives_nobody_a_turn() -> None:
    """By a guess of the step time it would be anybody's at once, before all promises."""
    live = table(("mine", NO_PROMISE, 0.0), ("claim", CHAT, 5.0))
    cold = draft_of(live, VIEW, 4.0)
    assert [r.request_id for r in ByDeadline().candidates(cold)] == ["claim", "mine"]
    assert order(live, 4.0) == ["mine", "claim"]


def first_tokens_s(slos: Sequence[Slo], rate_rps: float, kv_tokens: int) -> tuple[float, float]:
    """Serve a mix in which every other request has no promise; return their p50 and p95."""
    engine = VirtualEngine(kv_tokens // 16, max_num_batched_tokens=8192, max_num_seqs=1024)
    truth = Truth(profiles.load("llama-3.1-8b@h100"), noise=0.05, seed=1)
    run = SimRun(engine, truth, registry.build("headway"), book=SloBook.empty())
    calls = []
    for i, r in enumerate(named.make("mixed", 300, rate_rps, 3)):
        slo = slos[i % 2] if slos[i % 2].class_name != "of its class" else slo_of(r, named.BOOK)
        sizes = (r.arrived_at_s, r.num_prompt_tokens, r.num_output_tokens)
        calls.append(VirtualCall(r.id, *sizes, {STAMP: slo.stamp()}, 4096))
    outcomes = list(run.run(calls).values())[::2]
    spans = [o.emitted_at_s[0] - o.call.arrived_at_s for o in outcomes]
    return float(np.quantile(spans, 0.5)), float(np.quantile(spans, 0.95))


@pytest.mark.parametrize(("rate_rps", "kv_tokens"), [(30.0, 400_000), (14.0, 41_408)])
def test_in_overload_they_wait_a_fraction_of_what_the_last_do(
    rate_rps: float, kv_tokens: int
) -> None:
    """Beside as many promises, first tokens come in less than half the time."""
    promised = Slo(ttft_s=1.0, class_name="of its class")
    fair = first_tokens_s((NO_PROMISE, promised), rate_rps, kv_tokens)
    last = first_tokens_s((LAST, promised), rate_rps, kv_tokens)
    assert fair[0] < 0.6 * last[0]
    assert fair[1] < 0.8 * last[1]
