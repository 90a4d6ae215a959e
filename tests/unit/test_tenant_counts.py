"""Tenants: who is told by name, what is counted of them, and that memory stays flat."""

from __future__ import annotations

import json
import tracemalloc
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from told import counts, serve_one

from headway.engines.vllm.channel import MAX_MESSAGE_BYTES
from headway.metrics import tenant_counts
from headway.metrics.aims_rows import tenant_rows
from headway.metrics.board import Board
from headway.metrics.prometheus import exposition
from headway.metrics.scheduler_counts import SchedulerCounts
from headway.metrics.tenant_counts import MOST_RANKED, MOST_TOLD, TenantCounts
from headway.policy.events import Arrived, Finished, StepDone, StepScheduled
from headway.policy.live_requests import LiveRequests
from headway.request import Request
from headway.slo import Slo


def of(tenant: str, ttft_s: float | None = 1.0) -> Slo:
    return Slo(ttft_s=ttft_s, class_name="chat", tenant=tenant)


def metrics(message: dict[str, Any]) -> dict[tuple[str, ...], float]:
    """Return the samples of the tenants' counters: name and labels' values."""
    return {
        (sample.name, *(v for k, v in sorted(sample.labels.items()) if k != "engine")): sample.value
        for family in text_string_to_metric_families(exposition({"0": message}).decode())
        for sample in family.samples
        if sample.name.startswith("headway_tenant_") and sample.name.endswith("_total")
    }


def test_requests_promises_and_tokens_are_counted_by_tenant() -> None:
    """One kept and one broken promise, one without; refused ones have no prompt that counts."""
    observed = SchedulerCounts()
    serve_one(observed, "a", of("acme"), 0.5)
    serve_one(observed, "b", of("acme"), 1.5, 10.0)
    serve_one(observed, "c", of("acme", None), 1.5, 20.0)
    refused = Arrived(30.0, "d", 30.0, 10, 1, of("umbrella"))
    observed.arrived(refused, 1)
    observed.finished(Finished(31.0, "d", "refused"), refused.request())
    serve_one(observed, "e", of(""), 0.5, 40.0)
    found = metrics(counts(observed, 50.0))
    assert found["headway_tenant_requests_total", "finished", "acme"] == 3
    assert found["headway_tenant_requests_total", "refused", "umbrella"] == 1
    assert found["headway_tenant_requests_total", "finished", "none"] == 1
    assert found["headway_tenant_requests_promised_total", "acme"] == 2
    assert found["headway_tenant_requests_attained_total", "acme"] == 1
    assert found["headway_tenant_tokens_total", "prompt", "acme"] == 30
    assert found["headway_tenant_tokens_total", "output", "acme"] == 3
    assert found["headway_tenant_tokens_total", "prompt", "umbrella"] == 0
    assert found["headway_tenant_engine_seconds_total", "acme"] == pytest.approx(1.75)
    assert found["headway_tenant_engine_seconds_total", "umbrella"] == 0


def test_without_a_tenant_nothing_is_told() -> None:
    """A server whose requests name none has no tenants' metrics, rows or counters."""
    observed, board = SchedulerCounts(), Board()
    serve_one(observed, "a", of(""), 0.5)
    board.take(counts(observed, 1.0))
    assert metrics(counts(observed, 1.0)) == {}
    assert board.state(1.0)["tenants"] == []


def test_a_name_is_a_label_whatever_is_in_it() -> None:
    """Quotes and backslashes are escaped; one called as we call the rest is counted there."""
    observed = SchedulerCounts()
    for i, name in enumerate(('a"} 1\\', "others", "none", "")):
        serve_one(observed, f"r{i}", of(name), 0.5, 10.0 * i)
    found = metrics(counts(observed, 40.0))
    ended = {key[2]: n for key, n in found.items() if key[:2] == (
        "headway_tenant_requests_total", "finished")}  # fmt: skip
    assert ended == {'a"} 1\\': 1, "others": 1, "none": 2}


