"""The Chrome trace of a kept run, event by event."""

from __future__ import annotations

import copy
import gzip
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from headway.errors import UserError
from headway.metrics import chrome, kept

DOCUMENT: dict[str, Any] = {
    "schema": 1,
    "spec": {"policy": "fcfs", "rate_rps": 2.0},
    "run": {"policy": "fcfs", "engine": "sim"},
    "timeline": {
        "begins_s": [0.0, 0.5], "ends_s": [0.5, 1.75], "predicted_s": [0.4, 0.0],
        "promised_s": [0.45, 0.0], "num_prefill_tokens": [30, 0], "num_decodes": [0, 1],
        "num_running": [1, 1], "num_waiting": [0, 1], "held_tokens": [32, 80],
        "reserved_tokens": [40, 40], "capacity_tokens": 100,
    },
    "requests": [
        {"id": "a", "slo_class": "chat", "slo": {"ttft_s": 1.0, "tbt_s": 1.0, "jct_s": None},
         "arrived_at_s": 0.0, "emitted_at_s": [0.5, 1.75], "outcome": "finished",
         "attained": False, "phases": [[0.0, "queued"], [0.0, "prefill"], [0.5, "decode"]],
         "num_prompt_tokens": 30, "num_preemptions": 0},
        {"id": "b", "slo_class": "chat", "slo": {"ttft_s": 1.0, "tbt_s": None, "jct_s": None},
         "arrived_at_s": 0.25, "emitted_at_s": [], "outcome": "refused", "attained": False,
         "phases": [[0.5, "queued"]], "num_prompt_tokens": 90, "num_preemptions": 0},
    ],
}  # fmt: skip


def events(phase: str, **having: Any) -> list[dict[str, Any]]:
    found = chrome.chrome_trace(DOCUMENT)["traceEvents"]
    return [e for e in found if e["ph"] == phase and having.items() <= e.items()]


def test_each_step_is_a_slice_with_its_promise() -> None:
    """Times are microseconds; a step beyond its promise says so; no promise is null."""
    first, second = events("X")
    assert (first["ts"], first["dur"], first["name"]) == (0.0, 500_000.0, "30+0 over")
    assert first["args"] == {
        "prefill_tokens": 30, "decodes": 0, "took_ms": 500.0, "predicted_ms": 400.0,
        "promised_ms": 450.0,
    }  # fmt: skip
    assert (second["dur"], second["name"]) == (1_250_000.0, "0+1")
    assert second["args"]["promised_ms"] is None


def test_counters_show_kv_and_queue() -> None:
    """Held, reserved and free add up to the capacity; what free does not cover is lent."""
    kv = [event["args"] for event in events("C", name="KV tokens")]
    assert kv == [
        {"held": 32, "reserved": 40, "lent": 0, "free": 28},
        {"held": 80, "reserved": 20, "lent": 20, "free": 0},
    ]
    queue = [event["args"] for event in events("C", name="requests")]
    assert queue == [{"running": 1, "waiting": 0}, {"running": 1, "waiting": 1}]


def test_each_request_is_a_track_with_its_phases() -> None:
    """Phases lie inside the request, each begins where the last ended; late tokens are marked."""
    a = [(e["name"], e["ts"]) for e in events("b", id="a")]
    assert a == [("a chat: broken", 0.0), ("queued", 0.0), ("prefill", 0.0), ("decode", 500_000.0)]
    ends = [(e["name"], e["ts"]) for e in events("e", id="a")]
    assert ends[-2:] == [("decode", 1_750_000.0), ("a chat: broken", 1_750_000.0)]
    marks = [(e["name"], e["ts"]) for e in events("n", id="a")]
    assert marks == [("first token", 500_000.0), ("late token", 1_750_000.0)]
    assert events("b", id="a")[0]["args"]["late_ms_by_cause"] == {"long_step": 250.0}
    assert events("b", id="b")[0]["name"] == "b chat: refused"


