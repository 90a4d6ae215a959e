"""No figure of the report contradicts itself, whatever the runs were."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any
from unittest import mock

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from headway.errors import UserError
from headway.metrics import define, lateness
from headway.metrics.kept import PHASES, KeptRequest, KeptRun
from headway.metrics.record import RequestRecord, RunFacts, summarise
from headway.slo import Slo
from headway.web import load_figures, run_figures, series, wait_figures
from headway.web.load_figures import Panel
from headway.web.wait_figures import ComparedRun, curve

COLUMNS = (
    "predicted_s", "promised_s", "num_prefill_tokens", "num_decodes", "num_running", "num_waiting",
    "held_tokens", "reserved_tokens",
)  # fmt: skip
CAPACITY_TOKENS = 1000
FEW_POINTS = 4
"""Instead of hundreds, so that a short run is thinned."""

ROUNDED = 2e-4
"""What two figures of four decimals each may differ by, and a little."""

counts = st.integers(0, 500)
spans_s = st.one_of(
    st.sampled_from([0.0, 0.01004, 0.1, 0.50004, 3.00004]),  # Just beyond a promise, too.
    st.floats(1e-6, 5.0),
)
steps = st.lists(
    st.tuples(spans_s, spans_s, *(st.floats(0.0, 5.0),) * 2, *(counts,) * 4,
              st.integers(0, CAPACITY_TOKENS), st.integers(0, 2 * CAPACITY_TOKENS)),
    max_size=20,
)  # fmt: skip
promises = st.one_of(st.none(), st.sampled_from([0.01, 0.5, 3.0]))
requests = st.lists(
    st.tuples(
        spans_s,
        st.lists(spans_s, max_size=6),
        st.lists(st.tuples(spans_s, st.sampled_from(PHASES)), max_size=5),
        st.sampled_from(["finished", "refused", "failed"]),
        st.tuples(promises, promises, promises),
        st.sampled_from(["chat", "batch"]),
        spans_s,
    ),
    min_size=1,
    max_size=12,
)
known = st.booleans()


def kept(steps: list[Any], requests: list[Any], is_known: bool) -> KeptRun:
    """Return a run as a file would hold it: steps one after another, requests of any kind."""
    begins_s, ends_s, now_s = [], [], 0.0
    for idle_s, span_s, *_ in steps:
        begins_s.append(now_s + idle_s)
        now_s = now_s + idle_s + span_s
        ends_s.append(now_s)
    timeline: dict[str, Any] = {"begins_s": begins_s, "ends_s": ends_s}
    timeline |= {name: [step[2 + i] for step in steps] for i, name in enumerate(COLUMNS)}
    timeline["capacity_tokens"] = CAPACITY_TOKENS if is_known else None
    rows, arrived_at_s = [], 0.0
    for index, (later_s, gaps_s, phases, outcome, promised, name, more_s) in enumerate(requests):
        arrived_at_s += later_s
        emitted = np.cumsum([arrived_at_s, *gaps_s])[1:].tolist() if outcome != "refused" else []
        since = np.cumsum([arrived_at_s, *(span_s for span_s, _ in phases)])[1:].tolist()
        slo = dict(zip(("ttft_s", "tbt_s", "jct_s"), promised, strict=True))
        finished = outcome == "finished" and bool(emitted)
        rows.append({
            "id": f"r{index}", "slo": slo, "slo_class": name, "arrived_at_s": arrived_at_s,
            "emitted_at_s": emitted, "outcome": outcome, "num_prompt_tokens": 5,
            "attained": define.attained(Slo(**slo), arrived_at_s, emitted, finished=finished),
            "phases": [[at_s, p] for at_s, (_, p) in zip(since, phases, strict=True)],
            "ended_at_s": (emitted or [arrived_at_s])[-1] + more_s,
        })  # fmt: skip
    document = {"schema": 1, "run": {}, "timeline": timeline, "requests": rows}
    return KeptRun.parse(document)


def drawn(figure: Any) -> dict[str, Any]:
    """Return the traces of a figure by name, values as arrays without the breaks of a line."""

    def plain(axis: Any) -> Any:
        return np.array([value for value in axis if value is not None])

    return {t.name: (plain(t.x), plain(t.y)) for t in figure.data if t.name is not None}


@given(steps, known)
def test_the_kv_of_a_run_adds_up(steps: list[Any], is_known: bool) -> None:
    """At every point held, reserved and free are the capacity, and no layer is negative."""
    timeline = kept(steps, [], is_known).timeline
    with mock.patch.object(run_figures, "MAX_POINTS", FEW_POINTS):
        layers = drawn(run_figures.kv_over_time(timeline))
    assert all((y >= 0).all() for _, y in layers.values())
    assert all((np.diff(x) >= 0).all() and len(x) <= FEW_POINTS for x, _ in layers.values())
    lent = layers.pop("lent: reserved, yet in use")[1]
    if is_known:
        total = sum(y for _, y in layers.values())
        assert total == pytest.approx(np.full(len(lent), CAPACITY_TOKENS), abs=ROUNDED)
    else:
        assert not lent.any(), "nothing is lent where the capacity is not known"


IDLE = (0.0, 0.0, 0.0, 0.0, 0, 0, 0, 0, 0, 0)
LONG_WITHOUT_PLAN, OVER_ITS_PLAN = (0.0, 3.0, *IDLE[2:]), (0.0, 2.0, 0.0, 1.0, *IDLE[4:])


@example([IDLE, IDLE, IDLE, IDLE, LONG_WITHOUT_PLAN, OVER_ITS_PLAN])
@given(steps)
def test_no_step_contradicts_the_others(steps: list[Any]) -> None:
    """The longest is drawn, each point's overrun too, and means lie within their steps."""
    timeline = kept(steps, [], is_known=True).timeline
    with mock.patch.object(run_figures, "MAX_POINTS", FEW_POINTS):
        bins = run_figures.Bins.of(timeline)
        found = drawn(run_figures.steps_over_time(timeline))
    beyond_ms = found["step beyond its promise"][1]
    shown_ms = np.concatenate([found["step"][1], beyond_ms])
    over = timeline.spans_s > timeline.planned_s
    edges = [*bins.starts.tolist(), len(timeline)]
    assert sum(over[a:b].any() for a, b in pairwise(edges)) <= len(beyond_ms) <= over.sum()
    if len(timeline):
        assert shown_ms.max() == pytest.approx(1000 * timeline.spans_s.max(), abs=ROUNDED)
        assert shown_ms.min() >= 0
    for name, values in (
        ("streams (one token each)", timeline.num_decodes),
        ("prompt tokens", timeline.num_prefill_tokens),
        ("requests running", timeline.num_running),
        ("requests waiting", timeline.num_waiting),
    ):
        means = found[name][1]
        assert len(means) == len(bins.starts)
        for mean, (low, high) in zip(means, pairwise(edges), strict=True):
            least, greatest = values[low:high].min(), values[low:high].max()
            assert max(least - ROUNDED, 0) <= mean <= greatest + ROUNDED


