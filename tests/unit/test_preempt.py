"""Who gives KV back."""

from __future__ import annotations

from drafts import draft_of

from headway.kit.simple import Youngest
from headway.policy.draft import Draft
from headway.policy.live_requests import LiveRequests
from headway.policy.preempt import BestEffortFirst
from headway.policy.view import EngineView
from headway.request import Request, State
from headway.slo import NO_PROMISE, Slo


def context(now_s: float = 100.0, max_wait_s: float = 300.0) -> Draft:
    view = EngineView(100, 100, 16, 64, 512)
    return draft_of(LiveRequests(), view, now_s, max_wait_s=max_wait_s)


def runs(draft: Draft, name: str, slo: Slo, *, decodes: bool, at_s: float = 99.0) -> Request:
    request = Request(name, slo, at_s, 50, 100)
    draft.given.live.arrive(request)
    draft.given.live.unqueue(request)
    request.move(State.RUNNING, at_s, "started")
    draft.given.live.start_prefill(request)
    if decodes:
        request.num_computed_tokens = 50
        request.num_output_tokens = 3
        request.first_token_at_s = request.last_token_at_s = 99.9
        draft.given.live.start_decode(request)
    return request


def names(victims: object) -> list[str]:
    return [r.request_id for r in victims]  # type: ignore[attr-defined]


def test_stock_takes_the_last_started() -> None:
    """As vLLM does, and nobody yields to a newcomer."""
    draft = context()
    for name in "abc":
        runs(draft, name, NO_PROMISE, decodes=True)
    claim = Request("new", Slo(ttft_s=1.0), 100.0, 10, 10)
    assert names(Youngest().for_running(draft)) == ["c", "b", "a"]
    assert names(Youngest().for_claim(draft, claim)) == []


def test_best_effort_goes_before_promises() -> None:
    """First who has no live promise, youngest first; then claims without a token; then gaps."""
    draft = context()
    runs(draft, "tight", Slo(tbt_s=0.05), decodes=True)
    runs(draft, "loose", Slo(tbt_s=0.5), decodes=True)
    runs(draft, "bulk", NO_PROMISE, decodes=True)
    runs(draft, "bulk2", NO_PROMISE, decodes=False)
    runs(draft, "starting", Slo(ttft_s=1.0, tbt_s=0.05), decodes=False)
    order = names(BestEffortFirst().for_running(draft))
    assert order == ["bulk2", "bulk", "starting", "loose", "tight"]


def test_a_claim_is_never_paid_with_a_claim() -> None:
    """Only requests without a live promise, or set aside, make room for a newcomer."""
    draft = context()
    runs(draft, "claim", Slo(tbt_s=0.05), decodes=True)
    runs(draft, "aside", Slo(tbt_s=0.05, ttft_s=1.0), decodes=False)
    runs(draft, "bulk", NO_PROMISE, decodes=True)
    draft.set_aside = {"aside"}
    newcomer = Request("new", Slo(ttft_s=1.0), 100.0, 10, 10)
    assert names(BestEffortFirst().for_claim(draft, newcomer)) == ["bulk", "aside"]


def test_who_has_been_here_too_long_is_spared() -> None:
    """Best effort that arrived nine tenths of the longest wait ago may finish."""
    draft = context(now_s=400.0)
    runs(draft, "old", NO_PROMISE, decodes=True, at_s=100.0)
    runs(draft, "new", NO_PROMISE, decodes=True, at_s=399.0)
    newcomer = Request("claim", Slo(ttft_s=1.0), 400.0, 10, 10)
    assert names(BestEffortFirst().for_claim(draft, newcomer)) == ["new"]
    assert names(BestEffortFirst().for_running(draft))[0] == "new"
