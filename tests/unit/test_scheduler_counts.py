"""What a scheduler tells of itself: what really happened, who is overdue, and what was promised."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from told import Kept

from headway import registry
from headway.engines.journal import Journal
from headway.engines.vllm.watch import Watch
from headway.metrics.lateness_book import LatenessBook
from headway.metrics.overdue import MOST_SHOWN, overdue
from headway.metrics.prometheus import exposition
from headway.metrics.scheduler_counts import SchedulerCounts
from headway.metrics.tally import Tallies, combine
from headway.policy.events import Arrived, Finished, StepDone, StepScheduled
from headway.policy.live_requests import LiveRequests
from headway.policy.log import event_line, parse_event
from headway.policy.plan import Chunk, Preempt, StartRisk, StepPlan
from headway.policy.view import EngineView
from headway.request import Request
from headway.slo import Slo

LIVE = LiveRequests()
VIEW = EngineView(
    num_total_blocks=64, num_free_blocks=54, block_size_tokens=4, max_num_running=8,
    max_step_tokens=64,
)  # fmt: skip


def now(observed: SchedulerCounts, at_s: float) -> Any:
    return observed.snapshot(LIVE, at_s)["now"]


def arrive(observed: SchedulerCounts, name: str, slo: Slo, at_s: float = 0.0) -> Request:
    event = Arrived(at_s, name, at_s, 10, 9, slo)
    observed.arrived(event, 5)
    return event.request()


# -- preemptions by kind -----------------------------------------------------------------------


def test_preemptions_are_counted_by_what_the_engine_did() -> None:
    """One victim of a planned swap was kept and one was not; a later one nobody planned."""
    observed = SchedulerCounts()
    for name in "abc":
        arrive(observed, name, Slo())
    planned = tuple(Preempt(name, "swap", "for the test") for name in "ab")
    observed.planned(StepPlan(8, preempt=planned), VIEW, 0.0)
    observed.scheduled(StepScheduled(0.0, {"c": 10}, {"c": 0}, ("a", "b"), ("a",)))
    assert observed.preemptions == {"recompute": 1, "swap": 1}
    observed.planned(StepPlan(8), VIEW, 0.0)
    observed.scheduled(StepScheduled(1.0, {"c": 1}, {}, ("a",)))
    assert observed.preemptions == {"recompute": 2, "swap": 1}


def test_what_was_kept_travels_with_a_recording() -> None:
    """An event is read back as it was; one of an older recording kept nothing it could tell."""
    event = StepScheduled(0.5, {"a": 1}, {}, ("b", "c"), ("c",))
    row = json.loads(event_line(event))
    assert parse_event(dict(row)) == event
    del row["swapped"]
    assert parse_event(row) == StepScheduled(0.5, {"a": 1}, {}, ("b", "c"))


# -- an idle server ----------------------------------------------------------------------------


def test_an_idle_server_holds_nothing() -> None:
    """The last plan saw ten blocks in use; with the last request they are free again."""
    observed = SchedulerCounts()
    request = arrive(observed, "a", Slo())
    other = arrive(observed, "b", Slo())
    observed.planned(StepPlan(8), VIEW, 0.0)
    observed.finished(Finished(1.0, "a", "stopped"), request)
    assert now(observed, 1.0)["kv"] == {"held": 40, "reserved": 0, "lent": 0, "free": 216}
    observed.finished(Finished(2.0, "b", "aborted"), other)
    assert now(observed, 2.0)["kv"] == {"held": 0, "reserved": 0, "lent": 0, "free": 256}
    arrive(observed, "c", Slo(), 3.0)
    observed.planned(StepPlan(8), VIEW, 0.0)
    assert now(observed, 3.0)["kv"]["held"] == 40


# -- who was cut off ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "late_s"), [("aborted", 59.0), ("error", 59.0), ("refused", 0.0), ("rejected", 0.0)]
)
def test_who_ends_without_a_token_is_late_unless_turned_away(reason: str, late_s: float) -> None:
    """Sixty seconds of a promised one: charged to the wait, in the story and in the counters."""
    observed = SchedulerCounts()
    request = arrive(observed, "a", Slo(ttft_s=1.0, class_name="chat"))
    told = observed.finished(Finished(60.0, "a", reason), request)
    assert told is not None
    assert (told["late_s"], told["ttft_s"]) == (late_s, None)
    assert told["by_cause_s"] == ({"queueing": late_s} if late_s else {})
    tally = observed.tallies.of("chat")
    assert (tally.late, tally.late_s["queueing"]) == (int(late_s > 0), late_s)


# -- who is overdue now ------------------------------------------------------------------------


def test_the_overdue_are_told_with_what_they_break() -> None:
    """One waits for its first token, one in a pause, one is an old job; the fourth is in time."""
    books = LatenessBook(Tallies())
    books.arrived("paused", Slo(tbt_s=1.0, class_name="code"), 0.0, 10)
    books.arrived("job", Slo(ttft_s=99.0, jct_s=3.0, class_name="batch"), 0.0, 10)
    books.scheduled(0.0, {"paused": 0, "job": 0}, math.inf)
    books.done(1.0, {"paused": 1, "job": 1}, 0)
    books.preempted("paused", 1.0)
    books.arrived("waits", Slo(ttft_s=2.0, class_name="chat"), 1.0, 10)
    books.arrived("fine", Slo(ttft_s=9.0, tbt_s=0.1, jct_s=60.0), 1.0, 10)
    books.arrived("plain", Slo(), 0.0, 10)
    books.scheduled(1.0, {}, math.inf)
    books.done(8.0, {"job": 1}, 0)
    num_late, rows = overdue(books.live.values(), 8.0)
    assert num_late == 3
    assert rows == [
        {"id": "paused", "class": "code", "breaks": "tbt", "late_s": 6.0, "stage": "preempted",
         "lived_s": 8.0},
        {"id": "waits", "class": "chat", "breaks": "ttft", "late_s": 5.0, "stage": "queued",
         "lived_s": 7.0},
        {"id": "job", "class": "batch", "breaks": "jct", "late_s": 5.0, "stage": "decode",
         "lived_s": 8.0},
    ]  # fmt: skip


def test_a_late_first_token_that_came_is_overdue_no_more() -> None:
    """It is told when its request ends; who decodes in step is on time now."""
    books = LatenessBook(Tallies())
    books.arrived("a", Slo(ttft_s=1.0, tbt_s=0.1), 0.0, 10)
    books.scheduled(0.0, {"a": 0}, math.inf)
    assert overdue(books.live.values(), 4.0)[0] == 1
    books.done(5.0, {"a": 1}, 0)
    assert overdue(books.live.values(), 5.0) == (0, [])


def test_a_crowd_is_counted_and_its_head_is_shown() -> None:
    """Of a hundred overdue the oldest eight, in order; the number says how many there are."""
    observed = SchedulerCounts()
    for i in range(100):
        arrive(observed, f"r{i:02d}", Slo(ttft_s=1.0), float(i) / 100)
    told = now(observed, 10.0)
    assert told["num_late"] == 100
    assert [row["id"] for row in told["late"]] == [f"r{i:02d}" for i in range(MOST_SHOWN)]
    assert told["late"][0]["late_s"] == pytest.approx(9.0)


# -- what a class promises ---------------------------------------------------------------------


def test_a_class_shows_the_least_and_the_most_it_promised() -> None:
    """One client's ten minutes do not become the promise of a class that promises a second."""
    observed = SchedulerCounts()
    for slo in (Slo(ttft_s=1.0, tbt_s=0.1), Slo(ttft_s=600.0), Slo(ttft_s=0.5, jct_s=9.0)):
        arrive(observed, f"r{slo.ttft_s}", Slo(slo.ttft_s, slo.tbt_s, slo.jct_s, class_name="chat"))
    told = observed.snapshot(LIVE, 0.0)["counts"]["classes"]["chat"]
    assert told["promise"] == {"ttft_s": 0.5, "tbt_s": 0.1, "pause_s": 1.0, "jct_s": 9.0}
    most = {"ttft_s": 600.0, "tbt_s": 0.1, "pause_s": 1.0, "jct_s": 9.0}
    assert told["promise_most"] == most


