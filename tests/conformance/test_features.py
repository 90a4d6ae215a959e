"""Engine features that people leave on: each row of what stock serves, Headway serves as soon."""

from __future__ import annotations

import logging
from typing import Any

import pytest

pytest.importorskip("vllm", reason="vLLM is not installed")

from fake_connector import TRANSFER
from feature_lab import Extra, FeatureRun

from headway.engines.virtual import Outcome, VirtualCall
from headway.latency import profile
from headway.latency.truth import Truth

TRUTH = Truth(profile.load("llama-3.1-8b@h100"))

STREAM = VirtualCall("stream", 0.0, 40, 400)
"""Runs beside everything else, so that no server is idle."""

PROMISED = {"slo_ttft_ms": 400.0, "slo_tbt_ms": 100.0}


def both(
    lab: Any, calls: list[VirtualCall], extras: dict[str, Extra] | None = None, **engine: Any
) -> tuple[dict[str, Outcome], dict[str, Outcome], Any]:
    """Serve *calls* on stock vLLM and on Headway; return both outcomes and Headway's scheduler."""
    runs = []
    for headway in (None, {"policy": "headway"}):
        run = FeatureRun(lab.Engine(**engine, headway=headway), TRUTH, extras or {})
        run.run(calls, 30_000)
        runs.append(run)
    stock, ours = runs
    for name, theirs in stock.outcomes.items():
        mine = ours.outcomes[name]
        assert mine.finish_reason == theirs.finish_reason, (name, mine, theirs)
        assert len(mine.emitted_at_s) == len(theirs.emitted_at_s), name
    lab.is_clean(ours)
    return stock.outcomes, ours.outcomes, ours.scheduler


def ttft_s(outcome: Outcome) -> float:
    return outcome.emitted_at_s[0] - outcome.call.arrived_at_s


def chats(num: int, every_s: float, **kwargs: Any) -> list[VirtualCall]:
    return [
        VirtualCall(f"chat {i}", 0.05 + i * every_s, 60, 20, PROMISED, **kwargs) for i in range(num)
    ]


def assert_as_soon(
    stock: dict[str, Outcome], ours: dict[str, Outcome], names: list[str], share: float = 1.25
) -> None:
    """No first token is later than stock's by over a quarter and a step of ten milliseconds."""
    late = {
        name: (ttft_s(ours[name]), ttft_s(stock[name]))
        for name in names
        if ttft_s(ours[name]) > share * ttft_s(stock[name]) + 0.010
    }
    assert not late


GROUPS = {
    "sliding": ("full", *["sliding:1024"] * 5),
    "two full": ("full", "full"),
    "local": ("full", "local:512", "local:512"),
    "states": ("full", "state", "state", "state"),
    "only sliding": ("sliding:512",),
}


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
def test_groups_share_the_blocks(lab: Any, groups: tuple[str, ...], asynchronous: bool) -> None:
    """A prompt that fits is served, whatever share of the blocks another count would give it."""
    calls = [STREAM, *(VirtualCall(f"long {i}", 0.1 + i, 9_000, 30, PROMISED) for i in range(4))]
    stock, ours, scheduler = both(
        lab, calls, groups=groups, num_blocks=2_700, max_model_len=16_384, asynchronous=asynchronous
    )
    assert all(o.emitted_at_s for o in stock.values())
    assert_as_soon(stock, ours, [c.request_id for c in calls])
    assert scheduler.headway_aside.num_steps == 0


def test_states_alone_fill_the_cache_by_requests(lab: Any) -> None:
    """A model without attention keeps a block a request: as many run as there are blocks."""
    calls = [VirtualCall(f"s{i}", 0.01 * i, 500, 40, PROMISED) for i in range(60)]
    _, ours, scheduler = both(
        lab, calls, groups=("state",), block_size=16_384, max_model_len=16_384, num_blocks=31
    )
    assert all(ttft_s(o) <= 0.4 for o in ours.values())
    assert scheduler.headway_aside.num_steps == 0


def test_aligned_states_do_not_stop_a_prompt(lab: Any) -> None:
    """Chunks end where a state is kept: one that would end before the first is not cut to 0."""
    calls = [VirtualCall(f"s{i}", 0.0, 50, 300, {"slo_tbt_ms": 12.0}) for i in range(20)]
    calls += [VirtualCall(f"long {i}", 0.2 + 0.4 * i, 3_000 + 77 * i, 5) for i in range(4)]
    _, ours, scheduler = both(
        lab,
        calls,
        groups=("full", "aligned-state"),
        block_size=544,
        prefix_caching=True,
        num_blocks=200,
        max_model_len=16_384,
    )
    assert max(ttft_s(o) for o in ours.values()) < 5.0
    assert scheduler.headway_aside.num_steps == 0


