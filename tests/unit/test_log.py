"""Recordings: every event and plan as a line that can be read back."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from told import Lines

from headway import registry
from headway.engines.journal import Journal
from headway.errors import UserError
from headway.policy.events import Arrived, Event, Finished, StepDone, StepScheduled
from headway.policy.log import event_line, parse_event, replay
from headway.slo import Slo
from headway.workloads.record_files import event_in

instants = st.floats(0, 1e9)
ids = st.text(min_size=1, max_size=12)
spans = st.none() | st.floats(1e-6, 1e6)
counts = st.dictionaries(ids, st.integers(0, 10**6), max_size=4)
pauses = spans | st.just(math.inf)
slos = st.builds(
    Slo,
    ttft_s=spans,
    tbt_s=spans,
    jct_s=spans,
    class_name=ids,
    tpot_s=spans,
    pause_s=pauses,
)
events = st.one_of(
    st.builds(Arrived, instants, ids, instants, st.integers(0, 10**6), st.integers(1, 10**6), slos),
    st.builds(StepScheduled, instants, counts, counts, st.lists(ids, max_size=3).map(tuple)),
    st.builds(StepDone, instants, counts),
    st.builds(Finished, instants, ids, st.sampled_from(["stopped", "length", "aborted"])),
)


@given(events)
def test_an_event_survives_its_line(event: Event) -> None:
    """Written and read back it is the same event, to the last bit of its instants."""
    line = event_line(event)
    assert "\n" not in line
    assert parse_event(json.loads(line)) == event


def test_a_promise_recorded_before_there_was_a_pause_is_read() -> None:
    """Its pause is the default one, as of every promise that names none."""
    line = event_line(Arrived(1.0, "a", 1.0, 5, 6, Slo(1.0, 0.1, None, 2.0, "chat")))
    row = json.loads(line)
    del row["slo"]["pause_s"], row["slo"]["tpot_s"]
    event = parse_event(row)
    assert isinstance(event, Arrived)
    assert event.slo == Slo(1.0, 0.1, None, 2.0, "chat")


def test_an_unknown_event_is_a_users_mistake() -> None:
    """The sentence names the event and those known."""
    with pytest.raises(UserError, match="Arrived"):
        parse_event({"event": "Departed"})


def test_a_recorder_changes_nothing(tmp_path: Path, fake_engine: Any) -> None:
    """The same run, recorded or not, makes the same plans; the recording replays to them."""
    plain = registry.build("slack")
    recorder = Journal(registry.build("slack"), Lines((tmp_path / "run.jsonl").open("wb")))  # type: ignore[arg-type]
    engines = [fake_engine(core, num_blocks=20) for core in (plain, recorder)]
    for engine in engines:
        for i in range(12):
            engine.arrive(f"r{i}", 5 + 3 * i, 6, slo=Slo(ttft_s=1.0, tbt_s=0.05))
        engine.drain(1000)
    assert engines[0].plans == engines[1].plans
    recorder.close()
    lines = (tmp_path / "run.jsonl").read_text().splitlines()
    written = [line for line in lines if '{"plan"' in line]
    assert list(replay(lines, registry.build("slack"))) == written
    assert len(written) == len(engines[1].plans)


def test_a_gap_does_not_replay() -> None:
    """Plans after lost lines would be others: that is said, not hidden."""
    with pytest.raises(UserError, match="gap"):
        list(replay(['{"gap":{"num_lines":3}}'], registry.build("slack")))


def test_notes_of_a_live_server_are_no_events() -> None:
    """Its start and its gaps are passed over; a line of something else is a mistake."""
    done = json.loads(event_line(StepDone(1.0, {"a": 1})))
    rows = [("f, line 1", {"start": {}}), ("f, line 2", {"gap": {}}), ("f, line 3", done)]
    assert [event_in(*row) for row in rows] == [None, None, StepDone(1.0, {"a": 1})]
    with pytest.raises(UserError, match="f, line 9"):
        event_in("f, line 9", {"prompt": "x"})