@given(requests, steps)
def test_a_bar_is_the_whole_life_of_its_request(requests: list[Any], steps: list[Any]) -> None:
    """From its arrival to what was last seen of it, in phases without a hole or an overlap."""
    run = kept(steps, requests, is_known=True)
    figure = run_figures.waterfall(run.requests, lateness.of_run(run))
    bars: dict[int, list[tuple[float, float]]] = {}
    late: dict[int, list[tuple[float, float]]] = {}
    num_marks = 0
    for trace in figure.data:
        if trace.mode == "markers":
            num_marks += len(trace.x)
            continue
        into = late if trace.name == "gap longer than promised" else bars
        for begins_s, ends_s, row in zip(trace.x[::3], trace.x[1::3], trace.y[::3], strict=True):
            into.setdefault(row, []).append((begins_s, ends_s))
    assert num_marks == sum(not request.attained for request in run.requests)
    for row, request in enumerate(run.requests):
        parts = sorted(bars[row])
        assert parts[0][0] == pytest.approx(request.arrived_at_s, abs=ROUNDED)
        assert parts[-1][1] == pytest.approx(request.last_seen_at_s, abs=ROUNDED)
        assert all(begins_s <= ends_s for begins_s, ends_s in parts)
        assert all(before[1] == after[0] for before, after in pairwise(parts))
        for begins_s, ends_s in late.get(row, []):
            assert parts[0][0] <= begins_s <= ends_s <= parts[-1][1]


