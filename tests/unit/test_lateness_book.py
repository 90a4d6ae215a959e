"""The book of lateness: by hand where the answer is known, and against finished runs' rule."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from late_rule import lateness_of
from told import Silent

from headway.engines.journal import Journal
from headway.metrics import define
from headway.metrics.kept import KeptRequest, Timeline
from headway.metrics.lateness import by_request
from headway.metrics.lateness_book import LatenessBook
from headway.metrics.request_lateness import Lateness
from headway.metrics.scheduler_counts import SchedulerCounts
from headway.metrics.tally import Tallies
from headway.slo import Slo

PLENTY = 10_000


def book() -> LatenessBook:
    return LatenessBook(Tallies())


def causes(late: Lateness) -> dict[str, float]:
    return {cause: seconds for cause, seconds in late.late_s.items() if seconds}


def step(
    books: LatenessBook,
    begins_s: float,
    ends_s: float,
    emitted: str,
    admitted: str = "",
    planned_s: float = math.inf,
    free_tokens: int = PLENTY,
) -> None:
    """One step that brings each request of *emitted* a token."""
    books.scheduled(begins_s, dict.fromkeys(admitted, 0), planned_s)
    books.done(ends_s, dict.fromkeys(emitted, 1), free_tokens)


def test_a_late_first_token_is_split_by_where_the_time_went() -> None:
    """Two seconds of waiting and one of prefill, 1.5 s late: two thirds and one third of it."""
    books = book()
    books.arrived("a", Slo(ttft_s=1.5), 0.0, 100)
    step(books, 2.0, 2.6, "", admitted="a")
    step(books, 2.6, 3.0, "a")
    late = books.finished("a", 3.0, 1, ended_well=True)
    assert not late.attained
    assert late.ttft_s == 3.0
    assert causes(late) == pytest.approx({"queueing": 1.0, "prefill": 0.5})


def test_a_wait_with_too_little_free_kv_is_told_apart() -> None:
    """Of four seconds of waiting, the second in which 99 tokens were free is kv_wait."""
    books = book()
    books.arrived("z", Slo(), 0.0, 10)
    books.arrived("a", Slo(ttft_s=2.5), 0.0, 100)
    step(books, 0.0, 2.0, "z", admitted="z", free_tokens=100)
    step(books, 2.0, 3.0, "z", free_tokens=99)
    step(books, 3.0, 4.0, "z", free_tokens=100)
    step(books, 4.0, 5.0, "za", admitted="a")
    late = books.finished("a", 5.0, 1, ended_well=True)
    assert causes(late) == pytest.approx({"queueing": 1.5, "kv_wait": 0.5, "prefill": 0.5})


def test_what_passed_before_it_reached_the_server_is_told_apart() -> None:
    """A second at a proxy, one of waiting, one of prefill: each a third of the 1.5 s late.

    Steps before it came leave no KV short for it.
    """
    books = book()
    books.arrived("z", Slo(), 0.0, 10)
    step(books, 0.0, 1.0, "z", admitted="z", free_tokens=99)
    books.arrived("a", Slo(ttft_s=1.5), 0.0, 100)
    books.reached("a", 1.0)
    step(books, 1.0, 2.0, "z")
    step(books, 2.0, 3.0, "za", admitted="a")
    late = books.finished("a", 3.0, 1, ended_well=True)
    assert late.ttft_s == 3.0
    assert causes(late) == pytest.approx({"elsewhere": 0.5, "queueing": 0.5, "prefill": 0.5})


def test_a_step_beyond_its_plan_is_the_models_error() -> None:
    """A step planned for 0.5 s takes 1 s: half of the prefill it delayed is model error."""
    books = book()
    books.arrived("a", Slo(ttft_s=0.5), 0.0, 100)
    step(books, 0.0, 1.0, "a", admitted="a", planned_s=0.5)
    late = books.finished("a", 1.0, 1, ended_well=True)
    assert causes(late) == {"prefill": 0.25, "model_error": 0.25}


def test_late_gaps_are_counted_for_all_that_are_in_step() -> None:
    """Two streams, a 0.3 s step where 0.1 s was promised to one of them: only it is late."""
    books = book()
    books.arrived("a", Slo(tbt_s=0.1), 0.0, 10)
    books.arrived("b", Slo(), 0.0, 10)
    step(books, 0.0, 0.1, "ab", admitted="ab")
    step(books, 0.1, 0.2, "ab")
    step(books, 0.2, 0.5, "ab", planned_s=0.2)
    a, b = (books.finished(i, 0.5, 3, ended_well=True) for i in "ab")
    assert (a.attained, b.attained) == (False, True)
    assert (a.num_late_gaps, a.num_gaps) == (1, 2)
    assert causes(a) == pytest.approx({"long_step": 0.2 * 2 / 3, "model_error": 0.2 / 3})
    assert causes(b) == {}


def test_a_stream_that_falls_out_of_step_is_charged_the_steps_it_missed() -> None:
    """Two steps without a token, then one with: skipped twice, its own step once."""
    books = book()
    books.arrived("a", Slo(tbt_s=0.1), 0.0, 10)
    books.arrived("b", Slo(), 0.0, 10)
    step(books, 0.0, 0.1, "ab", admitted="ab")
    for i in (1, 2):
        step(books, 0.1 * i, 0.1 * i + 0.1, "b")
    step(books, 0.3, 0.4, "ab")
    late = books.finished("a", 0.4, 2, ended_well=True)
    assert causes(late) == pytest.approx({"skipped": 0.2 * 2 / 3, "long_step": 0.2 / 3})


@pytest.mark.parametrize(("swapped", "cause"), [(False, "preemption"), (True, "swap")])
def test_what_a_preemption_cost_is_told_by_its_kind(swapped: bool, cause: str) -> None:
    """From the last token to the next one, what is computed again included."""
    books = book()
    books.arrived("a", Slo(tbt_s=0.1), 0.0, 10)
    step(books, 0.0, 0.1, "a", admitted="a")
    books.preempted("a", 0.1, swapped=swapped)
    step(books, 0.1, 0.5, "")
    step(books, 0.5, 0.9, "a", admitted="a")
    late = books.finished("a", 0.9, 2, ended_well=True)
    assert causes(late) == pytest.approx({cause: 0.7})


def test_a_second_preemption_before_it_decodes_is_charged_by_its_own_kind() -> None:
    """Swapped for 0.4 s, then thrown out while it resumes: each by the seconds it took."""
    books = book()
    books.arrived("a", Slo(tbt_s=0.1), 0.0, 10)
    step(books, 0.0, 0.1, "a", admitted="a")
    books.preempted("a", 0.1, swapped=True)
    step(books, 0.1, 0.5, "", admitted="a")
    books.preempted("a", 0.5)
    step(books, 0.5, 0.9, "a", admitted="a")
    late = books.finished("a", 0.9, 2, ended_well=True)
    assert causes(late) == pytest.approx({"swap": 0.35, "preemption": 0.35})


def test_one_late_gap_in_a_hundred_breaks_nothing() -> None:
    """99 % of the gaps are enough: the lateness of a kept promise is 0."""
    books = book()
    books.arrived("a", Slo(tbt_s=0.1), 0.0, 10)
    step(books, 0.0, 0.05, "a", admitted="a")
    at_s = 0.05
    for i in range(100):
        ends_s = at_s + (0.5 if i == 50 else 0.05)
        step(books, at_s, ends_s, "a")
        at_s = ends_s
    late = books.finished("a", at_s, 101, ended_well=True)
    assert (late.num_late_gaps, late.attained, causes(late)) == (1, True, {})


def test_a_pause_breaks_what_99_percent_of_the_gaps_keep() -> None:
    """Beyond the pause it is late, and nothing else is; two streams in one step each by its own."""
    books = book()
    books.arrived("a", Slo(tbt_s=0.1), 0.0, 10)
    books.arrived("b", Slo(tbt_s=0.1, pause_s=math.inf), 0.0, 10)
    books.arrived("c", Slo(pause_s=0.5), 0.0, 10)
    at_s = 0.0
    for k in range(301):
        took_s = 1.5 if k == 100 else 0.0625
        step(books, at_s, at_s + took_s, "abc", admitted="abc" if k == 0 else "")
        at_s += took_s
    a, b, c = (books.finished(i, at_s, 301, ended_well=True) for i in "abc")
    assert (a.broke, b.broke, c.broke) == (("pause",), (), ("pause",))
    assert (a.attained, b.attained, c.attained) == (False, True, False)
    assert {late.longest_gap_s for late in (a, b, c)} == {1.5}
    assert causes(a) == pytest.approx({"long_step": 0.5})
    assert causes(b) == {}
    assert causes(c) == pytest.approx({"long_step": 1.0})


def test_the_longest_gap_is_of_ones_own_time_in_step() -> None:
    """What others waited before it came, or while it was out, is not its pause."""
    books = book()
    for name in "ab":
        books.arrived(name, Slo(pause_s=1.0), 0.0, 10)
    step(books, 0.0, 0.125, "a", admitted="a")
    step(books, 0.125, 4.0, "a")
    step(books, 4.0, 4.5, "ab", admitted="b")
    step(books, 4.5, 5.25, "ab")
    step(books, 5.25, 5.5, "ab")
    a, b = (books.finished(i, 5.5, n, ended_well=True) for i, n in (("a", 5), ("b", 3)))
    assert (a.longest_gap_s, b.longest_gap_s) == (3.875, 0.75)
    assert (a.broke, b.broke) == (("pause",), ())


def test_a_mean_per_token_is_late_by_all_of_its_tokens() -> None:
    """Four gaps of half a second at a promised quarter: a second late, the first wait not in it."""
    books = book()
    books.arrived("a", Slo(tpot_s=0.25), 0.0, 10)
    step(books, 8.0, 9.0, "a", admitted="a")
    for k in range(4):
        step(books, 9.0 + 0.5 * k, 9.5 + 0.5 * k, "a")
    late = books.finished("a", 11.0, 5, ended_well=True)
    assert (late.broke, late.tpot_s) == (("tpot",), 0.5)
    assert causes(late) == pytest.approx({"long_step": 1.0})


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_the_book_judges_as_the_definition_does(data: st.DataObject) -> None:
    """Streams that fall in and out of step, whatever they were promised: kept or broken alike."""
    span = st.sampled_from([0.125, 0.25, 0.5, 1.0, 2.0])
    spans = st.none() | span
    names = "abcd"
    slos = {}
    for name in names:
        tbt_s, pause_s = data.draw(spans), data.draw(spans | st.just(math.inf))
        if tbt_s is not None and pause_s is not None:
            pause_s = max(tbt_s, pause_s)
        slos[name] = Slo(
            data.draw(spans), tbt_s, data.draw(spans), tpot_s=data.draw(spans), pause_s=pause_s
        )
    books, at_s = book(), 0.0
    emitted: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        books.arrived(name, slos[name], 0.0, 10)
    for k in range(data.draw(st.integers(1, 150))):
        took_s = (
            data.draw(st.sampled_from([0.125] * 9 + [0.25, 0.625, 3.0])) if k % 7 == 0 else 0.125
        )
        missing = data.draw(st.sampled_from(["", "", "", "a", "bc"])) if k % 5 == 4 else ""
        step(
            books,
            at_s,
            at_s + took_s,
            "".join(name for name in names if name not in missing),
            admitted=names if k == 0 else "",
        )
        at_s += took_s
        for name in names:
            if name not in missing:
                emitted[name].append(at_s)
    for name in names:
        late = books.finished(name, at_s, len(emitted[name]), ended_well=True)
        kept_as = define.attained(slos[name], 0.0, emitted[name], finished=True)
        assert late.attained == kept_as, (name, slos[name], emitted[name])
        assert late.longest_gap_s == define.pause_s(emitted[name])
        assert (late.total_late_s > 0) == bool(late.broke)
        if late.attained:
            assert (late.longest_gap_s or 0.0) <= slos[name].longest_pause_s


def test_a_late_job_is_split_over_its_whole_life() -> None:
    """Waiting, prefill and decoding share the lateness of a job by the seconds they took."""
    books = book()
    books.arrived("a", Slo(jct_s=2.0), 0.0, 10)
    step(books, 1.0, 2.0, "a", admitted="a")
    step(books, 2.0, 3.0, "a")
    step(books, 3.0, 4.0, "a")
    late = books.finished("a", 4.0, 3, ended_well=True)
    assert causes(late) == pytest.approx({"queueing": 0.5, "prefill": 0.5, "long_step": 1.0})


def cut_off(books: LatenessBook, at_s: float, num_output_tokens: int = 0) -> dict[str, float]:
    """Let the client of "a" hang up and return what is charged, by cause."""
    late = books.finished("a", at_s, num_output_tokens, ended_well=False)
    assert not late.attained
    assert late.ttft_s is None or num_output_tokens
    return causes(late)


def test_who_gives_up_waiting_was_late_until_then() -> None:
    """A promised second, given up after 60: 59 s late, the 20 s without room told apart."""
    books = book()
    books.arrived("z", Slo(), 0.0, 10)
    books.arrived("a", Slo(ttft_s=1.0), 0.0, 100)
    step(books, 0.0, 20.0, "z", admitted="z", free_tokens=99)
    step(books, 20.0, 50.0, "z")
    charged = cut_off(books, 60.0)
    assert charged == pytest.approx({"queueing": 59 * 40 / 60, "kv_wait": 59 * 20 / 60})


def test_who_gives_up_in_time_was_not_late() -> None:
    """Hung up before the first token was due: a promise not kept, and no seconds."""
    books = book()
    books.arrived("a", Slo(ttft_s=1.0, tbt_s=0.1, jct_s=9.0), 0.0, 100)
    assert cut_off(books, 0.9) == {}


def test_who_gives_up_during_its_prompt_is_charged_the_prompt_too() -> None:
    """Two seconds of waiting, two of prefill, the second of them in the step in flight."""
    books = book()
    books.arrived("a", Slo(ttft_s=1.0), 0.0, 100)
    step(books, 2.0, 3.0, "", admitted="a", planned_s=0.5)
    books.scheduled(3.0, {}, math.inf)
    charged = cut_off(books, 4.0)
    assert charged == pytest.approx({"queueing": 1.5, "prefill": 1.125, "model_error": 0.375})


def test_a_stream_that_is_given_up_in_a_pause_was_late_by_the_pause() -> None:
    """A token at 0.1 s, thrown out, hung up at 4.1 s: the end stands in for the next token."""
    books = book()
    books.arrived("a", Slo(tbt_s=1.0), 0.0, 10)
    step(books, 0.0, 0.1, "a", admitted="a")
    books.preempted("a", 0.1)
    step(books, 0.1, 2.0, "")
    assert cut_off(books, 4.1, 1) == pytest.approx({"preemption": 3.0})


def test_a_step_that_the_end_interrupts_brought_nothing() -> None:
    """A decode whose step is in flight when its client hangs up was skipped by it."""
    books = book()
    books.arrived("a", Slo(tbt_s=1.0), 0.0, 10)
    step(books, 0.0, 1.0, "a", admitted="a")
    books.scheduled(2.0, {}, math.inf)
    assert cut_off(books, 5.0, 1) == pytest.approx({"other": 0.75, "skipped": 2.25})


def test_a_job_that_is_given_up_was_late_until_then() -> None:
    """Without a token, ten seconds beyond the job's promise."""
    books = book()
    books.arrived("a", Slo(jct_s=5.0), 0.0, 10)
    assert cut_off(books, 15.0) == pytest.approx({"queueing": 10.0})


