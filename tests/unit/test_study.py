"""Studies: one run, many runs, the tuned baselines, capacity, recorded runs."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headway.engines.virtual import Outcome
from headway.errors import UserError
from headway.metrics import define, kept
from headway.slo import Slo
from headway.study import recorded, stock
from headway.study.highest_rate import highest_rate, over_seeds
from headway.study.requests import book_of, calls_of, class_ranks, requests_of
from headway.study.spec import Knobs, Load, Machine, RunSpec
from headway.study.sweep import FinishedRuns, run_all
from headway.study.virtual_run import execute, parse_drift, record_of
from headway.workloads.schema import WorkloadRequest, write_jsonl

MACHINE = Machine("llama-3.1-8b@h100", kv_tokens=20_000)


def spec(**changes: Any) -> RunSpec:
    load = Load("mixed", rate_rps=6.0, num_requests=60, seed=1)
    return replace(RunSpec("slack", "sim", load, MACHINE), **changes)


def test_a_run_is_a_function_of_its_spec() -> None:
    """The same spec gives the same figures, plan times aside; another seed gives others."""
    one, two = execute(spec()).run, execute(spec()).run
    del one["plan_time_us"], two["plan_time_us"]
    assert one == two
    assert one["num_requests"] == 60
    assert one["lost"] == 0
    other = execute(spec().at(6.0, 2)).run
    assert other["ttft_s"] != one["ttft_s"]


def test_different_runs_have_different_keys() -> None:
    """Whatever can change a result is part of the key."""
    base = spec()
    variants = [
        base,
        base.at(7.0),
        base.at(6.0, 2),
        replace(base, policy="fcfs"),
        replace(base, overload="refuse"),
        replace(base, options={"max_wait_s": 60}),
        replace(base, knobs=Knobs(max_num_batched_tokens=512)),
        replace(base, machine=replace(MACHINE, step_time_band=0.2)),
        replace(base, load=replace(base.load, digest="other contents")),
    ]
    assert len({variant.key() for variant in variants}) == len(variants)


def test_the_step_time_band_scales_every_step() -> None:
    """A machine whose steps last 20 % longer gives later tokens."""
    run = {
        band: execute(spec(machine=replace(MACHINE, step_time_band=band))) for band in (0.0, 0.2)
    }
    assert run[0.2].run["tbt_s"]["p50"] > 1.1 * run[0.0].run["tbt_s"]["p50"]
    assert run[0.2].run["step_time_band"] == 0.2


def test_a_kept_run_reads_back(tmp_path: Path) -> None:
    """What is written holds every step and request, and adds up."""
    result = execute(spec(), keep_steps=True)
    read = kept.read(result.keep(tmp_path))
    assert len(read.requests) == 60
    assert len(read.timeline) > 60
    assert read.timeline.capacity_tokens == 20_000
    assert (read.timeline.held_tokens <= 20_000).all()
    emitted = sum(len(r.emitted_at_s) for r in read.requests)
    decoded = read.timeline.num_decodes.sum()
    first = sum(bool(r.emitted_at_s) for r in read.requests)
    resumed = sum(r.num_preemptions for r in read.requests)
    assert decoded + first <= emitted <= decoded + first + resumed
    for request in read.requests:
        assert request.phases[0][1] == "queued"
        assert [at for at, _ in request.phases] == sorted(at for at, _ in request.phases)


def test_a_kept_run_from_before_there_was_a_pause_is_read_by_what_it_meant(tmp_path: Path) -> None:
    """Its promises allow any pause, here and where it is served again; now it says so itself."""
    result = execute(spec(), keep_steps=True)
    document = result.document()
    assert document["run"]["definition"] == define.DEFINITION
    new = kept.KeptRun.parse(json.loads(json.dumps(document)))
    assert {r.slo for r in new.requests} == {record.slo for record in result.records}
    del document["run"]["definition"]
    for request in document["requests"]:
        del request["slo"]["pause_s"], request["slo"]["tpot_s"]
    old = kept.KeptRun.parse(json.loads(json.dumps(document)))
    assert define.definition_of(old.run) == define.PLAIN
    assert {r.slo.longest_pause_s for r in old.requests} == {math.inf}
    path = tmp_path / "old.run.json.gz"
    path.write_bytes(gzip.compress(json.dumps(document, separators=(",", ":")).encode()))
    assert {r.pause_slo_s for r in recorded.read(path).requests} == {math.inf}


def test_a_run_counted_otherwise_is_made_again(tmp_path: Path) -> None:
    """A sweep in a folder with runs from before does not mix them with its own."""
    kept_run = execute(spec(), keep_steps=True)
    path = kept_run.keep(tmp_path)
    ledger = FinishedRuns(keep=tmp_path)
    assert ledger.get(spec()) == json.loads(json.dumps(kept_run.run))
    document = kept_run.document()
    del document["run"]["definition"]
    path.write_bytes(gzip.compress(json.dumps(document).encode()))
    assert ledger.get(spec()) is None


def test_a_sweep_goes_on_where_it_was(tmp_path: Path) -> None:
    """Runs that are noted are not run again, a half-written last line is ignored."""
    path = tmp_path / "sweep.part"
    first = run_all([spec()], FinishedRuns(path), workers=1)
    with path.open("a") as notes:
        notes.write('{"key": "half')
    told: list[str] = []
    marked = path.read_text().replace('"policy": "slack"', '"policy": "from the notes"')
    path.write_text(marked)
    both = run_all(
        [spec(), spec().at(3.0)], FinishedRuns(path), 1, lambda s, r: told.append(r["policy"])
    )
    assert both.keys() > first.keys()
    assert sorted(told) == ["from the notes", "slack"]
    ledger = FinishedRuns(path)
    ledger.close()
    assert not path.exists()


def test_processes_give_what_one_gives() -> None:
    """Runs side by side are the runs one after another, in the order asked for."""
    specs = [spec().at(rate) for rate in (3.0, 6.0, 9.0)]
    alone = run_all(specs, FinishedRuns(), workers=1)
    together = run_all(specs, FinishedRuns(), workers=2)
    assert list(alone) == list(together)
    for key, run in alone.items():
        assert run["attainment"] == together[key]["attainment"]
        assert run["ttft_s"] == together[key]["ttft_s"]


# -- tuned stock ------------------------------------------------------------------------------


def fake_runs(quality: Any) -> Any:
    """Return a runner whose attainment is ``quality(knobs, rate)``, and what it was asked."""
    asked: list[RunSpec] = []

    def run(specs: Sequence[RunSpec]) -> Mapping[str, Any]:
        asked.extend(specs)
        return {
            s.key(): {"policy": s.policy, "attainment": quality(s.knobs, s.load.rate_rps)}
            for s in specs
        }

    return run, asked


def test_hindsight_is_best_at_each_load_and_static_overall() -> None:
    """Small budgets win at one rate, large ones at the other, the middle in the mean."""

    def quality(knobs: Knobs, rate: float) -> float:
        tokens = knobs.max_num_batched_tokens or 8192
        middle = 0.1 if tokens == 1024 else 0.0
        return (256 / max(tokens, 256) if rate == 1.0 else min(tokens, 4096) / 4096) + 4 * middle

    run, asked = fake_runs(quality)
    tried = stock.sweep(spec(policy="stock", engine="vllm"), [1.0, 2.0], [0, 1], run)
    assert tried.best_at(1.0).max_num_batched_tokens == 128
    assert (tried.best_at(2.0).max_num_batched_tokens or 8192) >= 4096
    assert tried.best_overall() == max(tried.runs, key=lambda k: quality(k, 1.0) + quality(k, 2.0))
    hindsight = tried.as_policy("stock-hindsight")
    assert [r["policy"] for r in hindsight] == ["stock-hindsight"] * 4
    static = tried.as_policy("stock-static")
    total = sum(r["attainment"] for r in hindsight)
    assert total >= sum(r["attainment"] for r in static)
    assert all(s.policy == "stock" for s in asked)
    assert not any(s.knobs.max_num_queued_tokens for s in asked)


def test_caps_on_the_queue_are_tried_where_requests_may_be_refused() -> None:
    """In refuse mode the sweep ends with vLLM's own cap on queued tokens."""
    run, _ = fake_runs(lambda knobs, rate: float(knobs.max_num_queued_tokens == 4096))
    tried = stock.sweep(spec(policy="stock", overload="refuse"), [1.0], [0], run)
    assert tried.best_at(1.0).max_num_queued_tokens == 4096
    assert "--max-num-queued-tokens 4096" in tried.best_at(1.0).flags


