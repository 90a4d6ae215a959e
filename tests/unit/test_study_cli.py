"""``headway simulate``, ``capacity`` and ``replay`` as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from headway.cli.main import main
from headway.workloads.schema import WorkloadRequest, write_jsonl

SMALL = ["--workload", "mixed", "--requests", "40", "--kv-tokens", "20000", "--workers", "1"]

FIELDS = {
    "policy", "engine", "rate_rps", "seed", "num_requests", "attainment", "ttft_attainment",
    "tbt_attainment", "goodput_rps", "output_tokens_per_s", "duration_s", "ttft_s", "tbt_s",
    "preemptions", "plan_time_us", "lost", "per_class",
}  # fmt: skip
"""The fields of one run's summary."""


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(args)
    return int(caught.value.code or 0)


def runs_in(path: Path) -> list[dict[str, Any]]:
    document = json.loads(path.read_text())
    assert document["schema"] == 1
    return list(document["runs"])


def test_simulate_writes_every_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Policies by rates by seeds, with every promised field, and no notes left behind."""
    out = tmp_path / "out.json"
    code = run("simulate", *SMALL, "--policy", "slack,fcfs", "--rate", "3,9", "--seed", "0,1",
               "--json", str(out))  # fmt: skip
    assert code == 0
    runs = runs_in(out)
    assert {(r["policy"], r["rate_rps"], r["seed"]) for r in runs} == {
        (p, r, s) for p in ("slack", "fcfs") for r in (3.0, 9.0) for s in (0, 1)
    }
    assert all(r.keys() >= FIELDS for r in runs)
    assert all(set(r["ttft_s"]) >= {"p50", "p95", "p99"} for r in runs)
    assert all(r["lost"] == 0 for r in runs)
    assert list(tmp_path.iterdir()) == [out]
    assert "slack" in capsys.readouterr().out


def test_the_band_is_one_option_away(tmp_path: Path) -> None:
    """Three runs in place of one, told apart."""
    out = tmp_path / "out.json"
    assert run("simulate", *SMALL, "--rate", "3", "--step-time-band", "--json", str(out)) == 0
    assert [r["step_time_band"] for r in runs_in(out)] == [0.0, -0.2, 0.2]


def test_refused_requests_are_offered_requests(tmp_path: Path) -> None:
    """In refuse mode at overload some get 429, and they count as misses."""
    out = tmp_path / "out.json"
    code = run("simulate", *SMALL, "--rate", "60", "--overload", "refuse", "--requests", "300",
               "--json", str(out))  # fmt: skip
    assert code == 0
    (one,) = runs_in(out)
    assert one["outcomes"]["refused"] > 0
    assert one["num_requests"] == 300
    assert one["attainment"] <= 1 - one["outcomes"]["refused"] / 300


def test_a_kept_run_replays_under_another_policy(tmp_path: Path) -> None:
    """simulate --keep, then replay with another policy and half the cache."""
    keep = tmp_path / "runs"
    assert run("simulate", *SMALL, "--rate", "6", "--keep", str(keep)) == 0
    (kept,) = keep.iterdir()
    out = tmp_path / "out.json"
    code = run("replay", str(kept), "--policy", "slack,fcfs", "--kv-tokens", "10000",
               "--workers", "1", "--json", str(out))  # fmt: skip
    assert code == 0
    assert [r["policy"] for r in runs_in(out)] == ["slack", "fcfs"]
    assert all(r["num_requests"] == 40 for r in runs_in(out))


def chained(tmp_path: Path) -> Path:
    """A trace in which every prompt is 100 tokens longer than the one before, on 60 requests."""
    rows = [
        WorkloadRequest(
            f"r{i}",
            float(i),
            2_000 + 100 * i,
            5,
            hash_ids=tuple(range((2_000 + 100 * i) // 16)),
            hash_tokens=16,
        )
        for i in range(60)
    ]
    path = tmp_path / "chained.jsonl"
    write_jsonl(path, rows)
    return path


def test_prompts_that_begin_alike_are_cached_unless_told_not_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By default as with the flag; the title says so; without, all of each prompt is computed."""
    out, trace = tmp_path / "out.json", chained(tmp_path)
    ttft_s = {}
    for flag in ("", "--prefix-caching", "--no-prefix-caching"):
        args = ["simulate", "--trace", str(trace), "--policy", "fcfs", "--workers", "1"]
        assert run(*args, *([flag] if flag else []), "--json", str(out)) == 0
        assert (", prefix caching" in capsys.readouterr().out) == (flag != "--no-prefix-caching")
        (one,) = runs_in(out)
        ttft_s[flag] = one["ttft_s"]["p50"]
    assert ttft_s[""] == ttft_s["--prefix-caching"]
    assert ttft_s[""] < 0.2 * ttft_s["--no-prefix-caching"]