def test_the_refused_have_no_seconds() -> None:
    """They never waited for a token, however long the answer took."""
    books = book()
    books.arrived("a", Slo(ttft_s=1.0, jct_s=2.0), 0.0, 10)
    late = books.finished("a", 9.0, 0, ended_well=False, was_refused=True)
    assert not late.attained
    assert causes(late) == {}


def test_an_end_is_no_token() -> None:
    """The histograms of waits hold what came, not what was given up."""
    books = book()
    live = books.arrived("a", Slo(ttft_s=1.0), 0.0, 10)
    cut_off(books, 9.0)
    live = books.arrived("a", Slo(tbt_s=1.0), 10.0, 10)
    step(books, 10.0, 11.0, "a", admitted="a")
    cut_off(books, 19.0, 1)
    assert (sum(live.tally.ttft.counts), sum(live.tally.gap.counts)) == (1, 0)


def test_an_abort_keeps_no_promise_and_leaves_nothing_behind() -> None:
    """Whatever stage it is in."""
    books = book()
    for name in "abc":
        books.arrived(name, Slo(ttft_s=9.0), 0.0, 10)
    step(books, 0.0, 0.1, "a", admitted="ab")
    for name in "abc":
        assert not books.finished(name, 0.1, 0, ended_well=False).attained
    assert not books.live
    assert not books._in_step
    assert not books._groups


