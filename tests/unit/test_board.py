"""What a reader of the channel knows: now, the last minutes, who is late and who was."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from told import CHAT, counts, late_board, serve_one

from headway.metrics.board import BROKEN_KEPT, Board
from headway.metrics.scheduler_counts import SchedulerCounts
from headway.metrics.tally import combine
from headway.slo import Slo


def test_the_window_forgets_and_the_total_does_not() -> None:
    """Ten broken promises six minutes ago and ten kept ones now: 100 % now, 50 % ever."""
    observed, board = SchedulerCounts(), Board()
    for i in range(10):
        serve_one(observed, f"a{i}", CHAT, ttft_s=3.0, at_s=10.0 * i)
    board.take(counts(observed, 1000.0))
    assert board.state(1000.0)["classes"][0]["attainment"] == 0.0
    board.take(counts(observed, 1360.0))
    for i in range(10):
        serve_one(observed, f"b{i}", CHAT, ttft_s=0.5, at_s=360.0 + i)
    board.take(counts(observed, 1361.0))
    (row,) = board.state(1361.0)["classes"]
    assert (row["attainment"], row["promised"]) == (1.0, 10)
    assert (row["attained_ever"], row["promised_ever"]) == (10, 20)
    assert row["promise"] == {"ttft_s": 1.0}
    assert sum(row["late_s"].values()) == pytest.approx(0.0)


def test_the_load_of_several_schedulers_is_their_mean() -> None:
    """What routers are told, on the page: not the sum, as of requests."""
    board = Board()
    for engine, pressure in (("0", 0.2), ("1", 1.0)):
        message = counts(SchedulerCounts(), 5.0, engine)
        message["now"]["load"] = {"pressure": pressure, "prefill_backlog_s": 3.0, "kv_share": 0.5}
        message["now"]["running"] = 2
        board.take(message)
    now = board.state(5.0)["now"]
    assert now["running"] == 4
    assert now["load"] == pytest.approx(
        {"pressure": 0.6, "prefill_backlog_s": 3.0, "kv_share": 0.5}
    )


def test_what_was_expected_stands_beside_what_was_kept() -> None:
    """Over all deciles and all schedulers, of the last minutes."""
    board = Board()
    for engine, kept in (("0", True), ("1", False)):
        observed = SchedulerCounts()
        observed.chances.calibration.add(0.9, kept)
        observed.chances.calibration.add(0.5, True)
        board.take(counts(observed, 50.0, engine))
    chances = board.state(50.0)["model"]["chances"]
    assert chances == {"told": pytest.approx(0.7), "kept": 0.75, "num": 4}


def test_two_schedulers_make_one_picture() -> None:
    """Data parallel ranks: counts are added, points within a blink are one."""
    board = Board()
    for engine in ("0", "1"):
        observed = SchedulerCounts()
        serve_one(observed, "a", CHAT, ttft_s=0.5)
        board.take(counts(observed, 50.0, engine))
    state = board.state(50.0)
    assert (state["num_engines"], state["classes"][0]["attained"]) == (2, 2)
    assert len(state["points"]) == 1


def test_many_schedulers_make_as_many_points_as_one() -> None:
    """Eight that tell twice a second, each at its own time: there is always one within a blink."""
    board, observed = Board(), SchedulerCounts()
    for i in range(160):  # Ten seconds.
        board.take(counts(observed, 1000.0 + i / 16, str(i % 8)))
    points = board.state(1010.0)["points"]
    assert 20 <= len(points) <= 40
    assert len({point["number"] for point in points}) == len(points)


def test_points_of_time_are_sent_once() -> None:
    """The page asks for what came after the last point it has."""
    observed, board = SchedulerCounts(), Board()
    for second in range(1, 6):
        serve_one(observed, f"r{second}", CHAT, ttft_s=0.5, at_s=float(second))
        board.take(counts(observed, float(second)))
    everything = board.state(5.0)["points"]
    assert [p["attained"] for p in everything] == [0, 1, 1, 1, 1], "the first has no before"
    later = board.state(5.0, after=everything[2]["number"])["points"]
    assert later == everything[3:]


steps = st.lists(st.floats(1e-4, 100.0), max_size=4)
tellings = st.lists(
    st.tuples(steps, st.sampled_from(["0", "1"]), st.floats(0.01, 2.0), st.booleans()), min_size=1
)


@given(tellings)
def test_no_point_of_time_contradicts_itself(tellings: list[Any]) -> None:
    """Of two schedulers, told together or apart, some of it lost: the longest step is no shorter
    than the mean one, nothing is negative, and the points add up to what was counted."""
    observed = {"0": SchedulerCounts(), "1": SchedulerCounts()}
    board, unix_s, at_s, num = Board(), 1000.0, 0.0, 0
    for engine in observed:  # What came before the first point of each is in none.
        board.take(counts(observed[engine], unix_s, engine))
    before = board.counts()
    for spans_s, engine, later_s, is_lost in [*tellings, ([], "0", 1.0, 0), ([], "1", 1.0, 0)]:
        for span_s in spans_s:
            num += 1
            serve_one(observed[engine], f"r{num}", CHAT, 2 * span_s, at_s)
            at_s += 2 * span_s
        unix_s += later_s
        message = counts(observed[engine], unix_s, engine)
        if not is_lost:
            board.take(message)
    points = board.state(unix_s)["points"]
    for point in points:
        mean_s, longest_s = point["mean_step_s"], point["longest_step_s"]
        assert (mean_s is None) == (point["num_steps"] == 0)
        assert 0 <= (mean_s or 0) <= longest_s
        assert min(point["num_steps"], point["attained"], point["broken"]) >= 0
        assert point["attained"] + point["broken"] == point["num_steps"], "one step each"
    total = combine(board.counts(), before, -1)
    row = total["classes"].get("chat", {"attained": 0, "promised": 0})
    assert sum(p["attained"] for p in points) == row["attained"]
    assert sum(p["broken"] for p in points) == row["promised"] - row["attained"]
    for shown in board.state(unix_s)["classes"]:
        assert 0 <= shown["attained"] <= shown["promised"] <= shown["ended"]
        assert shown["live"] == 0
        for quantiles in (shown["ttft_s"], shown["gap_s"]):
            assert (quantiles["p50"] or 0) <= (quantiles["p99"] or math.inf)


def test_its_memory_is_bounded() -> None:
    """More than ten minutes of snapshots and a thousand broken promises: the oldest are gone."""
    observed, board = SchedulerCounts(), Board()
    for i in range(1500):
        board.take(counts(observed, 0.5 * i))
    for i in range(2 * BROKEN_KEPT):
        told = serve_one(observed, f"r{i}", CHAT, ttft_s=3.0, at_s=10.0 * i)
        assert told is not None
        board.take({**told, "engine": "0", "unix_s": 1.0})
    assert len(board._points) <= 1202
    assert len(board._past) <= 62
    assert len(board.broken) == BROKEN_KEPT
    assert board.num_broken == 2 * BROKEN_KEPT
    assert len(board.state(3600.0)["broken"]) == 30


def test_worst_and_by_name() -> None:
    """The latest first; an id as the client knows it, without vLLM's suffix."""
    observed, board = SchedulerCounts(), Board()
    for name, ttft_s in (("chat-1-x9", 2.0), ("chat-2-x8", 5.0), ("chat-3-x7", 3.0)):
        told = serve_one(observed, name, CHAT, ttft_s, at_s=100.0 * len(board.broken))
        board.take({**(told or {}), "engine": "0", "unix_s": 1.0})
    assert [t["id"] for t in board.worst(2)] == ["chat-2-x8", "chat-3-x7"]
    assert [t["id"] for t in board.explain("chat-3")] == ["chat-3-x7"]
    assert board.explain("chat-4") == []


