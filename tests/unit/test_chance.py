"""The chance told to a promise as it starts: what plans say, who is told one, what is learned."""

from __future__ import annotations

import math

import pytest

from headway import registry
from headway.engines.journal import Journal
from headway.metrics.chance import LEARNED_EVERY, REMEMBERED, Chances, is_kept, looks_broken
from headway.metrics.deciles import Calibration, decile_of, error_of, rows_of
from headway.metrics.request_lateness import Lateness, LiveLateness
from headway.metrics.tally import ClassTally
from headway.policy.events import Arrived, Finished, StepDone, StepScheduled
from headway.policy.plan import Chunk, StartRisk, StepPlan
from headway.policy.scheduler import Scheduler
from headway.policy.view import EngineView
from headway.request import Request
from headway.slo import NO_PROMISE, Slo
from headway.study.spec import Load, Machine, RunSpec
from headway.study.told import ToldChances
from headway.study.virtual_run import execute

STREAM = Slo(ttft_s=1.0, tbt_s=0.1, class_name="chat")
VIEW = EngineView(1000, 1000, 16, 64, 2048)
CALM = StartRisk(steps_to_spare=99.0, victims=0.0, redo_pauses=0.1)


def arrived(core: Scheduler | Journal, name: str, slo: Slo = STREAM, at_s: float = 0.0) -> Request:
    """Let a request of 100 prompt tokens arrive."""
    core.observe(Arrived(at_s, name, at_s, 100, 50, slo))
    return core.live.requests[name]


def risk_in(plan: StepPlan, name: str) -> StartRisk | None:
    """Return what a plan says against a request."""
    return next(chunk for chunk in plan.chunks if chunk.request_id == name).risk


# -- what plans say ------------------------------------------------------------------------------


def test_a_plan_says_what_speaks_against_a_promise_that_starts() -> None:
    """On an empty server its first token has its second to spare, and nobody is a victim."""
    core = registry.build("headway")
    arrived(core, "a")
    plan = core.plan(VIEW, 0.0)
    risk = risk_in(plan, "a")
    assert risk is not None
    assert risk.steps_to_spare == pytest.approx(1.0 / plan.predicted_s - 1.0)
    assert risk.victims == 0.0
    assert 0.0 < risk.redo_pauses < 1.0


def test_where_kv_is_short_victims_are_expected() -> None:
    """The gate's own forecast is told, in the same plan."""
    core = registry.build("headway")
    arrived(core, "a")
    core.plan(VIEW, 0.0)
    core.observe(StepScheduled(0.0, {"a": 100}, {"a": 0}))
    arrived(core, "b")
    risk = risk_in(core.plan(EngineView(16, 9, 16, 64, 2048), 0.0), "b")
    assert risk is not None
    assert risk.victims > 0.0


def test_of_nobody_else_anything_is_said() -> None:
    """Not of best effort, not of who starts again, and by no other policy."""
    core = registry.build("headway")
    arrived(core, "a", NO_PROMISE)
    assert risk_in(core.plan(VIEW, 0.0), "a") is None
    arrived(core, "b")
    core.plan(VIEW, 0.0)
    core.observe(StepScheduled(0.0, {"b": 50}, {"b": 0}))
    core.observe(StepScheduled(0.1, {"a": 100}, {"a": 0}, ("b",)))
    assert risk_in(core.plan(VIEW, 0.1), "b") is None
    other = registry.build("slack")
    arrived(other, "a")
    assert risk_in(other.plan(VIEW, 0.0), "a") is None


