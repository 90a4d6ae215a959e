"""CacheOPT's slack beside a slow twin that computes the prompts one after another."""

from __future__ import annotations

import pytest
from drafts import draft_of
from hypothesis import given, settings
from hypothesis import strategies as st

from headway.latency.online import OnlineModel
from headway.papers.cacheopt.critical import PROBE_TOKENS, Critical
from headway.policy.draft import Draft
from headway.policy.live_requests import LiveRequests
from headway.policy.view import EngineView
from headway.request import Request, State
from headway.slo import NO_PROMISE, Slo

NOW_S = 10.0
ENGINE_TOKENS = 150

prompt = st.tuples(
    st.integers(1, 400),  # Tokens.
    st.integers(0, 40).map(lambda tenths: NOW_S + tenths / 10),  # Due at.
    st.sampled_from(["waits", "waits", "in progress", "no promise"]),
    st.integers(0, 100),  # Percent computed, of a prompt in progress.
)


def begin(live: LiveRequests, request: Request) -> None:
    live.unqueue(request)
    request.move(State.RUNNING, 9.0, "started")
    live.start_prefill(request)


def scene(prompts: list[tuple[int, float, str, int]], num_decodes: int) -> Draft:
    """Return a plan in the making with these prompts, and streams beside them."""
    live = LiveRequests()
    for i in range(num_decodes):
        stream = Request(f"s{i}", NO_PROMISE, 9.0, 50, 500)
        live.arrive(stream)
        begin(live, stream)
        stream.num_computed_tokens, stream.num_output_tokens = 50, 1
        stream.first_token_at_s = stream.last_token_at_s = NOW_S
        live.start_decode(stream)
    for i, (num_tokens, due_s, how, percent) in enumerate(prompts):
        slo = NO_PROMISE if how == "no promise" else Slo(ttft_s=1.0)
        request = Request(f"p{i}", slo, 9.0, num_tokens, 500)
        request.due_at_s = due_s
        live.arrive(request)
        if how == "in progress":
            begin(live, request)
            request.num_computed_tokens = (num_tokens - 1) * percent // 100
    view = EngineView(1000, 900, 16, 64, ENGINE_TOKENS, 0)
    return draft_of(live, view, NOW_S, max_step_s=0.1)


def slack_twin(draft: Draft, request: Request, budget: int | None) -> float:
    """Return the slack by filling step after step with whatever is due first."""
    latency: OnlineModel = draft.given.latency  # type: ignore[assignment]
    step_s = latency.predict_s(draft.shape)
    token_s = (latency.predict_s(draft.shape.with_chunk(PROBE_TOKENS, 0)) - step_s) / PROBE_TOKENS
    room = min(budget or ENGINE_TOKENS, ENGINE_TOKENS) - draft.shape.num_decodes
    left = {
        r.request_id: r.num_prompt_tokens - r.num_computed_tokens
        for r in draft.given.live.requests.values()
        if r.has_claim and r.first_token_at_s is None
    }
    took_s = 0.0
    while left[request.request_id]:
        took_s += step_s
        for _ in range(max(room, 1)):
            todo = [draft.given.live.requests[name] for name, num in left.items() if num]
            if not left[request.request_id]:
                break
            first = min(todo, key=lambda r: (r.due_at_s, r.order))
            left[first.request_id] -= 1
            took_s += token_s
    return request.due_at_s - NOW_S - took_s


@given(
    st.lists(prompt, min_size=1, max_size=6),
    st.integers(0, 12),
    st.sampled_from([None, 10, 64, 512]),
)
@settings(max_examples=40)
def test_the_slack_is_what_computing_in_order_leaves(
    prompts: list[tuple[int, float, str, int]], num_decodes: int, budget: int | None
) -> None:
    """Prompts due before, and every step that they and the own prompt take, are counted."""
    draft = scene(prompts, num_decodes)
    critical = Critical(counts_queue=True, budget_tokens=budget)
    critical.begin(draft)
    for i, (_, _, how, _) in enumerate(prompts):
        if how != "no promise":
            request = draft.given.live.requests[f"p{i}"]
            expected = slack_twin(draft, request, budget)
            assert critical.slack_s(draft, request) == pytest.approx(expected, abs=1e-6)
