"""Who pays, on its way through files: workloads, traces of others, recordings and kept runs."""

from __future__ import annotations

import json
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from told import Lines

from headway import registry
from headway.engines.journal import Journal
from headway.engines.sim.run import SimRun
from headway.errors import UserError
from headway.latency.truth import Truth
from headway.slo import STAMP, Slo, SloBook
from headway.study import recorded
from headway.study.history import RecordedRequest
from headway.study.on_sim import engine_of
from headway.study.recorded_book import document_of, toml_of
from headway.study.requests import book_of, calls_of, requests_of
from headway.study.spec import Load, Machine, RunSpec
from headway.study.virtual_run import execute, profiles
from headway.workloads.readers import load, read
from headway.workloads.reading import ReadOptions
from headway.workloads.schema import WorkloadRequest, slo_of, write_jsonl

FILE = """
unpromised = "last"
[classes.code]
ttft_s = 0.5
target = 0.95
[tenants.research]
share = 2
target = 0.9
"""
MACHINE = Machine("llama-3.1-8b@h100", kv_tokens=20_000)
BOOK = SloBook.parse(tomllib.loads(FILE))

names = st.text(min_size=1, max_size=100).filter(str.isprintable)


def request(name: str = "r0", **more: Any) -> WorkloadRequest:
    return WorkloadRequest(name, 0.0, 10, 5, **more)


# Workloads and traces.


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tenants=st.lists(st.none() | names, min_size=1, max_size=4))
def test_a_written_workload_keeps_its_tenants(tenants: list[str | None], tmp_path: Path) -> None:
    """Any name that is allowed, and none."""
    rows = [request(f"r{i}", tenant=tenant) for i, tenant in enumerate(tenants)]
    write_jsonl(tmp_path / "w.jsonl", rows)
    assert load(tmp_path / "w.jsonl") == rows


def test_a_csv_of_ours_may_have_the_column(tmp_path: Path) -> None:
    """An empty cell is nobody in particular."""
    path = tmp_path / "w.csv"
    path.write_text(
        "arrived_at_s,num_prompt_tokens,num_output_tokens,tenant\n0,10,5,research\n1,10,5,\n"
    )
    assert [r.tenant for r in load(path)] == ["research", None]


def test_a_column_of_another_format_may_say_who_pays(tmp_path: Path) -> None:
    """Named by --column tenant=…; else it is not read, and that is told."""
    path = tmp_path / "trace.csv"
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens,customer\n"
        "2024-05-10 00:00:00.0,10,5,research\n2024-05-10 00:00:01.0,10,5,\n"
    )
    reading = read(path, ReadOptions(columns=(("tenant", "customer"),)))
    assert [r.tenant for r in reading.requests] == ["research", None]
    assert (reading.columns["tenant"], reading.ignored) == ("customer", [])
    plain = read(path)
    assert [r.tenant for r in plain.requests] == [None, None]
    assert plain.ignored == ["customer"]


@pytest.mark.parametrize("tenant", [3, True, "", "a" * 101, "a\nb", ["a"]])
def test_what_is_no_name_is_a_mistake(tmp_path: Path, tenant: Any) -> None:
    """The sentence has the place and what is allowed, in our format and in others."""
    sentence = "line 1: {} must be text of 1 to 100 printable characters, not "
    path = tmp_path / "w.jsonl"
    row = {"arrived_at_s": 0, "num_prompt_tokens": 9, "num_output_tokens": 9, "tenant": tenant}
    path.write_text(json.dumps(row))
    with pytest.raises(UserError, match=sentence.format("tenant")):
        load(path)
    if tenant == "":  # Elsewhere an empty value is none, as of a class.
        return
    path.write_text(
        json.dumps({"timestamp": 0, "input_length": 9, "output_length": 9, "u": tenant})
    )
    with pytest.raises(UserError, match=sentence.format("u")):
        load(path, ReadOptions(columns=(("tenant", "u"),), time_unit="s"))


def test_the_file_says_what_a_tenant_may_use() -> None:
    """Share and target are of its table; requests without a promise may come last."""
    code = Slo(0.5, class_name="code", target=0.95)
    assert slo_of(request(slo_class="code"), BOOK) == code
    assert slo_of(request(slo_class="code", tenant="research"), BOOK) == replace(
        code, tenant="research", share=2.0, tenant_target=0.9
    )
    assert slo_of(request(tenant="other"), BOOK) == Slo(tenant="other", share=0.0)
    assert slo_of(request(tenant="other", ttft_slo_s=3.0), BOOK) == Slo(
        3.0, class_name="custom", tenant="other"
    )
    assert slo_of(request(), BOOK) == Slo(share=0.0)
    assert slo_of(request(tenant="x"), SloBook.empty()) == Slo(tenant="x")


def test_a_virtual_server_hears_who_pays() -> None:
    """The calls of a virtual run carry it as the HTTP edge would write it."""
    rows = [
        request("a", slo_class="code", tenant="research"),
        request("b", tenant="other"),
        request("c", slo_class="code"),
        request("d"),
    ]
    calls, slos = calls_of(rows, BOOK)
    assert [call.request_id for call in calls if STAMP in call.xargs] == ["a", "b"]
    assert {call.request_id: BOOK.resolve(call.xargs) for call in calls} == slos