def test_several_schedulers_promise_what_any_of_them_did() -> None:
    """Also over time: a difference of counts keeps the promise."""
    one = {"promise": {"ttft_s": 1.0}, "promise_most": {"ttft_s": 1.0}}
    other = {
        "promise": {"ttft_s": 0.2, "tbt_s": 3.0},
        "promise_most": {"ttft_s": 9.0, "tbt_s": 3.0},
    }
    both = {"promise": {"ttft_s": 0.2, "tbt_s": 3.0}, "promise_most": {"ttft_s": 9.0, "tbt_s": 3.0}}
    assert combine(one, other) == combine(other, one) == both
    assert combine(both, one, -1) == both
    assert combine({}, one) == one


# -- what predictions aim at -------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "target"), [("headway", None), ("slack", 0.5), ("fcfs", 1.0)])
def test_the_coverage_that_is_aimed_at_is_told(
    policy: str, target: float | None, fake_engine: Any
) -> None:
    """A quantile says which; a mean has none, and then there is no row."""
    kept = Kept()
    core = registry.build(policy)
    engine = fake_engine(Journal(core, Watch(core, kept)))  # type: ignore[arg-type]
    engine.arrive("a", 8, 3)
    while engine.core.live.requests:
        engine.step()
    assert kept.messages[-1]["length_coverage_target"] == target
    row = f'headway_length_coverage_target{{engine="0"}} {target}'
    assert (row in exposition({"0": kept.messages[-1]}).decode()) == (target is not None)


