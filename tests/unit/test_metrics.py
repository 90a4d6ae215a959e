"""The metrics on small cases worked out by hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.metrics import define
from headway.metrics.record import (
    RequestRecord,
    RunFacts,
    summarise,
    write_records,
)
from headway.slo import Slo

CHAT = Slo(ttft_s=1.0, tbt_s=0.2, class_name="chat")
BATCH = Slo(jct_s=10.0, class_name="batch")


def record(
    name: str = "r",
    slo: Slo = CHAT,
    arrived_at_s: float = 0.0,
    emitted_at_s: tuple[float, ...] = (),
    outcome: str = "finished",
) -> RequestRecord:
    return RequestRecord(name, slo, arrived_at_s, emitted_at_s, outcome, 10)  # type: ignore[arg-type]


def test_spans_of_one_request() -> None:
    """TTFT, gaps, TPOT and JCT follow their definitions."""
    emitted = (1.5, 1.75, 2.5)
    assert define.ttft_s(1.0, emitted) == 0.5
    assert define.gaps_s(emitted) == [0.25, 0.75]
    assert define.tpot_s(emitted) == 0.5
    assert define.jct_s(1.0, emitted) == 1.5


def test_a_request_without_tokens_has_no_spans_and_keeps_nothing() -> None:
    """No token means no TTFT, and no promise is kept by silence."""
    assert define.ttft_s(0.0, ()) is None
    assert define.tpot_s((1.0,)) is None
    assert define.jct_s(0.0, ()) is None
    assert not define.ttft_attained(0.0, (), 1.0)
    assert define.pause_s((1.0,)) is None
    assert not define.tbt_attained((), 1.0, 5.0)
    assert not define.tbt_attained_plain((), 1.0)
    assert not define.tbt_attained_strict((), 1.0)
    assert not define.pace_attained(0.0, (), 1.0)
    assert not define.tpot_attained((), 1.0)
    assert not define.pause_attained((), math.inf)
    assert not define.jct_attained(0.0, (), 1.0)


@pytest.mark.parametrize(("num_gaps", "num_late", "kept"), [
    (100, 1, True), (100, 2, False), (99, 1, False), (200, 2, True), (0, 0, True),
])  # fmt: skip
def test_one_gap_in_a_hundred_may_be_late(num_gaps: int, num_late: int, kept: bool) -> None:
    """The gap promise holds when at least 99 % of the gaps keep it, counted exactly."""
    at_s, emitted = 0.0, [0.0]
    for index in range(num_gaps):
        at_s += 1.0 if index < num_late else 0.125
        emitted.append(at_s)
    assert define.tbt_attained_plain(emitted, 0.2) is kept
    assert define.tbt_attained(emitted, 0.2, 1.0) is kept
    assert define.tbt_attained(emitted, 0.2, 0.5) is (num_late == 0)
    assert define.tbt_attained_strict(emitted, 0.2) is (num_late == 0)


def test_a_time_per_token_looks_at_the_mean_only() -> None:
    """One long gap is forgiven by TPOT when the mean is within the promise."""
    emitted = (0.0, 0.125, 0.25, 0.75)
    assert define.tpot_attained(emitted, 0.25)
    assert not define.tbt_attained(emitted, 0.25, 1.0)
    assert define.attained(Slo(tpot_s=0.25), 0.0, emitted, finished=True)
    assert not define.attained(Slo(tpot_s=0.24), 0.0, emitted, finished=True)


def test_a_freeze_breaks_a_gap_promise_that_99_percent_of_the_gaps_keep() -> None:
    """Two seconds of silence in a long answer: plain 99 % forgives them, the person does not."""
    emitted = [0.1 * k + 2.0 * (k > 150) for k in range(300)]
    freezing = Slo(tbt_s=0.2)
    kept = {r: define.gaps_attained(freezing, 0.0, emitted, r) for r in define.READINGS}
    assert kept == {"default": False, "plain": True, "strict": False, "pace": True}
    assert define.attained(Slo(tbt_s=0.2, pause_s=math.inf), 0.0, emitted, finished=True)
    assert define.attained(Slo(tbt_s=0.2, pause_s=2.5), 0.0, emitted, finished=True)
    assert not define.attained(Slo(pause_s=1.0), 0.0, emitted, finished=True)
    assert not Slo(pause_s=math.inf).is_promise


@pytest.mark.parametrize(("slo", "longest_s"), [
    (Slo(), math.inf), (Slo(tpot_s=0.1), math.inf), (Slo(tbt_s=0.1), 1.0), (Slo(tbt_s=0.5), 2.5),
    (Slo(tbt_s=0.5, pause_s=0.7), 0.7), (Slo(pause_s=3.0), 3.0),
])  # fmt: skip
def test_the_longest_pause_of_a_promise(slo: Slo, longest_s: float) -> None:
    """A second or five promised gaps, whichever is longer, unless it is said."""
    assert slo.longest_pause_s == longest_s


spans_s = st.sampled_from([1e-3, 0.05, 0.1, 0.1001, 0.4, 0.5, 0.9, 1.0, 1.1, 3.0])


@st.composite
def slos(draw: st.DrawFn) -> Slo:
    """Promises as they can be made: no pause is shorter than the gap beside it."""
    values = {name: draw(st.none() | spans_s) for name in ("ttft_s", "tbt_s", "tpot_s", "jct_s")}
    pause_s = draw(st.none() | spans_s | st.just(math.inf))
    if pause_s is not None:
        pause_s = max(pause_s, values["tbt_s"] or 0.0)
    return Slo(**values, pause_s=pause_s)


@st.composite
def streams(draw: st.DrawFn) -> list[float]:
    """Streams of one usual gap with a few that differ, long enough for 99 % to forgive some."""
    usual_s, num_gaps = draw(spans_s), draw(st.sampled_from([0, 1, 50, 99, 100, 101, 250]))
    gaps_s = [usual_s] * num_gaps
    for at in draw(st.lists(st.integers(0, 249), max_size=4)):
        if at < num_gaps:
            gaps_s[at] = draw(spans_s)
    emitted_at_s = [draw(spans_s)]
    for gap_s in gaps_s:
        emitted_at_s.append(emitted_at_s[-1] + gap_s)
    return emitted_at_s


@given(slos(), streams(), st.booleans())
def test_no_kept_promise_has_a_longer_pause_than_it_allows(
    slo: Slo, emitted_at_s: list[float], finished: bool
) -> None:
    """And the readings nest: what the strict one keeps, the default does, and the plain one."""
    kept = {
        reading: define.attained(slo, 0.0, emitted_at_s, finished=finished, reading=reading)
        for reading in define.READINGS
    }
    outcome = "finished" if finished else "failed"
    record = RequestRecord("a", slo, 0.0, tuple(emitted_at_s), outcome, 10)  # type: ignore[arg-type]
    assert {reading: record.attained_by(reading) for reading in define.READINGS} == kept
    if kept["default"]:
        assert (define.pause_s(emitted_at_s) or 0.0) <= slo.longest_pause_s
    assert kept["strict"] <= kept["default"] <= kept["plain"]
    if slo.tbt_s is None:
        assert len(set(kept.values())) == 1
    elif kept["strict"] and slo.ttft_s is not None:
        assert kept["pace"], "who has every gap in time is never behind the pace"


def test_a_promise_at_its_very_limit_is_kept() -> None:
    """Limits are inclusive."""
    assert define.ttft_attained(0.0, (1.0,), 1.0)
    assert define.jct_attained(0.0, (1.0, 2.0), 2.0)


def test_attained_needs_every_promised_dimension_and_an_end() -> None:
    """A request keeps its promise as a whole, and only when it finished."""
    assert record(emitted_at_s=(0.5, 0.6)).attained
    assert not record(emitted_at_s=(1.5, 1.6)).attained
    assert not record(emitted_at_s=(0.5, 0.9)).attained
    assert not record(emitted_at_s=(0.5, 0.6), outcome="aborted").attained
    assert record(slo=BATCH, emitted_at_s=(5.0, 9.0)).attained
    assert record(slo=Slo(), emitted_at_s=(500.0,)).attained


def test_refused_failed_and_lost_requests_count_as_offered() -> None:
    """Attainment is over everything offered, so losing requests never looks good."""
    records = [
        record("a", emitted_at_s=(0.5, 0.6)),
        record("b", outcome="refused"),
        record("c", outcome="failed"),
        record("d", outcome="timed_out", emitted_at_s=(0.1,)),
    ]
    run = summarise(records, RunFacts("slack", "live", num_offered=5, duration_s=2.0))
    assert run["attainment"] == 1 / 5
    assert run["lost"] == 1
    assert run["num_requests"] == 5
    assert run["goodput_rps"] == 0.5
    assert run["goodput_tokens_per_s"] == 1.0
    assert run["outcomes"] == {
        "finished": 1, "refused": 1, "failed": 1, "timed_out": 1, "aborted": 0,
    }  # fmt: skip
    assert run["ttft_attainment"] == 1 / 4
    assert run["jct_attainment"] is None


def test_summary_has_the_fields_of_a_run_and_its_classes() -> None:
    """A run names every field of the format; a class has the same figures."""
    records = [
        record("a", emitted_at_s=(0.5, 0.6)),
        record("b", slo=BATCH, arrived_at_s=1.0, emitted_at_s=(2.0, 4.0)),
    ]
    run = summarise(records, RunFacts("slack", "live", seed=1, rate_rps=2.0))
    for name in (
        "policy", "engine", "rate_rps", "seed", "num_requests", "attainment", "ttft_attainment",
        "tbt_attainment", "goodput_rps", "output_tokens_per_s", "duration_s", "ttft_s", "tbt_s",
        "preemptions", "plan_time_us", "lost", "per_class",
    ):  # fmt: skip
        assert name in run
    assert run["duration_s"] == 4.0
    assert run["per_class"]["batch"]["jct_attainment"] == 1.0
    assert run["per_class"]["batch"]["ttft_attainment"] is None
    assert run["per_class"]["chat"]["num_requests"] == 1
    assert set(run["ttft_s"]) == {"p50", "p95", "p99", "max"}


def test_an_empty_run_has_no_figures_and_does_not_fail() -> None:
    """Nothing offered gives no attainment rather than a perfect or a failed one."""
    run = summarise([], RunFacts("slack", "live"))
    assert run["attainment"] is None
    assert run["goodput_rps"] is None
    assert run["ttft_s"]["p99"] is None


def test_a_record_is_a_line_with_all_that_its_client_saw(tmp_path: Path) -> None:
    """Its promise, its instants to the microsecond, and what came of it."""
    records = [record("a", emitted_at_s=(0.5, 0.6250004)), record("b", outcome="refused")]
    write_records(tmp_path / "r.jsonl", records)
    first, second = map(json.loads, (tmp_path / "r.jsonl").read_text().splitlines())
    assert (first["id"], first["emitted_at_s"], first["num_output_tokens"]) == (
        "a",
        [0.5, 0.625],
        2,
    )
    assert first["slo"]["ttft_s"] == records[0].slo.ttft_s
    assert (first["attained"], second["attained"], second["outcome"]) == (
        records[0].attained, False, "refused",
    )  # fmt: skip


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50))
def test_quantiles_are_ordered_and_within_the_values(values: list[float]) -> None:
    """p50 ≤ p95 ≤ p99 ≤ max, all between the smallest and largest value."""
    found = [q for q in define.quantiles(values).values() if q is not None]
    assert found == sorted(found)
    slop = 1e-9 * max(values)
    assert min(values) - slop <= found[0]
    assert math.isclose(found[-1], max(values))
