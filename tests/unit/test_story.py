"""The slack ledger: by hand where the answer is known, and against the rule for finished runs."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from headway.metrics.kept import KeptRequest, Timeline
from headway.metrics.lateness import lateness_of
from headway.metrics.observed import Observed
from headway.metrics.story import SlackLedger
from headway.metrics.tale import Verdict
from headway.metrics.tally import Tallies
from headway.slo import Slo

PLENTY = 10_000


def ledger() -> SlackLedger:
    return SlackLedger(Tallies())


def causes(verdict: Verdict) -> dict[str, float]:
    return {cause: seconds for cause, seconds in verdict.late_s.items() if seconds}


def step(
    books: SlackLedger,
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
    books = ledger()
    books.arrived("a", Slo(ttft_s=1.5), 0.0, 100)
    step(books, 2.0, 2.6, "", admitted="a")
    step(books, 2.6, 3.0, "a")
    verdict = books.finished("a", 1, ended_well=True)
    assert not verdict.attained
    assert verdict.ttft_s == 3.0
    assert causes(verdict) == pytest.approx({"queueing": 1.0, "prefill": 0.5})


def test_a_wait_with_too_little_free_kv_is_told_apart() -> None:
    """Of four seconds of waiting, the second in which 99 tokens were free is kv_wait."""
    books = ledger()
    books.arrived("z", Slo(), 0.0, 10)
    books.arrived("a", Slo(ttft_s=2.5), 0.0, 100)
    step(books, 0.0, 2.0, "z", admitted="z", free_tokens=100)
    step(books, 2.0, 3.0, "z", free_tokens=99)
    step(books, 3.0, 4.0, "z", free_tokens=100)
    step(books, 4.0, 5.0, "za", admitted="a")
    verdict = books.finished("a", 1, ended_well=True)
    assert causes(verdict) == pytest.approx({"queueing": 1.5, "kv_wait": 0.5, "prefill": 0.5})


def test_a_step_beyond_its_plan_is_the_models_error() -> None:
    """A step planned for 0.5 s takes 1 s: half of the prefill it delayed is model error."""
    books = ledger()
    books.arrived("a", Slo(ttft_s=0.5), 0.0, 100)
    step(books, 0.0, 1.0, "a", admitted="a", planned_s=0.5)
    assert causes(books.finished("a", 1, ended_well=True)) == {"prefill": 0.25, "model_error": 0.25}


def test_late_gaps_are_counted_for_all_that_are_in_step() -> None:
    """Two streams, a 0.3 s step where 0.1 s was promised to one of them: only it is late."""
    books = ledger()
    books.arrived("a", Slo(tbt_s=0.1), 0.0, 10)
    books.arrived("b", Slo(), 0.0, 10)
    step(books, 0.0, 0.1, "ab", admitted="ab")
    step(books, 0.1, 0.2, "ab")
    step(books, 0.2, 0.5, "ab", planned_s=0.2)
    a, b = (books.finished(i, 3, ended_well=True) for i in "ab")
    assert (a.attained, b.attained) == (False, True)
    assert (a.num_late_gaps, a.num_gaps) == (1, 2)
    assert causes(a) == pytest.approx({"long_step": 0.2 * 2 / 3, "model_error": 0.2 / 3})
    assert causes(b) == {}


def test_a_stream_that_falls_out_of_step_is_charged_the_steps_it_missed() -> None:
    """Two steps without a token, then one with: skipped twice, its own step once."""
    books = ledger()
    books.arrived("a", Slo(tbt_s=0.1), 0.0, 10)
    books.arrived("b", Slo(), 0.0, 10)
    step(books, 0.0, 0.1, "ab", admitted="ab")
    for i in (1, 2):
        step(books, 0.1 * i, 0.1 * i + 0.1, "b")
    step(books, 0.3, 0.4, "ab")
    verdict = books.finished("a", 2, ended_well=True)
    assert causes(verdict) == pytest.approx({"skipped": 0.2 * 2 / 3, "long_step": 0.2 / 3})


def test_what_a_preemption_cost_is_preemption() -> None:
    """From the last token to the next one, the prompt's second computation included."""
    books = ledger()
    books.arrived("a", Slo(tbt_s=0.1), 0.0, 10)
    step(books, 0.0, 0.1, "a", admitted="a")
    books.preempted("a", 0.1)
    step(books, 0.1, 0.5, "")
    step(books, 0.5, 0.9, "a", admitted="a")
    verdict = books.finished("a", 2, ended_well=True)
    assert causes(verdict) == pytest.approx({"preemption": 0.7})