# -- what promises were told -------------------------------------------------------------------


def told(observed: SchedulerCounts, name: str, at_s: float) -> Request:
    """Let a request start whose plan sees next to no risk."""
    request = arrive(observed, name, Slo(ttft_s=1.0), at_s)
    risk = StartRisk(steps_to_spare=99.0, victims=0.0, redo_pauses=0.0)
    plan = StepPlan(10, (Chunk(name, 10, True, "first token due", risk),))
    observed.planned(plan, VIEW, 0.0)
    observed.scheduled(StepScheduled(at_s, {name: 10}, {name: 0}))
    return request


def test_chances_are_counted_by_decile() -> None:
    """Kept as the book of lateness says; who hung up before anything was late is in none."""
    observed = SchedulerCounts()
    cases = ((0.5, "stopped"), (0.5, "aborted"), (1.5, "stopped"), (1.5, "aborted"))
    for i, (took_s, reason) in enumerate(cases):
        begin_s = 10.0 * i
        request = told(observed, f"r{i}", begin_s)
        observed.done(StepDone(begin_s + took_s, {f"r{i}": 1}))
        request.num_output_tokens = 1
        observed.finished(Finished(begin_s + took_s, f"r{i}", reason), request)
        assert observed.chance is not None
    untold = arrive(observed, "best effort", Slo(), 50.0)
    observed.finished(Finished(51.0, "best effort", "stopped"), untold)
    assert observed.chance is None
    counts = observed.snapshot(LIVE, 60.0)["counts"]["chances"]
    assert counts["num"] == [0] * 9 + [3]
    assert counts["kept"] == [0] * 9 + [1]
    assert 2.7 < sum(counts["told"]) < 3.0


def test_the_calibration_error_waits_for_a_hundred_requests() -> None:
    """The gauge is absent until a decile can be judged, then it is the furthest one's distance."""
    observed = SchedulerCounts()
    name = "headway_chance_calibration_error"
    for _ in range(100):
        text = exposition({"0": observed.snapshot(LIVE, 1.0)}).decode()
        assert f"\n{name}{{" not in text
        observed.chances.calibration.add(0.9, True)
    text = exposition({"0": observed.snapshot(LIVE, 1.0)}).decode()
    found = [line for line in text.splitlines() if line.startswith(f"{name}{{")]
    assert [float(line.split()[-1]) for line in found] == [pytest.approx(0.1)]
    assert 'headway_chance_requests_total{decile="0.9",engine="0"} 100.0' in text