@settings(max_examples=30)  # Drawing takes long.
@given(requests)
def test_a_curve_of_waits_says_who_came_in_time(requests: list[Any]) -> None:
    """Shares rise from 0 to at most 100, and at the promise are those whose promise was kept."""
    run = kept([], requests, is_known=True)
    one = ComparedRun("p", "#000000", {}, run, lateness.of_run(run))
    for figure, spans_of, promise_of in (
        (wait_figures.first_token_waits([one]), first_waits_s, lambda slo: slo.ttft_s),
        (wait_figures.gap_waits([one]), gap_waits_s, lambda slo: slo.tbt_s),
    ):
        if figure is None:
            continue
        names = [note.text for note in figure.layout.annotations if note.text in ("chat", "batch")]
        for name, trace in zip(names, figure.data, strict=True):
            shares = list(trace.y)
            assert shares[0] == 0.0
            assert shares == sorted(shares)
            assert shares[-1] <= 100.0
            assert list(trace.x) == sorted(trace.x)
            of_class = [
                request
                for request in run.requests
                if request.slo.class_name == name and promise_of(request.slo) is not None
            ]
            spans = [(s, promise_of(r.slo)) for r in of_class for s in spans_of(r)]
            total = len(spans) + sum(not request.emitted_at_s for request in of_class)
            in_time = sum(span_s <= promised_s for span_s, promised_s in spans)
            everybody = {
                promise_of(request.slo)
                for request in run.requests
                if request.slo.class_name == name
            }
            border = everybody.pop() if len(everybody) == 1 else 1.0
            read = max(y for x, y in zip(trace.x, trace.y, strict=True) if x <= border)
            assert read == pytest.approx(100 * in_time / total if total else 0.0, abs=1e-3)


def first_waits_s(request: KeptRequest) -> list[float]:
    span_s = define.ttft_s(request.arrived_at_s, request.emitted_at_s)
    return [] if span_s is None else [span_s]


def gap_waits_s(request: KeptRequest) -> list[float]:
    return define.gaps_s(request.emitted_at_s)


@given(requests, steps, known)
def test_lateness_is_the_sum_of_its_causes(
    requests: list[Any], steps: list[Any], is_known: bool
) -> None:
    """In the bars as in the table; nobody is counted twice, no cause is negative."""
    run = kept(steps, requests, is_known)
    found = lateness.by_class(run.requests, lateness.of_run(run))
    assert sum(late.num_requests for late in found.values()) == len(run.requests)
    broken = sum(not request.attained for request in run.requests)
    assert sum(late.num_late + late.num_unanswered for late in found.values()) == broken
    sums = dict.fromkeys(found, 0.0)
    for trace in wait_figures.lateness({"p": found}).data:
        for name, seconds in zip(trace.y[1], trace.x, strict=True):
            assert seconds >= 0
            sums[name] += seconds
    for name, late in found.items():
        assert math.fsum(late.by_cause_s.values()) == pytest.approx(late.total_s, abs=1e-6)
        assert sums[name] == pytest.approx(late.total_s, abs=0.0006 * len(lateness.CAUSES))


loads = st.sampled_from([1.0, 2.0, 5.0])