# -- many tenants ------------------------------------------------------------------------------


def end(tenants: TenantCounts, name: str) -> None:
    tally = tenants.arrived(name)
    assert tally is not None
    tally.ended("finished", 10, 1, True)


def test_those_with_the_most_requests_are_found_in_a_crowd() -> None:
    """Fifty who send a tenth of the requests, among 10^5 who send one each: these are told."""
    tenants = TenantCounts()
    for i in range(100_000):
        end(tenants, f"passer-by {i}")
        if i % 10 == 0:
            end(tenants, f"regular {i // 10 % MOST_TOLD}")
    told = tenants.snapshot()
    assert {name for name in told if name != "others"} == {f"regular {i}" for i in range(MOST_TOLD)}
    assert len(tenants._ranks) == MOST_RANKED
    assert told["others"]["attained"] > 99_000


def test_memory_does_not_grow_with_the_number_of_tenants() -> None:
    """After the first thousands the next hundred thousand take nothing that stays."""
    tenants, kept_bytes = TenantCounts(), []
    tracemalloc.start()
    for first, last in ((0, 5000), (5000, 105_000)):
        for i in range(first, last):
            end(tenants, f"t{i}")
            end(tenants, f"t{i * i % 4999}")
        kept_bytes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert kept_bytes[1] < kept_bytes[0] + 100_000
    assert len(tenants._ranks) == MOST_RANKED
    assert len(tenants._heap) <= 2 * MOST_RANKED + 1


def test_passers_by_make_no_new_names() -> None:
    """Each of them would be a time series: only who asked more often than one told takes over."""
    tenants, ever = TenantCounts(), set()
    for i in range(20_000):
        end(tenants, f"t{i}")
        ever |= tenants.by_name.keys()
    assert len(ever) == MOST_TOLD + 1


def test_no_counter_goes_down_while_its_name_stays() -> None:
    """Through all the changes of who is told, the others' among them."""
    tenants, before = TenantCounts(), {}
    for i in range(5000):
        end(tenants, f"t{(i * i) % 331}")
        told = {name: tally["promised"] for name, tally in tenants.snapshot().items()}
        for name in told.keys() & before.keys():
            assert told[name] in (before[name], before[name] + 1)
        before = told


def test_the_requests_of_who_is_told_no_more_are_the_others() -> None:
    """They end, and get their share of the steps, under the name they are told by then."""
    observed = SchedulerCounts()
    for i in range(MOST_TOLD):
        arrived = Arrived(0.0, f"r{i}", 0.0, 10, 9, of(f"t{i}"))
        observed.arrived(arrived, 5)
    observed.scheduled(StepScheduled(0.0, {"r0": 10}, {"r0": 0}))
    observed.done(StepDone(1.0, {"r0": 1}))
    for k in range(2):  # Somebody asks twice, and takes a place: the first one's.
        observed.arrived(Arrived(1.0, f"new{k}", 1.0, 10, 9, of("new")), 5)
    assert "t0" not in observed.tenants.by_name
    observed.scheduled(StepScheduled(1.0, {"r0": 1}))
    observed.done(StepDone(3.0, {"r0": 1}))
    others = observed.tenants.by_name["others"]
    assert (others.num_in_step, others.engine_s) == (1, 2.0)
    observed.finished(Finished(3.0, "r0", "stopped"), Request("r0", of("t0"), 0.0, 10, 9))
    assert (others.num_in_step, others.outcomes["finished"]) == (0, 1)