def test_stock_is_tuned_with_the_prefix_cache_of_the_machine() -> None:
    """Every setting is tried with caching on, where everybody else has it on."""
    run, asked = fake_runs(lambda knobs, rate: 1.0)
    base = spec(policy="stock", engine="vllm")
    cached = replace(base, machine=replace(base.machine, prefix_caching=True))
    stock.sweep(cached, [1.0], [0], run)
    assert all(s.machine.prefix_caching for s in asked)


# -- capacity ---------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [0.01, 1.0, 7.0, 500.0])
def test_capacity_is_where_attainment_crosses(start: float) -> None:
    """From any start the bisection ends within 2 % below the crossing."""
    found = highest_rate(lambda rate: 1.0 / (1.0 + (rate / 30.0) ** 4), 0.9, start)
    crossing = 30.0 * (1 / 0.9 - 1) ** 0.25
    assert crossing / 1.02 <= found <= crossing


def test_a_promise_never_kept_has_no_capacity() -> None:
    """And one always kept stops at the largest rate tried."""
    assert highest_rate(lambda rate: 0.5, 0.9, 4.0) == 0.0
    assert highest_rate(lambda rate: 1.0, 0.9, 4.0) >= 5e4


def test_the_interval_is_students() -> None:
    """Three seeds: mean plus and minus 4.303 standard errors; one seed has none."""
    three = over_seeds([9.0, 10.0, 11.0], 0.9)
    assert three.mean_rps == 10.0
    assert three.high_rps == pytest.approx(10.0 + 4.302653 / math.sqrt(3), rel=1e-6)
    assert over_seeds([9.0], 0.9).low_rps is None