def test_a_replay_says_that_it_cannot_know_what_began_alike(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A kept run has no chains: below the table it is said that prompts are computed whole."""
    keep = tmp_path / "runs"
    small = ["--workload", "turns", "--requests", "10", "--rate", "3", "--workers", "1"]
    assert run("simulate", *small, "--keep", str(keep)) == 0
    (kept,) = keep.iterdir()
    assert run("replay", str(kept), "--workers", "1") == 0
    assert "every prompt is computed whole" in " ".join(capsys.readouterr().out.split())


def test_where_nobody_begins_alike_nothing_is_cached(capsys: pytest.CaptureFixture[str]) -> None:
    """And sessions begin alike."""
    small = ["--requests", "10", "--rate", "3", "--policy", "fcfs", "--workers", "1"]
    assert run("simulate", "--workload", "mixed", *small) == 0
    assert "prefix caching" not in capsys.readouterr().out
    assert run("simulate", "--workload", "turns", *small) == 0
    assert "turns on llama-3.1-8b@h100, prefix caching, Headway's" in capsys.readouterr().out


def test_capacity_says_how_sure_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line a policy and target; attainment at that rate is at least the target."""
    out = tmp_path / "out.json"
    code = run("capacity", *SMALL, "--policy", "slack", "--target", "0.9", "--seed", "0,1",
               "--json", str(out))  # fmt: skip
    assert code == 0
    (row,) = json.loads(out.read_text())["capacities"]
    assert row["low_rps"] <= row["mean_rps"] <= row["high_rps"]
    assert len(row["per_seed_rps"]) == 2
    check = tmp_path / "check.json"
    rate = str(row["per_seed_rps"][0])
    again = ("--policy", "slack", "--rate", rate)
    assert run("simulate", *SMALL, *again, "--json", str(check)) == 0
    assert runs_in(check)[0]["attainment"] >= 0.9
    assert "95 % interval" in capsys.readouterr().out


MISTAKES = [
    (["simulate"], "either --trace FILE or --workload NAME"),
    (["simulate", "--workload", "nope", "--rate", "1"], "mixed"),
    (["simulate", "--trace", "/no/such/file"], "no such file"),
    (["simulate", "--workload", "mixed"], "give --rate"),
    (["simulate", *SMALL, "--rate", "0"], "--rate"),
    (["simulate", *SMALL, "--rate", "3,x"], "--rate"),
    (["simulate", *SMALL, "--rate", "3", "--policy", "best"], "the policies are"),
    (["simulate", *SMALL, "--rate", "3", "--policy", "stock"], "--engine vllm"),
    (["simulate", *SMALL, "--rate", "3", "--attention", "full,wide"], "allowed are full"),
    (["simulate", *SMALL, "--rate", "3", "--attention", "full,state"], "--engine vllm"),
    (["simulate", *SMALL, "--rate", "3", "--engine", "vllm", "--policy", "headway", "--bound",
      "--attention", "full,state"], "leave out --attention"),
    (["simulate", *SMALL, "--rate", "3", "--gpu", "abacus"], "llama-3.1-8b@h100"),
    (["simulate", *SMALL, "--rate", "3", "--kv-tokens", "0"], "--kv-tokens"),
    (["simulate", *SMALL, "--rate", "3", "--seed", "-1"], "--seed"),
    (["simulate", *SMALL, "--rate", "3", "--options", "[1]"], "JSON object"),
    (["simulate", *SMALL, "--rate", "3", "--options", '{"zeal": 9}'], "its options"),
    (["simulate", *SMALL, "--rate", "3", "--drift", "up"], "--drift"),
    (["simulate", *SMALL, "--rate", "3", "--router", "dice"], "round-robin"),
    (["simulate", *SMALL, "--rate", "3", "--json", "/no/such/folder/x.json"], "folder"),
    (["simulate", *SMALL, "--rate", "3", "--slo", "/no/such.toml"], "Cannot read"),
    (["capacity", *SMALL, "--target", "90"], "--target"),
    (["capacity", *SMALL, "--engine", "vllm", "--policy", "stock-hindsight"], "use simulate"),
    (["replay", "/no/such/file"], "Cannot read"),
    (["replay", __file__], "line 1"),
]  # fmt: skip


@pytest.mark.parametrize(("args", "hint"), MISTAKES, ids=lambda v: " ".join(v)[-40:])
def test_a_mistake_gets_one_sentence(
    args: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, one line, no traceback, and the line says what is allowed."""
    assert run(*args) == 2
    said = capsys.readouterr().err.strip()
    assert hint in said
    assert said.startswith("headway: ")
    assert len(said.splitlines()) == 1


VIDUR = (
    "arrived_at,num_prefill_tokens,num_decode_tokens\n"
    "0,40,7\n0.5,900,300\n1.5,12,0\n2,2000,5\n3,976,49\n4,976,48\n"
)


@pytest.mark.parametrize(
    "command",
    [("simulate", "--policy", "fcfs,slack"), ("capacity", "--policy", "fcfs", "--target", "0.1")],
)
def test_how_a_trace_was_read_and_what_is_too_long_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    """One line before the table, names below it, and both in the JSON."""
    trace, out = tmp_path / "vidur.csv", tmp_path / "out.json"
    trace.write_text(VIDUR)
    args = ("--trace", str(trace), "--kv-tokens", "1030", "--workers", "1", "--json", str(out))
    assert run(*command, *args) == 0
    text = capsys.readouterr().out
    assert "Read as a Vidur trace; times in seconds" in text
    assert "1 row with 0 output tokens skipped." in text
    assert "2 requests are cut at the 1024 tokens of the KV cache: r1, r4." in text
    assert "1 request is answered with an error" in text
    document = json.loads(out.read_text())
    assert document["trace"]["format"] == "a Vidur trace"
    assert document["trace"]["num_skipped"] == {"with 0 output tokens": 1}
    long = {"cut": ["r1", "r4"], "never_fit": ["r3"]}
    told = [one["too_long"] for one in document.get("runs", [document])]
    assert all(one == long for one in told)
    assert (" long" in text) == (command[0] == "simulate")  # The head of a column, wrapped.


def test_an_option_about_the_trace_changes_the_run(tmp_path: Path) -> None:
    """Half as long apart in another unit; the runs are kept apart too."""
    trace, out = tmp_path / "vidur.csv", tmp_path / "out.json"
    trace.write_text(VIDUR)
    spans_s = []
    for more in ((), ("--time-unit", "ms"), ("--column", "arrived=none")):
        args = ("--trace", str(trace), "--policy", "fcfs", "--workers", "1", "--json", str(out))
        assert run("simulate", *args, *more) == 0
        spans_s.append(runs_in(out)[0]["duration_s"])
    assert spans_s[0] > 4.0 > spans_s[1] > spans_s[2]


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("simulate", *SMALL, "--rate", "3", "--sort"), "--sort is about a trace file"),
        (("capacity", *SMALL, "--time-unit", "ms"), "--time-unit is about a trace file"),
        (("bench", "--hash-tokens", "16"), "--hash-tokens is about a trace file"),
        (("bench", "--workload", "{trace}"), "line 4: arrived_at goes back"),
        *(
            (("replay", "{trace}", *option), f"{option[0]} is about trace files, and replay")
            for option in (
                ("--time-unit", "ms"),
                ("--hash-tokens", "16"),
                ("--sort",),
                ("--column", "arrived=x"),
                ("--any-rate",),
            )
        ),
        (("simulate", "--trace", "{trace}"), "line 4: arrived_at goes back"),
        (("simulate", "--trace", "{trace}", "--column", "when=x"), "--column must be ROLE=NAME"),
        (("capacity", "--trace", "{trace}", "--column", "arrived=x"), "no column 'x'"),
    ],
)
def test_what_is_said_of_a_trace_is_checked_by_every_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], args: tuple[str, ...], sentence: str
) -> None:
    """One sentence and exit code 2, before anything runs."""
    trace = tmp_path / "v.csv"
    trace.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n0,1,1\n2,1,1\n1,1,1\n")
    assert run(*(arg.format(trace=trace) for arg in args)) == 2
    assert sentence in capsys.readouterr().err