@pytest.mark.parametrize("asynchronous", [False, True])
def test_kv_that_is_loading_is_charged_once(lab: Any, asynchronous: bool) -> None:
    """A prompt that needs most of the cache, loaded from elsewhere, is served as soon."""
    calls = [VirtualCall("remote", 0.1, 9_600, 20, {"slo_ttft_ms": 1_000.0}), *chats(8, 0.03)]
    extras = {"remote": Extra(remote_tokens=9_600, load_s=0.3)}
    stock, ours, scheduler = both(
        lab, calls, extras, transfer=TRANSFER, num_blocks=1_000, asynchronous=asynchronous
    )
    assert_as_soon(stock, ours, [c.request_id for c in calls])
    assert scheduler.headway_aside.num_steps == 0


@pytest.mark.parametrize("overload", ["demote", "refuse"])
def test_a_prompt_that_lies_elsewhere_is_not_hopeless(lab: Any, overload: str) -> None:
    """Its promise allows for the rest of the prompt, not for computing all of it."""
    calls = [STREAM, VirtualCall("remote", 0.5, 60_000, 5, {"slo_ttft_ms": 150.0})]
    engine = lab.Engine(
        transfer=TRANSFER, num_blocks=9_000, headway={"policy": "headway", "overload": overload}
    )
    run = FeatureRun(engine, TRUTH, {"remote": Extra(remote_tokens=59_200, load_s=0.05)})
    remote = run.run(calls)["remote"]
    assert remote.finish_reason == "stop"
    assert ttft_s(remote) <= 0.150
    assert "cannot start: its KV is being loaded" not in str(remote.stop_reason)


def test_a_connector_that_still_looks_blocks_nobody(lab: Any) -> None:
    """Who is not known yet waits; the others go on."""
    calls = [STREAM, VirtualCall("remote", 0.1, 4_000, 5), *chats(8, 0.01)]
    extras = {"remote": Extra(remote_tokens=3_200, load_s=0.1, num_unknown=20)}
    stock, ours, scheduler = both(lab, calls, extras, transfer=TRANSFER)
    assert_as_soon(stock, ours, [c.request_id for c in calls])
    assert scheduler.headway_aside.num_steps == 0


@pytest.mark.parametrize("asynchronous", [False, True])
def test_no_slot_for_an_adapter_blocks_nobody_else(lab: Any, asynchronous: bool) -> None:
    """Chats behind requests whose adapter has no slot are answered as soon."""
    calls = [
        VirtualCall("a", 0.0, 2_000, 300),
        VirtualCall("b", 0.0, 2_000, 300),
        *(VirtualCall(f"third {i}", 0.05, 3_000, 10, PROMISED) for i in range(3)),
        *chats(8, 0.02),
    ]
    extras = {"a": Extra(adapter=1), "b": Extra(adapter=2)}
    extras |= {f"third {i}": Extra(adapter=3 + i % 2) for i in range(3)}
    stock, ours, scheduler = both(lab, calls, extras, max_loras=2, asynchronous=asynchronous)
    assert_as_soon(stock, ours, [c.request_id for c in calls])
    assert scheduler.headway_aside.num_steps == 0


def test_adapters_of_those_who_sit_out_hold_their_slots(lab: Any) -> None:
    """A stream without a promised gap is held; nobody with a third adapter takes its slot."""
    calls = [VirtualCall(f"loose {i}", 0.0, 50, 200) for i in range(30)]
    calls += [VirtualCall(f"tight {i}", 0.0, 50, 200, {"slo_tbt_ms": 9.0}) for i in range(6)]
    calls += [VirtualCall(f"new {i}", 0.3 + 0.05 * i, 500, 20, PROMISED) for i in range(12)]
    extras = {c.request_id: Extra(adapter=1 + i % 5) for i, c in enumerate(calls)}
    both(lab, calls, extras, max_loras=2)


