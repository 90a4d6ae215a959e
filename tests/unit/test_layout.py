"""Tokens into blocks, for one group of layers and for several."""

from __future__ import annotations

import numpy as np
import pytest
from drafts import draft_for
from hypothesis import given
from hypothesis import strategies as st

from headway import registry
from headway.engines.attention_kinds import kinds_of, parts_of
from headway.errors import UserError
from headway.kv_layout import KvGroup, KvLayout
from headway.policy.events import Arrived, StepDone, StepScheduled
from headway.policy.kv.forecast import HORIZONS, Forecast, Lifetimes
from headway.policy.view import EngineView
from headway.request import Request
from headway.slo import Slo
from headway.units import blocks_for

CHAT = Slo(ttft_s=1.0, tbt_s=0.1, class_name="chat")

FULL = KvGroup(16)
SLIDING = KvGroup(16, 577, 65)
STATE = KvGroup(9_000, 1, 1)

GEMMA = KvLayout(16, (FULL, *[SLIDING] * 5))
QWEN = KvLayout(544, (KvGroup(544), STATE, STATE, STATE))
WINDOWS = KvLayout(16, (SLIDING,))
PLAIN = KvLayout(16)

groups = st.lists(
    st.tuples(st.sampled_from([16, 32, 544]), st.integers(1, 40), st.integers(0, 40)).map(
        lambda drawn: KvGroup(drawn[0], drawn[1] + drawn[2], drawn[1])
    )
    | st.sampled_from([FULL, KvGroup(32), KvGroup(544)]),
    min_size=1,
    max_size=6,
)


@given(st.integers(0, 5_000), st.integers(0, 300))
def test_one_group_without_a_bound_is_the_plain_case(num_tokens: int, num_blocks: int) -> None:
    """Named or not, a group that keeps every token counts the same."""
    named = KvLayout(16, (FULL,))
    for method in ("blocks", "kept_blocks", "growth", "whole_blocks", "held_tokens"):
        assert getattr(named, method)(num_tokens) == getattr(PLAIN, method)(num_tokens)
    assert named.passing_blocks(num_tokens) == PLAIN.passing_blocks(num_tokens) == 0
    assert named.tokens(num_blocks) == PLAIN.tokens(num_blocks) == 16 * num_blocks
    assert named.room_tokens(num_tokens, num_blocks) == PLAIN.room_tokens(num_tokens, num_blocks)
    usual = named.usual_tokens(np.array([float(num_tokens)]))
    assert usual == pytest.approx(PLAIN.usual_tokens(np.array([float(num_tokens)])))


@given(groups, st.integers(1, 20_000), st.integers(0, 60))
def test_groups_add_up(members: list[KvGroup], num_tokens: int, num_blocks: int) -> None:
    """What a layout counts is the sum over its groups, one by one; room is found by trying."""
    layout = KvLayout(16, tuple(members))
    kept = passing = most = 0
    for size, most_blocks, kept_blocks in members:
        whole = blocks_for(num_tokens, size)
        kept += min(whole, kept_blocks) if kept_blocks else whole
        most += min(whole, most_blocks) if most_blocks else whole
        passing += min(whole, most_blocks - kept_blocks) if kept_blocks else 0
    assert layout.kept_blocks(num_tokens) == kept
    assert layout.blocks(num_tokens) == most
    assert layout.passing_blocks(num_tokens) == passing
    assert layout.growth(num_tokens) <= layout.most_growth
    assert layout.growth(num_tokens) == layout.kept_blocks(num_tokens + 1) - kept
    room = layout.room_tokens(num_tokens, num_blocks)
    assert layout.blocks(num_tokens + room) <= most + num_blocks


@given(groups, st.integers(600, 20_000))
def test_what_is_usual_is_what_is_kept_on_average(members: list[KvGroup], num_tokens: int) -> None:
    """Over all places in a block; where a bound is met it rounds by half a block at most."""
    layout = KvLayout(16, tuple(members))
    around = np.arange(num_tokens, num_tokens + 544, dtype=float)
    kept = np.mean([layout.kept_blocks(int(n)) for n in around])
    a_token = sum(1 / g.block_size_tokens for g in members if g.grows)
    a_token = a_token or sum(1 / g.block_size_tokens for g in members)
    usual = float(np.mean(layout.usual_tokens(around))) * a_token
    assert abs(usual - kept) <= 0.5 * len(members) + 1e-6


def test_a_state_takes_a_block_and_no_share_of_the_tokens() -> None:
    """Three states lie aside: the room for tokens is that of the group that keeps them."""
    assert QWEN.tokens(110) == 110 * 544
    assert QWEN.kept_blocks(544) == 4
    assert QWEN.held_tokens(544) == 4 * 544
    assert [QWEN.growth(n) for n in (543, 544, 1_087, 1_088)] == [0, 1, 0, 1]