def test_a_start_that_no_plan_made_is_told_no_chance() -> None:
    """The engine started it on its own; the other one is told its chance by its end."""
    core = registry.build("headway")
    told = ToldChances(core)
    journal = Journal(core, told)
    arrived(journal, "a")
    journal.observe(StepScheduled(0.0, {"a": 100}, {"a": 0}))
    journal.observe(StepDone(0.1, {"a": 1}))
    arrived(journal, "b", at_s=0.1)
    journal.plan(VIEW, 0.1)
    journal.observe(StepScheduled(0.1, {"a": 1, "b": 100}, {"b": 0}))
    journal.observe(StepDone(0.2, {"a": 1, "b": 1}))
    for name in "ab":
        journal.observe(Finished(0.2, name, "stopped"))
    assert list(told._chances) == ["b"]
    assert 0.9 < told._chances["b"] < 1.0


# -- what is kept --------------------------------------------------------------------------------


def lateness(attained: bool, *broke: str) -> Lateness:
    """Return how a request ended."""
    return Lateness(attained, broke, 0.5, 1.0, 0, 0, None, None, {})


def test_kept_is_what_the_definition_says() -> None:
    """What was late is broken, whatever followed; of a client that hung up before nobody knows."""
    assert is_kept(lateness(True), ended_well=True) is True
    assert is_kept(lateness(False), ended_well=True) is False
    assert is_kept(lateness(False, "ttft"), ended_well=False) is False
    assert is_kept(lateness(False), ended_well=False) is None


def live_of(slo: Slo = STREAM) -> LiveLateness:
    """Return a request that arrived at 0 s."""
    return LiveLateness("a", slo, ClassTally(), 0.0, 100, 0.0, 100)


def test_what_looks_broken_before_its_end() -> None:
    """A first token that is late or does not come, a pause, too many late gaps, an end."""
    live = live_of()
    assert not looks_broken(live, 0.9)
    assert looks_broken(live, 1.1)
    live.first_token_at_s = live.last_token_at_s = 0.5
    assert not looks_broken(live, 1.4)
    assert looks_broken(live, 1.6)  # It waits for longer than a pause may last.
    live.num_late_gaps = 1
    assert not looks_broken(live, 0.6)
    live.num_late_gaps = 2
    assert looks_broken(live, 0.6)
    live.num_late_gaps, live.longest_gap_s = 0, 1.5
    assert looks_broken(live, 0.6)
    assert looks_broken(live_of(Slo(jct_s=2.0)), 2.1)
    assert not looks_broken(live_of(Slo(jct_s=2.0)), 1.9)


# -- what is learned -----------------------------------------------------------------------------


def start(chances: Chances, live: dict[str, LiveLateness], name: str, at_s: float) -> float:
    """Start a request with next to no risk; return its chance."""
    live[name] = LiveLateness(name, STREAM, ClassTally(), at_s, 100, at_s, 100)
    chances.planned([Chunk(name, 100, True, "first token due", CALM)])
    chances.started([name], at_s)
    return chances._open[name][1]


def play(chances: Chances, live: dict[str, LiveLateness], which: range, kept: bool) -> list[float]:
    """Serve requests one by one, each kept or broken after a second; return their chances."""
    told = []
    for i in which:
        told.append(start(chances, live, f"r{i}", 10.0 * i))
        assert chances.ended(f"r{i}", 10.0 * i + 1.0, kept) == told[-1]
        del live[f"r{i}"]
    return told


def test_what_becomes_of_promises_is_learned() -> None:
    """While all are broken chances fall, and when all are kept they rise again."""
    live: dict[str, LiveLateness] = {}
    chances = Chances(live)
    fell = play(chances, live, range(100), False)
    rose = play(chances, live, range(100, 300), True)
    assert fell[0] > 0.9
    assert fell[-1] < 0.15
    assert rose[-1] > 0.8


def test_what_is_remembered_is_bounded() -> None:
    """After more starts than a ring holds nothing is left over of those that ended."""
    chances = Chances({})
    play(chances, chances._live, range(REMEMBERED + 20), True)  # type: ignore[arg-type]
    assert not chances._open
    assert not chances._planned
    assert len(chances._risks) == REMEMBERED