# -- against the rule for finished runs --------------------------------------------------------


def kept(outcome: Any, attained: bool) -> KeptRequest:
    """What ``simulate --keep`` would have written about a virtual request."""
    xargs, call = outcome.call.xargs, outcome.call
    given = {k: xargs.get(f"slo_{k}_ms") for k in ("ttft", "tbt", "jct")}
    return KeptRequest(
        call.request_id,
        Slo(**{f"{k}_s": v / 1000 for k, v in given.items() if v is not None}),
        call.arrived_at_s,
        tuple(outcome.emitted_at_s),
        "finished" if outcome.finish_reason in ("stop", "length") else "aborted",
        attained,
        tuple(outcome.phases),
        call.num_prompt_tokens,
        ended_at_s=outcome.ended_at_s,
    )


def timeline(run: Any) -> Timeline:
    columns = [list(column) for column in zip(*run.rows, strict=True)]
    names = [f.name for f in dataclasses.fields(Timeline)][:-1]
    table = dict(zip(names, columns, strict=True))
    return Timeline.parse({**table, "capacity_tokens": run.capacity_tokens})


class Heard(SchedulerCounts):
    """Keeps the lateness of every request."""

    def __init__(self) -> None:
        super().__init__()
        self.by_request: dict[str, Lateness] = {}
        finished = self.book.finished

        def listen(request_id: str, *args: Any, **kwargs: Any) -> Lateness:
            self.by_request[request_id] = finished(request_id, *args, **kwargs)
            return self.by_request[request_id]

        self.book.finished = listen  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("policy", "num_blocks", "asynchronous", "host_blocks", "hang_up"),
    [
        ("slack", 160, False, 0, False),
        ("fcfs", 160, False, 0, False),
        ("slack", 70, False, 0, False),
        ("fcfs", 70, False, 0, False),
        ("slack", 160, True, 0, False),
        ("fcfs", 160, False, 0, True),
        ("slack", 70, False, 0, True),
        ("headway", 70, False, 200, True),
        ("headway", 70, True, 200, True),
    ],
)
def test_it_agrees_with_the_rule_for_finished_runs(
    lab: Any, policy: str, num_blocks: int, asynchronous: bool, host_blocks: int, hang_up: bool
) -> None:
    """On vLLM's own scheduler, overloaded: the same kept and as late, nearly the same split."""
    from headway.engines.vllm.watch import Watch

    engine = lab.Engine(
        num_blocks=num_blocks,
        block_size=32,
        max_num_batched_tokens=2048,
        max_num_seqs=64,
        asynchronous=asynchronous,
        host_blocks=host_blocks,
        headway={"policy": policy},
    )
    run = lab.VirtualRun(engine, lab.truth(0, 0.1), keep_steps=True)
    watch = Watch(run.scheduler.headway, Silent())  # type: ignore[arg-type]
    watch.observed = heard = Heard()
    run.scheduler.headway = Journal(run.scheduler.headway, watch)
    calls = lab.mixed(80, 6.0, 1)
    if hang_up:  # Every third client, at instants that hit each stage.
        calls[::3] = [
            dataclasses.replace(c, abort_at_s=c.arrived_at_s + 0.5 * (i % 20))
            for i, c in enumerate(calls[::3])
        ]
    outcomes = run.run(calls)
    steps = timeline(run)
    by_cause, expected, num_late = {}, {}, 0
    for request_id, outcome in outcomes.items():
        late = heard.by_request[request_id]
        assert late.attained == lab.attained(outcome), request_id
        want = lateness_of(kept(outcome, late.attained), steps)
        assert late.total_late_s == pytest.approx(want.total_s, abs=1e-6), request_id
        assert min(late.late_s.values()) > -1e-9
        num_late += want.total_s > 0
        for cause, seconds in want.by_cause_s.items():
            expected[cause] = expected.get(cause, 0.0) + seconds
            by_cause[cause] = by_cause.get(cause, 0.0) + late.late_s[cause]
    assert num_late > 10, "the load is one that makes requests late"
    assert (heard.preemptions["swap"] > 0) == (host_blocks > 0)
    if hang_up:
        assert any(
            outcomes[i].finish_reason == "abort" and v.total_late_s > 0
            for i, v in heard.by_request.items()
        ), "some gave up after their due time"
    total_s = sum(expected.values())
    for cause in ("kv_wait", "queueing"):
        # Free KV is read before a step is filled, not after: a wait may change its name.
        assert by_cause[cause] == pytest.approx(expected[cause], abs=0.25 * total_s)
    for cause in set(expected) - {"kv_wait", "queueing"}:
        assert by_cause[cause] == pytest.approx(expected[cause], abs=0.02 * total_s), cause
    if not asynchronous and heard.preemptions["recompute"] == 0:
        waits = ("kv_wait", "queueing")
        for cause in set(expected) - set(waits):
            assert by_cause[cause] == pytest.approx(expected[cause], abs=1e-6), cause
    rows = [kept(outcome, heard.by_request[i].attained) for i, outcome in outcomes.items()]
    for request_id, again in by_request(rows, steps).items():
        # In a kept run a step begins when the copies before it are done.
        assert_same_split(heard.by_request[request_id], again, 5e-3 if host_blocks else 1e-6)


def assert_same_split(live: Lateness, kept: Lateness, error_s: float) -> None:
    """Of a kept run the same seconds are charged to the same causes, but for the two waits."""
    waits = {cause: live.late_s[cause] - kept.late_s[cause] for cause in ("kv_wait", "queueing")}
    assert sum(waits.values()) == pytest.approx(0.0, abs=error_s)
    for cause in live.late_s.keys() - waits:
        assert kept.late_s[cause] == pytest.approx(live.late_s[cause], abs=error_s), cause
