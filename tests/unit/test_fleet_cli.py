"""Fleets as a user meets them: ``simulate`` over several servers, ``capacity --replicas auto``."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headway.cli.main import main
from headway.errors import UserError
from headway.latency import profile as profiles
from headway.study.fleet_size import fewest_servers, gpus_of, span_s
from headway.study.spec import Load, Machine, RunSpec
from headway.workloads.arrivals import busiest
from headway.workloads.schema import WorkloadRequest, write_jsonl

H100, A100, SLOW = "llama-3.1-8b@h100", "llama-3.1-8b@a100", "llama-3.1-8b@rtx-4090"
SMALL = ["--workload", "mixed", "--requests", "60", "--kv-tokens", "20000", "--workers", "1"]


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(args)
    return int(caught.value.code or 0)


def test_unequal_servers_and_what_each_did(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The summary counts by server, and the line below the table says the same."""
    out = tmp_path / "out.json"
    code = run("simulate", "--workload", "mixed", "--requests", "90", "--kv-tokens", "40000",
               "--workers", "1", "--rate", "45", "--replica-gpu", f"{H100}:2,{SLOW}:1",
               "--retry-elsewhere", "1", "--signal-age", "0.5", "--overload", "refuse",
               "--json", str(out))  # fmt: skip
    assert code == 0
    [found] = json.loads(out.read_text())["runs"]
    fleet = found["fleet"]
    assert len(fleet["routed"]) == len(fleet["refused"]) == 3
    assert sum(fleet["routed"]) == 90 + fleet["tried_elsewhere"]
    assert sum(fleet["refused"]) == found["outcomes"]["refused"] + fleet["tried_elsewhere"]
    assert 0 < fleet["saved"] <= fleet["tried_elsewhere"]
    assert found["gpu"] == f"2 x {H100} + 1 x {SLOW}"
    said = " ".join(capsys.readouterr().out.split())
    assert f"sent to each server {', '.join(map(str, fleet['routed']))}" in said
    tried, saved = fleet["tried_elsewhere"], fleet["saved"]
    assert f"tried elsewhere {tried}, of them kept {saved}." in said


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["--replica-gpu", "h100"], "--replica-gpu must be profiles and numbers of servers"),
        (["--replica-gpu", "h100:two"], "--replica-gpu must be profiles and numbers of servers"),
        (["--replica-gpu", ","], "--replica-gpu must be profiles and numbers of servers"),
        (["--replica-gpu", "x:2"], "GPU profile 'x' is not known; the profiles are"),
        (["--replica-gpu", f"{H100}:0"], "--replica-gpu must be a whole number from 1"),
        (["--replica-gpu", f"{H100}:9999"], "at most 4096 servers, not 9999"),
        (["--replica-gpu", f"{H100}:2", "--replicas", "2"], "Give --replicas or --replica-gpu"),
        (["--replica-gpu", f"{H100}:2", "--gpu", A100], "Give --gpu or --replica-gpu, not both"),
        (["--replica-gpu", f"{H100}:2", "--engine", "vllm"], "--engine vllm runs one server"),
        (["--retry-elsewhere", "1"], "--retry-elsewhere needs another server"),
        (["--replicas", "2", "--retry-elsewhere", "-1"], "must be a whole number from 0 on"),
        (["--replicas", "2", "--signal-age", "old"], "--signal-age: seconds must be a number"),
        (["--replicas", "2", "--router", "best"], "round-robin, least-work, least-kv, pressure"),
        (["--replicas", "auto"], "--replicas must be a whole number from 1"),
        (["--replica-gpu", f"{H100}:2", "--bound"], "leave out --replicas and --replica-gpu"),
    ],
)
def test_a_mistake_gets_one_sentence(
    given: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything runs, with what is allowed."""
    assert run("simulate", *SMALL, "--rate", "9", *given) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") <= 1


def test_runs_kept_before_fleets_are_still_found() -> None:
    """What a fleet adds is in a run's key only where it is used; this key is from before."""
    spec = RunSpec("headway", "sim", Load("mixed", 9.0, 60, 3), Machine(H100))
    assert spec.key() == "headway__sim__r9__s3__9485e886b2"
    machines = [
        replace(spec.machine, num_retries=1),
        replace(spec.machine, signal_age_s=1.0),
        replace(spec.machine, replica_gpus=((H100, 2),)),
    ]
    keys = {spec.key()} | {replace(spec, machine=machine).key() for machine in machines}
    assert len(keys) == 4
    assert replace(spec, load=replace(spec.load, busiest_s=60.0)).key() not in keys


@pytest.mark.parametrize("start", [1, 3, 7, 50])
@pytest.mark.parametrize(("needed", "most"), [(1, 64), (2, 64), (5, 64), (64, 64), (9, 8)])
def test_the_fewest_servers_are_found(start: int, needed: int, most: int) -> None:
    """From any start, with its predecessor tried; none where the most are too few."""
    tried: set[int] = set()

    def kept_at(count: int) -> float:
        tried.add(count)
        return 1.0 if count >= needed else 0.8 * count / needed

    found = fewest_servers(kept_at, 0.9, min(start, most), most)
    assert found == (needed if needed <= most else None)
    if needed <= most:
        assert {needed, needed - 1} - {0} <= tried


def test_more_servers_may_keep_less() -> None:
    """Where doubling brings nothing twice in a row, fewer are tried, and no more than are."""
    tried: list[int] = []

    def kept_at(count: int) -> float:
        tried.append(count)
        return {1: 0.2, 2: 0.7, 3: 0.9, 4: 0.95, 5: 0.93}.get(count, 0.4)

    assert fewest_servers(kept_at, 0.9, 8, 1000) == 3
    assert max(tried) == 32
    assert fewest_servers(kept_at, 0.96, 8, 1000) is None
    assert max(tried) == 32
    assert min(tried) == 1


def trace(times_s: list[float]) -> list[WorkloadRequest]:
    return [WorkloadRequest(f"r{i}", at_s, 2000, 20) for i, at_s in enumerate(times_s)]


def test_the_busiest_stretch() -> None:
    """The most arrivals within so many seconds, the first where two have as many."""
    calls = trace([0.0, 1.0, 10.0, 12.0, 19.9, 20.0, 40.0, 41.0, 42.0])
    assert [r.arrived_at_s for r in busiest(calls, 10.0)] == [10.0, 12.0, 19.9]
    assert [r.arrived_at_s for r in busiest(calls, 10.1)] == [10.0, 12.0, 19.9, 20.0]
    assert busiest(calls, 100.0) == calls


def test_a_rate_needs_time_to_pass() -> None:
    """Arrivals at one instant say nothing of servers."""
    assert span_s(trace([0.0, 1.0, 2.0])) == 3.0
    with pytest.raises(UserError, match="have no rate"):
        span_s(trace([1.0, 1.0]))


def test_gpus_of_a_server() -> None:
    """As many as it is parallel over."""
    assert [gpus_of(profiles.load(n)) for n in (H100, "llama-3.1-70b@h100x4")] == [1, 4]


def size(tmp_path: Path, *args: str) -> dict[str, Any]:
    out = tmp_path / "sizes.json"
    common = ("--replicas", "auto", "--policy", "fcfs", "--kv-tokens", "20000", "--workers", "1")
    assert run("capacity", *common, "--json", str(out), *args) == 0
    return dict(json.loads(out.read_text()))


def test_capacity_says_how_many_servers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The fewest that keep the target, one fewer does not, and what a kept promise costs."""
    found = size(tmp_path, "--workload", "mixed", "--requests", "120", "--rate", "60",
                 "--target", "0.9", "--gpu-hour-cost", "3")  # fmt: skip
    [row] = found["fleets"]
    kept = {int(count): share for count, share in row["kept_by_servers"].items()}
    assert kept[row["servers"]] >= 0.9 > kept[row["servers"] - 1]
    gpu_s = row["servers"] * (120 / 60) / (120 * kept[row["servers"]])
    assert row["gpu_s_per_kept"] == pytest.approx(gpu_s, rel=0.1)
    assert row["cost_per_1000_kept"] == pytest.approx(1000 * row["gpu_s_per_kept"] * 3 / 3600)
    assert found["demand"] == {"rate_rps": 60.0, "said": "mixed at 60/s."}
    said = " ".join(capsys.readouterr().out.split())
    assert f"{kept[row['servers'] - 1]:.1%}" in said
    assert "a kept promise" not in said


def test_a_trace_longer_than_an_hour_is_planned_for_its_busiest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was inferred is said; growth multiplies the rate; more growth needs no fewer servers."""
    quiet, busy = [400.0 * i for i in range(10)], [4000.0 + 36.0 * i for i in range(100)]
    path = tmp_path / "day.jsonl"
    write_jsonl(path, trace([*quiet, *busy, 9000.0]))
    found = size(tmp_path, "--trace", str(path), "--target", "0.9")
    assert found["demand"]["rate_rps"] == pytest.approx(1 / 36, rel=1e-3)
    said = " ".join(capsys.readouterr().out.split())
    assert "busiest hour begins 4000 s into it: 100 requests" in said
    assert found["fleets"][0]["servers"] == 1
    grown = size(tmp_path, "--trace", str(path), "--target", "0.9", "--growth", "4000")
    assert grown["demand"]["rate_rps"] == pytest.approx(4000 / 36, rel=1e-3)
    assert grown["fleets"][0]["servers"] > 1


def test_routing_by_prefix_is_compared_where_prompts_begin_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second search, and a sentence on what it saves."""
    found = size(tmp_path, "--workload", "turns", "--requests", "60", "--rate", "60",
                 "--target", "0.9", "--router", "least-work")  # fmt: skip
    assert [row["router"] for row in found["fleets"]] == ["least-work", "prefix"]
    assert "routing by prefix saves" in capsys.readouterr().out


def test_an_impossible_target_is_no_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that keep the most are named, and what they keep."""
    slo = tmp_path / "slo.toml"
    slo.write_text('default = "a"\n[classes.a]\nttft_s = 0.001\n')
    path = tmp_path / "few.jsonl"
    write_jsonl(path, trace([0.0, 1.0, 2.0, 3.0, 4.0]))
    found = size(tmp_path, "--trace", str(path), "--slo", str(slo), "--target", "0.9")
    assert found["fleets"][0]["servers"] is None
    assert found["fleets"][0]["kept_by_servers"].keys() >= {"1"}
    said = " ".join(capsys.readouterr().out.split())
    assert "no number of servers tried, up to 4, keeps 90%; 1 server kept the most, 0.0%." in said


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (["--replicas", "auto"], "'mixed' has no recorded times; give --rate"),
        (["--replicas", "auto", "--rate", "0"], "--rate: the rate must be a number greater than 0"),
        (["--replicas", "auto", "--rate", "9", "--growth", "-1"], "--growth: the growth must be"),
        (["--replicas", "auto", "--rate", "9", "--gpu-hour-cost", "x"], "--gpu-hour-cost: the"),
        (["--replicas", "auto", "--rate", "9", "--start", "4"], "--start is a rate to begin with"),
        (["--replicas", "auto", "--rate", "9", "--engine", "vllm"], "vllm runs one server"),
        (["--replicas", "auto", "--replica-gpu", f"{H100}:2"], "Give --replicas or --replica-gpu"),
        (["--rate", "9"], "--rate goes with --replicas auto"),
        (["--gpu-hour-cost", "2"], "--gpu-hour-cost goes with --replicas auto"),
    ],
)
def test_capacity_says_what_is_wrong(
    given: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one sentence, before anything runs."""
    assert run("capacity", *SMALL, *given) == 2
    assert sentence in capsys.readouterr().err