def test_a_short_request_fills_every_group_at_once() -> None:
    """Until a window is full each further token takes room in all groups, and then in one."""
    short, long = GEMMA.held_tokens(320), GEMMA.held_tokens(5_120)
    assert short == 6 * 320
    assert long == 5_120 + 5 * 65 * 16
    assert GEMMA.held_tokens(640) - short == 6 * 320
    assert GEMMA.held_tokens(5_440) - long == 320


def test_where_all_groups_are_bounded_a_long_request_holds_no_more() -> None:
    """Its room is what the windows hold, however far it gets."""
    assert WINDOWS.held_tokens(2_000) == WINDOWS.held_tokens(90_000) == 65 * 16
    assert WINDOWS.tokens(650) == 10 * WINDOWS.held_tokens(2_000)


def test_the_forecast_counts_what_groups_hold_then() -> None:
    """A short chat fills its windows as it goes on: each horizon counts the blocks held there."""
    lifetimes = Lifetimes()
    for _ in range(300):
        lifetimes.learn("chat", 5_000)
    forecast = Forecast(lifetimes, GEMMA)
    forecast.add([Request("r", CHAT, 0.0, 300, 20_000)])
    for ahead, mean in zip(HORIZONS, forecast.mean, strict=True):
        if ahead < 4_096:
            assert mean == pytest.approx(
                GEMMA.kept_blocks(300 + int(ahead)) * 16, rel=0.005, abs=6 * 16
            )


@pytest.mark.parametrize(("steps_in_flight", "passing"), [(0, 128), (1, 256), (4, 512)])
def test_a_prompt_starts_with_room_for_what_it_keeps_and_the_steps_under_way(
    steps_in_flight: int, passing: int
) -> None:
    """Not for the engine's largest step: a step's tokens leave a window when the next one comes."""
    core = registry.build("headway")
    core.observe(Arrived(0.0, "long", 0.0, 5_000, 50, CHAT))
    long = core.live.requests["long"]
    view = EngineView(9_000, 9_000, 16, 256, 2_048, steps_in_flight, kv_groups=GEMMA.groups)
    draft = draft_for(core, view, 0.1)
    assert draft.lasting_blocks(long) == 313 + 5 * 65
    assert draft.blocks_to_start(long, 2_048) == 313 + 5 * 65 + 5 * passing
    plain = draft_for(core, EngineView(9_000, 9_000, 16, 256, 2_048, steps_in_flight), 0.1)
    assert plain.blocks_to_start(long, 2_048) == plain.lasting_blocks(long) == 313


def test_only_what_was_found_held_may_be_counted_twice() -> None:
    """What a layout counts beyond the blocks in use is no room unless requests share some."""
    core = registry.build("headway")
    for name in ("a", "b"):
        core.observe(Arrived(0.0, name, 0.0, 1_000, 50, CHAT))
        core.observe(StepScheduled(0.0, {name: 1_000}, {name: 0}))
        core.observe(StepDone(0.1, {name: 1}))
    held = 2 * GEMMA.kept_blocks(1_000) - 300  # Fewer than counted: windows are rarely all full.
    view = EngineView(9_000, 9_000 - held, 16, 256, 2_048, 0, kv_groups=GEMMA.groups)
    assert draft_for(core, view, 0.2).given.room_tokens == 9_000 * 16
    core.live.requests["b"].num_shared_tokens = 480  # Thirty blocks in each group.
    assert draft_for(core, view, 0.2).given.room_tokens == (9_000 + 6 * 30) * 16
    core.live.requests["b"].num_shared_tokens = 960
    beyond = 2 * GEMMA.held_tokens(1_000) - 16 * held
    assert draft_for(core, view, 0.2).given.room_tokens == 9_000 * 16 + beyond


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("full", ("full",)),
        ("full, sliding:1024x5", ("full", *["sliding:1024"] * 5)),
        ("statex3,full", ("state", "state", "state", "full")),
        ("full,aligned-state,local:512", ("full", "aligned-state", "local:512")),
    ],
)
def test_groups_are_read_by_name_and_count(text: str, kinds: tuple[str, ...]) -> None:
    """A kind with a count stands for so many groups."""
    assert kinds_of(text) == kinds
    assert [parts_of(kind)[0] for kind in kinds] == [kind.partition(":")[0] for kind in kinds]


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("", "allowed are full"),
        ("wide", "'wide' is no kind of attention"),
        ("sliding", "allowed are full"),
        ("sliding:0", "sliding:TOKENS"),
        ("sliding:many", "sliding:TOKENS"),
        ("full:16", "allowed are full"),
        ("fullx", "'fullx'"),
        ("fullx0", "1 to 64 groups"),
        ("fullx65", "not 65"),
        ("full,,state", "'' is no kind"),
    ],
)
def test_no_kind_no_groups(text: str, hint: str) -> None:
    """The mistake is named, with what is allowed."""
    with pytest.raises(UserError, match=hint):
        kinds_of(text)