# Recordings.

classes_named = names.filter(lambda name: name not in ("none", "custom"))
spans = st.none() | st.floats(0.001, 100.0)
shares = st.floats(0.1, 100.0)
targets = st.none() | st.floats(0.01, 0.99)


@st.composite
def told_slos(draw: st.DrawFn) -> list[Slo]:
    """Promises of one file: each class has one target, each tenant one share and one target."""
    tenants = draw(st.dictionaries(names, st.tuples(shares, targets), max_size=3))
    classes = draw(st.dictionaries(classes_named, targets, min_size=1, max_size=3))
    is_last = draw(st.booleans())
    made = []
    for _ in range(draw(st.integers(1, 6))):
        name = draw(st.sampled_from(sorted(classes)))
        tenant = draw(st.sampled_from(["", *sorted(tenants)]))
        share, target = tenants.get(tenant, (1.0, None))
        slo = Slo(
            ttft_s=draw(spans), jct_s=draw(spans), class_name=name, target=classes[name],
            tenant=tenant, share=share, tenant_target=target,
        )  # fmt: skip
        made.append(slo if slo.is_promise or not is_last else replace(slo, share=0.0))
    return made


@given(slos=told_slos())
def test_a_recording_served_again_has_the_same_promises(slos: list[Slo]) -> None:
    """As workload and SLO file: spans, class, who pays, shares and targets."""
    seen = [RecordedRequest(f"r{i}", slo, float(i), 10) for i, slo in enumerate(slos)]
    book = SloBook.parse(tomllib.loads(toml_of(document_of(slos))))
    assert [slo_of(one, book) for one in recorded.workload(seen)] == slos


def test_of_two_words_the_later_one_counts() -> None:
    """The file changed while the server ran; a share is not forgotten for want of a promise."""
    slo = Slo(1.0, class_name="a", target=0.9, tenant="t", share=2.0)
    later = replace(slo, target=0.8, share=3.0)
    last = Slo(tenant="t", share=0.0)
    assert document_of([slo, later, last]) == {
        "unpromised": "last",
        "classes": {"a": {"target": 0.8}, "none": {}},
        "tenants": {"t": {"share": 3.0}},
    }
    assert document_of([last, replace(last, share=3.0)])["unpromised"] == "fair"


@pytest.fixture
def load_of_tenants(tmp_path: Path) -> Load:
    """Requests of two tenants and of nobody, with and without a promise."""
    rows = [
        WorkloadRequest(
            f"r{i}", i / 4, 200, 10, slo_class="code" if i % 2 else None,
            tenant=("research", "other", None)[i % 3],
        )
        for i in range(24)
    ]  # fmt: skip
    write_jsonl(tmp_path / "w.jsonl", rows)
    (tmp_path / "slo.toml").write_text(FILE)
    return Load(str(tmp_path / "w.jsonl"), slo_file=str(tmp_path / "slo.toml"))


def assert_same_payers(found: recorded.RecordedRun, load: Load) -> None:
    """Whoever comes out of a recording pays as the one that went in, in the same order."""
    asked = [slo_of(r, book_of(load)) for r in requests_of(load)]
    book = SloBook.parse(found.book)
    assert [slo_of(r, book) for r in found.requests] == asked
    assert {slo.tenant for slo in asked} == {"", "research", "other"}


def test_a_recording_of_a_server_keeps_who_paid(load_of_tenants: Load, tmp_path: Path) -> None:
    """What the core heard is in the file, and in the workload that is made of it."""
    book, profile = book_of(load_of_tenants), profiles.load(MACHINE.gpu)
    path = tmp_path / "recording.jsonl"
    with path.open("wb") as out:
        core = Journal(registry.build("fcfs"), Lines(out))
        run = SimRun(engine_of(MACHINE, profile), Truth(profile), core, book=book)
        run.run(calls_of(requests_of(load_of_tenants), book)[0])
        core.close()
    assert_same_payers(recorded.read(path), load_of_tenants)


def test_a_kept_run_keeps_who_paid(load_of_tenants: Load, tmp_path: Path) -> None:
    """So does the run that simulate --keep writes, and both engines report by tenant."""
    result = execute(RunSpec("headway", "sim", load_of_tenants, MACHINE), keep_steps=True)
    assert_same_payers(recorded.read(result.keep(tmp_path)), load_of_tenants)
    assert list(result.run["per_tenant"]) == ["", "other", "research"]
    (tmp_path / "again").mkdir()
    found = recorded.read(result.keep(tmp_path))
    trace = found.save(tmp_path / "again")
    again = execute(
        RunSpec(
            "headway", "sim", Load(str(trace), slo_file=str(trace.with_name("slo.toml"))), MACHINE
        )
    )
    assert again.run["per_tenant"].keys() == result.run["per_tenant"].keys()
    for name, figures in result.run["per_tenant"].items():
        for key in ("share", "target", "num_requests", "num_attained"):
            assert again.run["per_tenant"][name].get(key) == figures.get(key)