def test_a_start_that_outlives_the_ring_changes_nothing_in_it() -> None:
    """Another has its place; what became of it counts for its decile only."""
    live: dict[str, LiveLateness] = {}
    chances = Chances(live)
    start(chances, live, "old", 0.0)
    live["old"].first_token_at_s = live["old"].last_token_at_s = 1e9  # It does not look broken.
    play(chances, live, range(1, REMEMBERED + 2), True)
    before, chance, owed = chances._took_s.copy(), chances._open["old"][1], sum(chances._owed)
    chances.ended("old", 9000.0, False)
    assert (chances._took_s == before).all()
    assert sum(chances._owed) == pytest.approx(owed - chance)


def test_what_looks_broken_is_learned_before_it_ends() -> None:
    """It is owed at once and once; where it was kept after all, that is what counts."""
    for kept in (True, False, None):
        live: dict[str, LiveLateness] = {}
        chances = Chances(live)
        chance = start(chances, live, "a", 0.0)
        for i in range(LEARNED_EVERY):
            start(chances, live, f"r{i}", 5.0)
        assert chances._broken == {"a"}
        assert (chances._took_s[0], chances._kept[0]) == (5.0, 0.0)
        assert sum(chances._owed) == pytest.approx(-chance)
        chances.ended("a", 6.0, kept)
        assert not chances._broken
        expected = 0.0 if kept is None else kept - chance
        assert sum(chances._owed) == pytest.approx(expected)
        assert chances._took_s[0] == (6.0 if kept else 5.0)


def test_a_start_of_which_nobody_knows_is_taken_out() -> None:
    """The client hung up: it neither counts as kept nor stays open."""
    live: dict[str, LiveLateness] = {}
    chances = Chances(live)
    start(chances, live, "a", 0.0)
    chances.ended("a", 1.0, None)
    assert chances._at_s[0] == math.inf
    assert sum(chances._owed) == 0.0
    assert sum(chances.calibration.num) == 0


def test_a_decile_that_owes_tells_its_edge() -> None:
    """More kept than told pulls up, fewer down, never out of the decile."""
    chances = Chances({})
    for owed, low, high in ((50.0, 0.69, 0.7), (-50.0, 0.6, 0.61), (0.0, 0.65, 0.65)):
        chances._owed[6] = owed
        assert low <= chances._pulled(0.65) <= high


@pytest.mark.parametrize(
    ("chance", "decile"), [(0.0, 0), (0.099, 0), (0.1, 1), (0.95, 9), (1.0, 9)]
)
def test_deciles(chance: float, decile: int) -> None:
    """The highest is closed."""
    assert decile_of(chance) == decile


def test_a_decile_is_judged_from_a_hundred_requests() -> None:
    """A decile of few is shown and does not count."""
    calibration = Calibration()
    for i in range(100):
        calibration.add(0.82, i < 90)
    calibration.add(0.1, True)
    rows = rows_of(calibration.snapshot())
    assert [row.num for row in rows] == [1, 100]
    assert rows[1].told == pytest.approx(0.82)
    assert rows[1].kept == 0.9
    assert error_of(rows) == pytest.approx(0.08)
    assert error_of(rows[:1]) is None


@pytest.mark.parametrize(("source", "rate"), [("mixed", 16.0), ("retrieval", 14.0)])
def test_chances_are_calibrated(source: str, rate: float) -> None:
    """Under one and a half times what is kept, told and kept are at most 5 points apart."""
    machine = Machine("llama-3.1-8b@h100", kv_tokens=41_408, noise=0.05)
    result = execute(RunSpec("headway", "sim", Load(source, rate, 600, 0), machine))
    rows = result.run["calibration"]
    judged = [row for row in rows if row["num"] >= 100]
    assert judged
    assert all(abs(row["told"] - row["kept"]) <= 0.05 for row in judged)
    told = [r["chance"] for r in result.document()["requests"] if r["chance"] is not None]
    assert sum(row["num"] for row in rows) == len(told)
    assert any(row["told"] < 0.9 for row in rows)  # It says more than the mean.