def test_the_largest_message_fits_the_channel() -> None:
    """As many classes and tenants as are told apart, all with targets, after weeks of traffic."""
    observed = SchedulerCounts()
    for i in range(70):
        slo = Slo(1.0, 0.1, 9.0, 1.0, f"a class of users {i}", 0.5, 2.0, 0.999,
                  f"key-0123456789abcdef{i:02d}", 1.0, 0.987)  # fmt: skip
        serve_one(observed, f"r{i}", slo, 1.5, 10.0 * i)
    message = counts(observed, 700.0)
    assert len(message["counts"]["classes"]) == 65
    assert len(message["counts"]["tenants"]) == MOST_TOLD + 1
    for row in (*message["counts"]["classes"].values(), *message["counts"]["tenants"].values()):
        _grow(row)
    assert len(json.dumps(message, separators=(",", ":")).encode()) < MAX_MESSAGE_BYTES


def _grow(row: dict[str, Any]) -> None:
    """Let all counts have seven digits, and sums sixteen."""
    for key, value in row.items():
        if isinstance(value, dict):
            _grow(value)
        elif isinstance(value, list):
            row[key] = [1_234_567] * len(value)
        else:
            row[key] = 1_234_567 if isinstance(value, int) else 123456.7891234567


# -- rows for people ---------------------------------------------------------------------------


def test_rows_are_of_the_last_minutes_and_in_order() -> None:
    """Most requests first, the others last; who was told before and is no more has no row."""
    observed, board = SchedulerCounts(), Board()
    for i in range(3):
        serve_one(observed, f"a{i}", of("early"), 0.5, 10.0 * i)
    board.take(counts(observed, 30.0))
    for i, (name, ttft_s) in enumerate((("x", 0.5), ("y", 0.5), ("y", 1.5), ("others", 0.5))):
        serve_one(observed, f"b{i}", of(name), ttft_s, 400.0 + 10 * i)
    board.take(counts(observed, 440.0))
    rows = board.state(440.0)["tenants"]
    assert [(r["name"], r["ended"], r["attained"]) for r in rows] == [
        ("y", 2, 1), ("x", 1, 1), ("others", 1, 1),
    ]  # fmt: skip
    assert sum(row["engine_share"] for row in rows) == pytest.approx(1.0)
    gone = _minus(counts(observed, 440.0)["counts"]["tenants"]["x"])
    assert tenant_rows({}, {"tenants": {"gone": gone}}, 0.0) == []


def _minus(row: dict[str, Any]) -> dict[str, Any]:
    return {k: _minus(v) if isinstance(v, dict) else -v for k, v in row.items()}


def test_a_message_keeps_what_it_said() -> None:
    """What is told is copied: later counts do not change an earlier message."""
    observed = SchedulerCounts()
    serve_one(observed, "a", of("acme"), 0.5)
    before = observed.snapshot(LiveRequests(), 1.0)
    serve_one(observed, "b", of("acme"), 0.5, 10.0)
    assert before["counts"]["tenants"]["acme"]["outcomes"]["finished"] == 1


@given(st.lists(st.integers(0, 12), max_size=80), st.integers(1, 3), st.integers(1, 4))
def test_any_order_of_requests_keeps_the_books(
    drawn: list[int], most_told: int, most_ranked: int
) -> None:
    """With room for very few: nobody is told, or ranked, who asked less often than it is said; the
    bounds hold, and each request is counted by whoever it was said to be counted by."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tenant_counts, "MOST_TOLD", most_told)
        patch.setattr(tenant_counts, "MOST_RANKED", most_ranked)
        tenants, asked = TenantCounts(), Counter[str]()
        for number in drawn:
            name = f"t{number}"
            asked[name] += 1
            tally = tenants.arrived(name)
            assert tally is tenants.by_name[name if name in tenants._told else "others"]
            assert tenants.by_name.keys() - {"others"} == tenants._told.keys()
            assert len(tenants._told) <= most_told
            assert len(tenants._ranks) <= most_ranked
            assert len(tenants._heap) <= 2 * most_ranked + 1
            assert not tenants._told.keys() & tenants._ranks.keys()
            assert all(own <= asked[told] for told, own in tenants._told.items())
            assert all(rank.own <= asked[ranked] for ranked, rank in tenants._ranks.items())