def test_the_adapter_of_a_prompt_that_sits_out_keeps_its_slot(lab: Any) -> None:
    """Two with other adapters come while it sits out: one waits, or the next step has three."""
    calls = [
        VirtualCall("long", 0.0, 30_000, 20),
        VirtualCall("stream", 0.0, 50, 400, {"slo_tbt_ms": 12.0}),
    ]
    calls += [VirtualCall(f"new {i}", 0.1 + 0.05 * (i // 2), 500, 20, PROMISED) for i in range(40)]
    extras = {"long": Extra(adapter=1)} | {f"new {i}": Extra(adapter=2 + i % 2) for i in range(40)}
    _, _, scheduler = both(lab, calls, extras, max_loras=2, num_blocks=6_000)
    assert scheduler.headway_aside.num_steps == 0


def test_a_grammar_that_is_compiled_blocks_nobody(lab: Any) -> None:
    """Chats behind it are answered as soon, and it is when it is ready."""
    calls = [STREAM, VirtualCall("json", 0.1, 4_000, 5, {"slo_ttft_ms": 900.0}), *chats(8, 0.02)]
    stock, ours, scheduler = both(lab, calls, {"json": Extra(compile_s=0.5)})
    assert_as_soon(stock, ours, [c.request_id for c in calls])
    assert scheduler.headway_aside.num_steps == 0


@pytest.mark.parametrize("policy_step", [True, False])
def test_prompts_that_may_not_be_cut(lab: Any, policy_step: bool) -> None:
    """Without chunked prefill a prompt is computed at once; nobody waits for a share of a step."""
    calls = [
        VirtualCall(f"s{i}", 0.0, 50, 300, {"slo_tbt_ms": 15.0}) for i in range(8 * policy_step)
    ]
    calls += [VirtualCall(f"long {i}", 0.2 + 0.3 * i, 6_000, 5, PROMISED) for i in range(4)]
    stock, ours, scheduler = both(
        lab,
        calls,
        chunked_prefill=False,
        max_num_batched_tokens=16_384,
        max_model_len=16_384,
        num_blocks=4_000,
    )
    assert_as_soon(stock, ours, [c.request_id for c in calls if c.request_id.startswith("long")])
    assert scheduler.headway_aside.num_steps == 0


@pytest.mark.parametrize("num_drafts", [0, 3])
def test_drafts_take_no_budget_where_there_are_none(lab: Any, num_drafts: int) -> None:
    """Drafted or not, everything is served, and no step has more tokens than were planned for."""
    calls = [VirtualCall(f"s{i}", 0.0, 50, 200, {"slo_tbt_ms": 25.0}) for i in range(16)]
    calls += [VirtualCall(f"long {i}", 0.2 + 0.3 * i, 4_000, 30, PROMISED) for i in range(4)]
    stock, ours, scheduler = both(lab, calls, num_drafts=num_drafts)
    assert_as_soon(stock, ours, [c.request_id for c in calls], 2.0)
    assert scheduler.headway_aside.num_steps == 0


def test_a_plan_that_comes_to_nothing_is_followed_by_a_step_of_stocks(
    lab: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """What the engine refuses for a reason unknown to us is served, and story and log say so."""
    engine = lab.Engine(headway={"policy": "headway"})
    run = FeatureRun(engine, TRUTH, {})
    manager = run.scheduler.kv_cache_manager
    allocate, refused = manager.allocate_slots, []

    def once_refused(request: Any, *args: Any, **kwargs: Any) -> Any:
        if request.request_id == "odd" and not refused:
            refused.append(request.request_id)
            return None
        return allocate(request, *args, **kwargs)

    manager.allocate_slots = once_refused
    run.add(STREAM)
    run.add(VirtualCall("odd", 0.0, 3_000, 3, PROMISED))
    logging.getLogger("vllm.headway").propagate = True
    with caplog.at_level(logging.WARNING, "vllm.headway"):
        while run.outcomes["odd"].finish_reason is None:
            run.step()
            if odd := run.scheduler.headway.live.requests.get("odd"):
                story = odd.tell()
    assert refused
    assert run.scheduler.headway_aside.num_steps == 1
    assert "not started as planned" in story
    assert "stepped aside" in caplog.text
    assert len(run.outcomes["odd"].emitted_at_s) == 3


@pytest.mark.parametrize("groups", [(), ("full",)], ids=["no cache", "cache"])
@pytest.mark.parametrize("overload", ["demote", "refuse"])
def test_prompts_that_become_vectors(lab: Any, groups: tuple[str, ...], overload: str) -> None:
    """A pooling model, with or without a KV cache, is served as stock serves it."""
    calls = [VirtualCall(f"text {i}", 0.01 * i, 300 + 50 * (i % 7), 1) for i in range(40)]
    extras = {call.request_id: Extra(is_pooled=True) for call in calls}
    ends = []
    for headway in (None, {"policy": "headway", "overload": overload}):
        num_blocks = 1_000 if groups else 1
        run = FeatureRun(
            lab.Engine(groups=groups, num_blocks=num_blocks, headway=headway), TRUTH, extras
        )
        outcomes = run.run(calls, 30_000)
        assert {o.finish_reason for o in outcomes.values()} == {"stop"}
        ends.append([o.ended_at_s for o in outcomes.values()])
    assert ends[1] == pytest.approx(ends[0])
    assert run.scheduler.headway_aside.num_steps == 0
