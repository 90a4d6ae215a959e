"""``headway trace`` says what is in a workload, converts one and makes one up."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from headway.cli.trace import described, trace
from headway.errors import UserError
from headway.policy.events import Arrived, Event, Finished, StepDone, StepScheduled
from headway.policy.log import event_line
from headway.slo import Slo, SloBook
from headway.workloads import named
from headway.workloads.arrivals import Arrivals
from headway.workloads.readers import load
from headway.workloads.schema import WorkloadRequest, slo_of, write_jsonl

AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2023-11-16 18:00:00,100,10\n2023-11-16 18:00:01,200,20\n2023-11-16 18:00:04,300,30\n"
)


def run(*args: object) -> Result:
    return CliRunner().invoke(trace, [str(arg) for arg in args], catch_exceptions=True)


def azure(tmp_path: Path) -> Path:
    path = tmp_path / "azure.csv"
    path.write_text(AZURE, encoding="utf-8")
    return path


def test_inspect_describes_a_file(tmp_path: Path) -> None:
    """The table and the JSON have the same figures, known by hand."""
    out = tmp_path / "facts.json"
    result = run("inspect", azure(tmp_path), "--json", out)
    assert result.exit_code == 0, result.output
    assert "3 requests in 4.0 s: 0.5 requests/s, gap CV 0.5." in result.output
    facts = json.loads(out.read_text())
    assert facts["schema"] == 1
    assert (facts["num_requests"], facts["duration_s"], facts["rate_rps"]) == (3, 4.0, 0.5)
    assert facts["gap_cv"] == pytest.approx(0.5)
    assert facts["prompt_tokens"]["mean"] == 200
    assert facts["prompt_tokens"]["p50"] == 200
    assert facts["output_tokens"]["max"] == 30
    assert facts["classes"] == {"default": 3}


def test_prefix_share_counts_what_was_seen_before() -> None:
    """The second finds 30 of what the first left, the third all 50 of the longer one."""
    rows = [(100, "p", 50), (100, "p", 30), (60, "p", 50), (140, None, 0), (100, "q", 90)]
    made = [
        WorkloadRequest(f"r{i}", float(i), size, 1, prefix_id=prefix, prefix_tokens=shared)
        for i, (size, prefix, shared) in enumerate(rows)
    ]
    assert described(made)["prefix_share"] == pytest.approx((30 + 50) / 500)


def test_requests_at_one_instant_have_no_rate() -> None:
    """An offline batch is said to be one."""
    facts = described([WorkloadRequest(f"r{i}", 0.0, 5, 5) for i in range(3)])
    assert (facts["rate_rps"], facts["gap_cv"]) == (None, None)


def test_convert_writes_what_the_reader_read(tmp_path: Path) -> None:
    """Without options the requests are the same."""
    out = tmp_path / "out.jsonl"
    result = run("convert", azure(tmp_path), "--out", out)
    assert result.exit_code == 0, result.output
    assert load(out) == load(azure(tmp_path))


def test_convert_gives_other_times(tmp_path: Path) -> None:
    """``--rate`` stretches, ``--requests`` cuts, ``--arrivals`` draws anew, by seed."""
    out = tmp_path / "out.jsonl"
    assert run("convert", azure(tmp_path), "--out", out, "--rate", 2).exit_code == 0
    assert [r.arrived_at_s for r in load(out)] == pytest.approx([0.0, 0.25, 1.0])
    assert run("convert", azure(tmp_path), "--out", out, "--requests", 2).exit_code == 0
    assert len(load(out)) == 2
    drawn = []
    for seed in (1, 1, 2):
        args = ("--arrivals", "poisson", "--rate", 1, "--seed", seed)
        assert run("convert", azure(tmp_path), "--out", out, *args).exit_code == 0
        drawn.append(out.read_bytes())
    assert drawn[0] == drawn[1] != drawn[2]


def test_convert_takes_the_unit_of_times_from_the_user(tmp_path: Path) -> None:
    """A timed_trace with 16-token hashes; each option leaves the rest as it was recognised."""
    path = tmp_path / "t.jsonl"
    row: dict[str, Any] = {
        "timestamp": 0,
        "input_length": 20,
        "output_length": 1,
        "hash_ids": [1, 2],
    }
    path.write_text(json.dumps(row) + "\n" + json.dumps({**row, "timestamp": 3}) + "\n")
    out = tmp_path / "out.jsonl"
    assert run("convert", path, "--out", out).exit_code == 0
    assert (load(out)[1].arrived_at_s, load(out)[1].hash_tokens) == (3.0, 16)
    for options, at_s, size in [
        (("--time-unit", "ms"), 0.003, 16),
        (("--hash-tokens", 10), 3.0, 10),
        (("--time-unit", "ms", "--hash-tokens", 10), 0.003, 10),
    ]:
        assert run("convert", path, "--out", out, *options).exit_code == 0
        second = load(out)[1]
        assert (second.arrived_at_s, second.hash_tokens) == (at_s, size), options
        assert second.hash_ids == (1, 2)


def test_synth_writes_the_named_workload(tmp_path: Path) -> None:
    """The file holds what the library makes, and the SLO file knows its classes."""
    out, slo = tmp_path / "mixed.jsonl", tmp_path / "slo.toml"
    result = run(
        "synth", "mixed", "--requests", 40, "--rate", 3, "--seed", 9, "--out", out, "--slo-out", slo
    )
    assert result.exit_code == 0, result.output
    assert load(out) == named.make("mixed", 40, 3.0, 9)
    assert {r.slo_class for r in load(out)} <= set(SloBook.load(slo).classes)


def test_inspect_counts_what_chains_have_in_common(tmp_path: Path) -> None:
    """32 of the second prompt's 40 tokens were seen before: an id counts after its parents only."""
    path = tmp_path / "w.jsonl"
    rows = [
        WorkloadRequest("a", 0.0, 50, 1, hash_ids=(1, 2, 3), hash_tokens=16),
        WorkloadRequest("b", 1.0, 40, 1, hash_ids=(1, 2), hash_tokens=16),
        WorkloadRequest("c", 2.0, 38, 1, hash_ids=(9, 2), hash_tokens=16),
    ]
    write_jsonl(path, rows)
    result = run("inspect", path)
    assert "25.0% of the prompt tokens were seen before." in result.output


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("inspect", "nowhere.jsonl"), "Cannot read nowhere.jsonl"),
        (("synth", "nope", "--out", "{out}"), "known are sharegpt"),
        (("synth", "mixed", "--out", "{out}", "--rate", "0"), "greater than 0"),
        (("synth", "mixed", "--out", "{out}", "--requests", "ten"), "--requests must be"),
        (("synth", "mixed", "--out", "{out}", "--arrivals", "tides"), "--arrivals must be"),
        (("synth", "mixed", "--out", "/no/such/folder/x"), "does not exist"),
        (("convert", "{azure}", "--out", "{out}", "--arrivals", "poisson"), "needs --rate"),
        (("convert", "{azure}", "--out", "{out}", "--time-unit", "s"), "line 2: TIMESTAMP holds a"),
        (("convert", "{azure}", "--out", "{out}", "--hash-tokens", "0"), "at least 1"),
        (("convert", "{azure}", "--out", "{azure}"), "the same file"),
    ],
)
def test_mistakes_get_one_sentence(tmp_path: Path, args: tuple[str, ...], sentence: str) -> None:
    """No traceback, and nothing is written."""
    out = tmp_path / "out.jsonl"
    filled = [arg.format(out=out, azure=azure(tmp_path)) for arg in args]
    result = run(*filled)
    assert isinstance(result.exception, UserError), result.output
    assert sentence in str(result.exception)
    assert not out.exists()
    assert (tmp_path / "azure.csv").read_text() == AZURE