@settings(max_examples=30)
@given(st.lists(st.tuples(loads, requests), min_size=1, max_size=6))
def test_lines_over_load_lie_in_their_bands(runs: list[Any]) -> None:
    """Least, mean and greatest in this order; P50, P95 and P99 too; classes add up to the run."""
    summaries = []
    for seed, (rate_rps, requests) in enumerate(runs):
        run = kept([], requests, is_known=True)
        records = [
            RequestRecord(r.id, r.slo, r.arrived_at_s, r.emitted_at_s, r.outcome, 5,  # type: ignore[arg-type]
                          ended_at_s=r.ended_at_s)
            for r in run.requests
        ]  # fmt: skip
        facts = RunFacts("p", "sim", seed, rate_rps, {"recompute": 0, "swap": 0})
        summaries.append(summarise(records, facts))
    for summary in summaries:
        parts = summary["per_class"].values()
        for name in ("num_requests", "num_attained"):
            assert sum(part[name] for part in parts) == summary[name]
        assert sum(summary["outcomes"].values()) == summary["num_requests"]
    groups = series.groups_of(summaries, series.Labels(summaries))
    shown = [
        Panel("kept", series.percent_of("attainment"), "%"),
        *(Panel(f"{field} {q}", series.quantile(field, q), "s")
          for field in ("ttft_s", "tbt_s") for q in ("p50", "p95", "p99")),
    ]  # fmt: skip
    lines = {panel.title: series.points(summaries, panel.figure) for panel in shown}
    for line in lines.values():
        assert all(0 <= p.low <= p.mean <= p.high for p in line)
    assert all(point.high <= 100 for point in lines["kept"])
    for field in ("ttft_s", "tbt_s"):
        for by_load in zip(*(lines[f"{field} {q}"] for q in ("p50", "p95", "p99")), strict=True):
            for before, after in pairwise(by_load):
                assert before.mean <= after.mean * (1 + 1e-12)
    figure = load_figures.panels(groups, shown, num_columns=3)
    for trace in figure.data:
        if trace.error_y.array is not None:
            assert min((*trace.error_y.array, *trace.error_y.arrayminus)) >= 0


BAD = [
    ({"ends_s": [0.5]}, "ends before it begins"),
    ({"held_tokens": [-1.0]}, "negative"),
    ({"num_waiting": [-1.0]}, "negative"),
]


@pytest.mark.parametrize(("changed", "sentence"), BAD)
def test_steps_that_cannot_be_are_no_timeline(changed: dict[str, Any], sentence: str) -> None:
    """A figure of them would lie below zero."""
    table = {"begins_s": [1.0], "ends_s": [2.0], **{name: [0.0] for name in COLUMNS}}
    document = {"schema": 1, "run": {}, "timeline": {**table, **changed}, "requests": []}
    with pytest.raises(UserError, match=sentence):
        KeptRun.parse(document)


@pytest.mark.parametrize(
    ("emitted", "sentence"), [([3.0, 2.0], "not in order"), ([0.5], "came before it")]
)
def test_tokens_that_cannot_be_are_no_request(emitted: list[float], sentence: str) -> None:
    """Their waits would be negative."""
    row = {"id": "r", "arrived_at_s": 1.0, "emitted_at_s": emitted, "outcome": "finished",
           "attained": True, "num_prompt_tokens": 1}  # fmt: skip
    with pytest.raises(ValueError, match=sentence):
        KeptRequest.parse(row)


def test_nothing_is_rounded_over_its_border() -> None:
    """A wait just beyond its promise is not within it; the mean of equal shares is that share."""
    ((at_s, _),) = curve([0.50004], 1)
    assert at_s > 0.5
    runs = [{"policy": "p", "rate_rps": 1.0, "goodput_rps": 0.1, "seed": seed} for seed in range(3)]
    (point,) = series.points(runs, series.plain("goodput_rps"))
    assert point.low == point.mean == point.high