def test_all_answers_of_one_request_are_found() -> None:
    """With n = 2 vLLM puts a number in front of the id that the client knows."""
    observed, board = SchedulerCounts(), Board()
    for at_s, name in enumerate(("0_chat-1-x9", "1_chat-1-x9", "11_chat-2-x8", "chat-11-x7")):
        told = serve_one(observed, name, CHAT, 2.0, at_s=10.0 * at_s)
        board.take({**(told or {}), "engine": "0", "unix_s": 1.0})
    assert [t["id"] for t in board.explain("chat-1-")] == ["1_chat-1-x9", "0_chat-1-x9"]
    assert [t["id"] for t in board.explain("1_chat-1-x9")] == ["1_chat-1-x9"]
    assert board.explain("1_chat-2") == []


def test_who_is_late_now_is_told_latest_first() -> None:
    """Of all schedulers together, the eight latest; and not again for every point of time."""
    board = late_board()
    state = board.state(100.0)
    assert [row["late_s"] for row in state["late"]] == [16, 15, 14, 13, 12, 11, 10, 9]
    assert state["now"]["num_late"] == 40
    assert "late" not in state["now"]
    assert all("late" not in point for point in state["points"])
    assert [row["id"] for row in board.late_now("late-2")] == ["late-2"]
    assert [row["id"] for row in board.late_now("late-1")][:2] == ["late-16", "late-15"]