def test_every_begin_has_an_end_and_nothing_else_is_in_it() -> None:
    """Viewers drop unmatched slices, so there are none; every event has what its kind needs."""
    trace = chrome.chrome_trace(DOCUMENT)
    begun = Counter((e["id"], e["name"]) for e in trace["traceEvents"] if e["ph"] == "b")
    ended = Counter((e["id"], e["name"]) for e in trace["traceEvents"] if e["ph"] == "e")
    assert begun == ended
    for event in trace["traceEvents"]:
        assert {"ph", "name", "pid"} <= event.keys()
        assert event["ph"] == "M" or event["ts"] >= 0
        assert event["ph"] not in "ben" or {"cat", "id"} <= event.keys()
    assert trace["otherData"] == {"policy": "fcfs", "rate_rps": "2.0"}


@pytest.mark.parametrize("name", ["x.json", "x.json.gz"])
def test_write(tmp_path: Path, name: str) -> None:
    """The file holds the trace, gzipped when its name says so, and the count is returned."""
    path = tmp_path / name
    num_events = chrome.write(DOCUMENT, path)
    assert path.read_bytes().startswith(b"\x1f\x8b") == name.endswith(".gz")
    assert kept.read_json(path) == chrome.chrome_trace(DOCUMENT)
    assert num_events == len(chrome.chrome_trace(DOCUMENT)["traceEvents"])
    with pytest.raises(UserError, match="Cannot write"):
        chrome.write(DOCUMENT, tmp_path / "no" / name)


def test_reading_a_kept_run(tmp_path: Path) -> None:
    """A gzipped file and a plain one read alike."""
    plain, packed = tmp_path / "a.json", tmp_path / "a.run.json.gz"
    plain.write_text(json.dumps(DOCUMENT))
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    assert kept.read(plain).requests == kept.read(packed).requests
    assert kept.read(packed).timeline.lent_tokens.tolist() == [0.0, 20.0]


def test_a_promise_without_a_margin_is_none() -> None:
    """Where the promise is the prediction itself, no bound was planned and none is broken."""
    document = broken("timeline.promised_s", [0.4, 0.0])
    assert kept.KeptRun.parse(document).timeline.planned_s.tolist() == [float("inf")] * 2
    names = [e["name"] for e in chrome.chrome_trace(document)["traceEvents"] if e["ph"] == "X"]
    assert names == ["30+0", "0+1"]


def broken(path: str, value: Any) -> dict[str, Any]:
    """DOCUMENT with one value changed, such as ``requests.0.id``; ``...`` deletes it."""
    document = copy.deepcopy(DOCUMENT)
    place: Any = document
    *parents, last = path.split(".")
    for key in parents:
        place = place[int(key)] if key.isdigit() else place[key]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return document


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        ("schema", 2, "is not a kept run: it needs schema 1"),
        ("requests", ..., "is not a kept run: it needs schema 1"),
        ("timeline.ends_s", ..., "'ends_s' is missing"),
        ("timeline.ends_s", [1.0], "differ in length"),
        ("timeline.ends_s", [1.0, float("nan")], "timeline.ends_s is not a list of numbers"),
        ("timeline.begins_s", [1.0, 0.5], "not in order"),
        ("requests.0.emitted_at_s", ..., "'emitted_at_s' is missing"),
        ("requests.0.phases", [[0.0, "asleep"]], "phase 'asleep' is not one of queued, prefill"),
        ("requests.0.phases", [[1.0, "queued"], [0.5, "decode"]], "phases of request 'a'"),
        ("requests.0.arrived_at_s", "soon", "could not convert"),
        ("requests", 3, "is not a kept run"),
    ],
)
def test_documents_that_are_something_else(path: str, value: Any, sentence: str) -> None:
    """Each mistake is one sentence naming what is wrong."""
    with pytest.raises(UserError, match=re.escape(sentence)):
        chrome.chrome_trace(broken(path, value))


def test_damaged_files(tmp_path: Path) -> None:
    """A torn gzip file, a missing one and one without JSON are the user's mistakes."""
    torn = tmp_path / "torn.run.json.gz"
    torn.write_bytes(gzip.compress(b"{}" * 1000)[:20])
    with pytest.raises(UserError, match="damaged gzip"):
        kept.read(torn)
    with pytest.raises(UserError, match="Cannot read"):
        kept.read(tmp_path / "none.run.json.gz")
    torn.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="holds no JSON"):
        kept.read(torn)