# -- requests and records ---------------------------------------------------------------------


def test_seeds_are_stretches_of_a_trace(tmp_path: Path) -> None:
    """Seed k starts k times the count into the file, from time 0, and wraps."""
    path = tmp_path / "trace.jsonl"
    write_jsonl(path, [WorkloadRequest(f"q{i}", 0.5 * i, 10 + i, 5) for i in range(10)])
    load = Load(str(path), num_requests=4)
    names = {k: [r.id for r in requests_of(replace(load, seed=k))] for k in range(3)}
    assert names[0] == ["q0", "q1", "q2", "q3"]
    assert names[1] == ["q4", "q5", "q6", "q7"]
    assert names[2] == names[0]
    assert requests_of(replace(load, seed=1))[0].arrived_at_s == 0.0
    faster = requests_of(replace(load, rate_rps=6.0))
    assert faster[-1].arrived_at_s == pytest.approx(3 / 6.0)


def test_a_workload_needs_a_rate_and_a_trace_a_file() -> None:
    """Each mistake gets a sentence."""
    with pytest.raises(UserError, match="give --rate"):
        requests_of(Load("mixed"))
    with pytest.raises(UserError, match="neither a file nor a workload"):
        requests_of(Load("no-such", 1.0))


def test_calls_carry_the_class_and_the_promise() -> None:
    """The policy learns lengths per class, so the class travels with the call."""
    load = Load("mixed", 5.0, 40)
    calls, slos = calls_of(requests_of(load), book_of(load), by_class=True)
    classes = {slo.class_name for slo in slos.values()}
    assert len(classes) == 3
    for call in calls:
        slo = slos[call.request_id]
        assert call.xargs["slo_class"] == slo.class_name
        assert book_of(load).resolve(call.xargs) == slo
    assert len({call.priority for call in calls}) == 3


def test_no_call_tells_its_length() -> None:
    """The limit is the same for all, and above every output."""
    requests = requests_of(Load("long-outputs", 2.0, 80))
    calls, _ = calls_of(requests, book_of(Load("long-outputs")))
    (bound,) = {call.max_output_tokens for call in calls}
    assert bound is not None
    assert bound > max(r.num_output_tokens for r in requests)


def test_the_tightest_class_goes_first() -> None:
    """Ranks follow the time to the first token, or the whole job's."""
    slos = [
        Slo(ttft_s=5.0, class_name="slow"),
        Slo(ttft_s=0.5, class_name="fast"),
        Slo(jct_s=60.0, class_name="batch"),
        Slo(class_name="none"),
    ]
    assert class_ranks(slos) == {"fast": 0, "slow": 1, "batch": 2, "none": 3}