def test_the_least_and_the_most_promised_are_shown() -> None:
    """A scheduler of an older version tells one figure, which is both."""
    observed, board = SchedulerCounts(), Board()
    serve_one(observed, "a", CHAT, ttft_s=0.5)
    message = counts(observed, 1.0)
    message["counts"]["classes"]["chat"]["promise_most"] = {"ttft_s": 60.0}
    board.take(message)
    (row,) = board.state(1.0)["classes"]
    assert (row["promise"], row["promise_most"]) == ({"ttft_s": 1.0}, {"ttft_s": 60.0})
    del message["counts"]["classes"]["chat"]["promise_most"]
    board.take(message)
    assert board.state(1.0)["classes"][0]["promise_most"] == {"ttft_s": 1.0}


def test_what_lengths_aim_at_is_passed_on() -> None:
    """``None`` where a mean is predicted."""
    board = Board()
    message = counts(SchedulerCounts(), 1.0)
    for target in (None, 0.9):
        board.take(message | {"length_coverage_target": target})
        assert board.state(1.0)["model"]["coverage_target"] == target


def test_a_server_started_anew_goes_on_with_the_page() -> None:
    """Its points have larger numbers than those the page has seen, whoever of several API servers
    it asks."""
    boards = [Board(), Board()]
    message = counts(SchedulerCounts(), 1000.0)
    for board in boards:
        board.take(message)
    assert boards[0].state(1000.0)["newest_point"] == boards[1].state(1000.0)["newest_point"]
    anew = Board()
    anew.take(counts(SchedulerCounts(), 1060.0))
    assert anew.state(1060.0)["newest_point"] > boards[0].state(1000.0)["newest_point"]


@pytest.mark.parametrize(
    "message",
    [{}, {"kind": "counts"}, {"kind": "counts", "engine": "0", "unix_s": "now"},
     {"kind": "broken", "engine": "0", "unix_s": 1.0}, {"engine": "0", "unix_s": 1.0}],
)  # fmt: skip
def test_what_it_does_not_understand_changes_nothing(message: dict[str, Any]) -> None:
    """A message of another version is not taken."""
    board = Board()
    assert not board.take(message)
    assert board.state(0.0)["ready"] is False


def test_a_class_with_a_target_has_a_budget_and_others_have_none() -> None:
    """Over all schedulers, and as old as their last word is; nothing of it in a point of time."""
    board = Board()
    for engine, ttft_s in (("0", 0.5), ("1", 1.5)):
        observed = SchedulerCounts()
        serve_one(observed, "a", Slo(ttft_s=1.0, class_name="code", target=0.5), ttft_s)
        serve_one(observed, "b", CHAT, 0.5, 10.0)
        board.take(counts(observed, 50.0, engine))
    chat, code = board.state(51.0)["classes"]
    assert chat["budget"] is None
    assert code["budget"]["target"] == 0.5
    assert code["budget"]["burn_rate"] == {"5m": 1.0, "1h": 1.0, "6h": 1.0}
    (_, code) = board.state(50.0 + 3600.0)["classes"]
    assert code["budget"]["burn_rate"] == {"5m": 0.0, "1h": 0.0, "6h": 1.0}
    assert board.told(60.0)["0"]["age_s"] == 10.0
    assert not {"budgets", "multipliers", "tenants"} & board.state(51.0)["points"][0].keys()