def test_one_late_gap_in_a_hundred_breaks_nothing() -> None:
    """99 % of the gaps are enough: the lateness of a kept promise is 0."""
    books = ledger()
    books.arrived("a", Slo(tbt_s=0.1), 0.0, 10)
    step(books, 0.0, 0.05, "a", admitted="a")
    at_s = 0.05
    for i in range(100):
        ends_s = at_s + (0.5 if i == 50 else 0.05)
        step(books, at_s, ends_s, "a")
        at_s = ends_s
    verdict = books.finished("a", 101, ended_well=True)
    assert (verdict.num_late_gaps, verdict.attained, causes(verdict)) == (1, True, {})


def test_a_late_job_is_split_over_its_whole_life() -> None:
    """Waiting, prefill and decoding share the lateness of a job by the seconds they took."""
    books = ledger()
    books.arrived("a", Slo(jct_s=2.0), 0.0, 10)
    step(books, 1.0, 2.0, "a", admitted="a")
    step(books, 2.0, 3.0, "a")
    step(books, 3.0, 4.0, "a")
    verdict = books.finished("a", 3, ended_well=True)
    assert causes(verdict) == pytest.approx({"queueing": 0.5, "prefill": 0.5, "long_step": 1.0})


def test_an_abort_keeps_no_promise_and_leaves_nothing_behind() -> None:
    """Whatever stage it is in."""
    books = ledger()
    for name in "abc":
        books.arrived(name, Slo(ttft_s=9.0), 0.0, 10)
    step(books, 0.0, 0.1, "a", admitted="ab")
    for name in "abc":
        assert not books.finished(name, 0, ended_well=False).attained
    assert not books.tales
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
        "finished",
        attained,
        tuple(outcome.phases),
        call.num_prompt_tokens,
    )


def timeline(run: Any) -> Timeline:
    columns = [list(column) for column in zip(*run.rows, strict=True)]
    names = [f.name for f in dataclasses.fields(Timeline)][:-1]
    table = dict(zip(names, columns, strict=True))
    return Timeline.parse({**table, "capacity_tokens": run.capacity_tokens})


class Heard(Observed):
    """Keeps every verdict."""

    def __init__(self) -> None:
        super().__init__()
        self.verdicts: dict[str, Verdict] = {}
        finished = self.ledger.finished

        def listen(request_id: str, *args: Any, **kwargs: Any) -> Verdict:
            self.verdicts[request_id] = finished(request_id, *args, **kwargs)
            return self.verdicts[request_id]

        self.ledger.finished = listen  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("policy", "num_blocks", "asynchronous"),
    [
        ("slack", 160, False),
        ("fcfs", 160, False),
        ("slack", 70, False),
        ("fcfs", 70, False),
        ("slack", 160, True),
    ],
)
def test_it_agrees_with_the_rule_for_finished_runs(
    lab: Any, policy: str, num_blocks: int, asynchronous: bool
) -> None:
    """On vLLM's own scheduler, overloaded: same verdicts, same lateness, nearly the same split."""
    from headway.engines.vllm.watch import Watched

    engine = lab.Engine(
        num_blocks=num_blocks,
        block_size=32,
        max_num_batched_tokens=2048,
        max_num_seqs=64,
        asynchronous=asynchronous,
        headway={"policy": policy},
    )
    run = lab.VirtualRun(engine, lab.truth(0, 0.1), keep_steps=True)
    watch = Watched(run.scheduler.headway, Silent())  # type: ignore[arg-type]
    watch.observed = heard = Heard()
    run.scheduler.headway = watch
    outcomes = run.run(lab.mixed(80, 6.0, 1))
    steps = timeline(run)
    by_cause, expected, num_late = {}, {}, 0
    for request_id, outcome in outcomes.items():
        verdict = heard.verdicts[request_id]
        assert verdict.attained == (lab.attained(outcome)), request_id
        want = lateness_of(kept(outcome, verdict.attained), steps)
        assert verdict.total_late_s == pytest.approx(want.total_s, abs=1e-6), request_id
        assert min(verdict.late_s.values()) > -1e-9
        num_late += want.total_s > 0
        for cause, seconds in want.by_cause_s.items():
            expected[cause] = expected.get(cause, 0.0) + seconds
            by_cause[cause] = by_cause.get(cause, 0.0) + verdict.late_s[cause]
    assert num_late > 10, "the load is one that makes requests late"
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


class Silent:
    """A sender nobody listens to."""

    has_readers = False

    def find_readers(self) -> int:
        return 0