@pytest.mark.parametrize(
    ("finish", "stop", "outcome"),
    [
        ("stop", None, "finished"),
        ("length", None, "finished"),
        ("abort", "headway:refused:1.5:busy", "refused"),
        ("abort", "headway:invalid:too long", "failed"),
        ("abort", None, "failed"),
        (None, None, "failed"),
    ],
)
def test_outcomes_become_records(finish: str | None, stop: str | None, outcome: str) -> None:
    """Only a natural end counts as finished; refused requests are told apart."""
    call = calls_of(requests_of(Load("alpaca", 1.0, 1)), book_of(Load("alpaca")))[0][0]
    seen = Outcome(call, finish_reason=finish, stop_reason=stop)
    assert record_of(seen, {call.request_id: Slo()}).outcome == outcome


def test_drift_is_read_or_explained() -> None:
    """Kind, amount and steps."""
    assert parse_drift("jump:0.5@3000").steps == 3000
    for bad in ("jump", "jump:x@3", "fall:0.1@10", "jump:0.5@0"):
        with pytest.raises(UserError):
            parse_drift(bad)


# -- recorded runs ----------------------------------------------------------------------------


def test_a_kept_run_replays_as_itself(tmp_path: Path) -> None:
    """Served again on the same machine by the same policy it ends the same."""
    result = execute(spec(), keep_steps=True)
    found = recorded.read(result.keep(tmp_path))
    assert found.num_guessed == 0
    trace = found.save(tmp_path)
    again = execute(spec(load=Load(str(trace), slo_file=str(tmp_path / "slo.toml"), seed=1)))
    assert again.run["attainment"] == result.run["attainment"]
    assert again.run["ttft_s"]["p95"] == pytest.approx(result.run["ttft_s"]["p95"], abs=2e-3)


def test_what_did_not_end_gets_the_median_of_its_class(tmp_path: Path) -> None:
    """A request that was hung up on has no length of its own."""
    rows: list[dict[str, Any]] = []
    for i, (length, reason) in enumerate(
        [(3, "stopped"), (5, "length"), (7, "stopped"), (1, "aborted")]
    ):
        name = f"q{i}"
        slo = {"ttft_s": 1.0, "tbt_s": None, "jct_s": None, "weight": 1.0, "class_name": "chat"}
        times = {"at_s": float(i), "arrived_at_s": float(i)}
        sizes = {"num_prompt_tokens": 9, "max_output_tokens": 50}
        rows.append({"event": "Arrived", "request_id": name, **times, **sizes, "slo": slo})
        rows.append({"event": "StepDone", "at_s": i + 0.5, "num_new_tokens": {name: length}})
        rows.append({"event": "Finished", "at_s": i + 0.6, "request_id": name, "reason": reason})
    path = tmp_path / "rec.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = recorded.read(path)
    assert [r.num_output_tokens for r in found.requests] == [3, 5, 7, 5]
    assert found.num_guessed == 1
    path.write_text('{"what": 1}\n')
    with pytest.raises(UserError, match="line 1"):
        recorded.read(path)


@pytest.mark.parametrize("policy", ["headway", "fcfs"])
def test_what_is_too_long_is_what_the_engine_cuts_or_refuses(tmp_path: Path, policy: str) -> None:
    """Counted from lengths alone, it is what happened: by the token, at the edge of the cache."""
    rows = [(100, 50), (976, 48), (976, 49), (900, 300), (1023, 1), (1024, 1), (2000, 5)]
    path = tmp_path / "long.jsonl"
    write_jsonl(path, [WorkloadRequest(f"r{i}", float(i), *row) for i, row in enumerate(rows)])
    machine = Machine("llama-3.1-8b@h100", kv_tokens=1030)
    result = execute(RunSpec(policy, "sim", Load(str(path)), machine))
    lengths = {f"r{i}": output for i, (_, output) in enumerate(rows)}
    ended = [r for r in result.records if r.finished]
    cut = [r.id for r in ended if r.num_output_tokens < lengths[r.id]]
    refused = [r.id for r in result.records if r.outcome == "failed"]
    assert result.run["too_long"] == {"cut": tuple(cut), "never_fit": tuple(refused)}
    assert (cut, refused) == (["r2", "r3"], ["r5", "r6"])