def test_recorded_gap_cv_is_the_generator_s() -> None:
    """Inspecting a gamma workload finds the CV it was made with."""
    made = named.make("alpaca", 20_000, 5.0, 0, Arrivals("gamma", cv=2.0))
    facts = described(made)
    assert facts["gap_cv"] == pytest.approx(2.0, rel=0.06)
    assert facts["rate_rps"] == pytest.approx(5.0, rel=0.06)
    assert facts["classes"] == {"chat": 20_000}


def test_a_recording_becomes_a_trace_whose_promises_an_slo_file_says(tmp_path: Path) -> None:
    """Classes stay by name; who promised something without a class keeps that; no class: none."""
    promises: dict[str, dict[str, Any]] = {
        "a": {"class_name": "chat", "ttft_s": 1.0, "tbt_s": 0.1},
        "b": {"class_name": "none"},
        "c": {"class_name": "custom", "jct_s": 9.0},
    }
    heard: list[Event] = []
    for at_s, (name, promise) in zip((5.0, 6.0, 7.0), promises.items(), strict=True):
        heard.append(Arrived(at_s, name, at_s, 40, 8, Slo(**promise)))
        heard.append(StepScheduled(at_s, {name: 40}, {name: 0}, ()))
        heard += [StepDone(at_s + 0.1, {name: 1}), Finished(at_s + 0.1, name, "stopped")]
    folder = tmp_path / "kept"
    folder.mkdir()
    file = folder / "20261123T061745Z-4711-e0-000001.jsonl"
    file.write_text("".join(event_line(event) + "\n" for event in heard), encoding="utf-8")
    for source in (folder, file, folder / "20261123T061745Z-4711-e0"):
        out = tmp_path / "trace.jsonl"
        result = run("convert", source, "--out", out)
        assert result.exit_code == 0, result.output
        rows = [json.loads(line) for line in out.read_text().splitlines()]
        assert [row.get("slo_class") for row in rows] == ["chat", None, None]
        assert [row.get("ttft_slo_s") for row in rows] == [None, None, None]
        assert [row.get("jct_slo_s") for row in rows] == [None, None, 9.0]
        assert [row["arrived_at_s"] for row in rows] == [0.0, 1.0, 2.0]
    classes = {"chat": {"ttft_s": 3}, "calm": {"jct_s": 60}}
    book = SloBook.parse({"default": "calm", "classes": classes})
    chat, calm, custom = (slo_of(request, book) for request in load(out))
    assert (chat.ttft_s, chat.tbt_s, calm.jct_s, custom.jct_s) == (3.0, None, 60.0, 9.0)
