"""A recording leaves the scheduler without waiting, and its files stay within their bound."""

from __future__ import annotations

import contextlib
import errno
import gzip
import itertools
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from told import Silent

from headway import registry
from headway.config import Settings
from headway.engines import journal as journal_module
from headway.engines.journal import Journal
from headway.engines.vllm import recorder, writer
from headway.engines.vllm.brief import Brief, same
from headway.engines.vllm.recorder import Handover, Recording, check_writable, recording_of
from headway.engines.vllm.watch import Watch
from headway.engines.vllm.writer import OneFile, RotatingLog, in_full, pump
from headway.errors import UserError
from headway.latency.laptop import LAPTOP
from headway.policy.events import Finished, StepDone, StepScheduled
from headway.policy.log import event_line, plan_line, question_line, replay
from headway.policy.plan import StepPlan
from headway.policy.view import EngineView
from headway.slo import Slo
from headway.study.recorded import core_of, verify
from headway.workloads.record_files import FILE_NAME, RunFiles, file_name, rows, run_of, runs_in

RUN = "20261123T061745Z-4711-e0"
HEADER = b'{"start":{"policy":"slack"}}\n'
CONFIG = SimpleNamespace(parallel_config=SimpleNamespace(data_parallel_index=3))


def line(number: int, num_bytes: int = 0) -> bytes:
    return b'{"view":{"number":%d,"filler":"%s"}}\n' % (number, b"x" * num_bytes)


def numbers_in(run: RunFiles) -> list[int]:
    return [row["view"]["number"] for _, row in rows(run) if "view" in row]


# -- out of the scheduler ----------------------------------------------------------------------


@pytest.fixture
def pipe() -> Any:
    ends = os.pipe()
    yield ends
    for end in ends:
        with contextlib.suppress(OSError):
            os.close(end)


def drain(fd: int) -> bytes:
    """Return what a pipe holds now."""
    os.set_blocking(fd, False)
    found = b""
    try:
        while data := os.read(fd, 1 << 20):
            found += data
    except BlockingIOError:
        pass
    return found


def test_a_writer_that_never_reads_costs_lines_and_no_time(pipe: tuple[int, int]) -> None:
    """A hundred thousand lines: none waits, memory stays bounded, every lost one is counted."""
    out = Handover(pipe[1], most_waiting_bytes=1 << 20)
    for number in range(100_000):
        out.write(line(number, 100))
        assert len(out._waiting) <= 1 << 20
    assert out.counts["kept"] + out.counts["dropped"] == 100_000
    assert out.counts["dropped"] > 50_000


def test_what_is_missing_is_marked_where_it_is_missing(pipe: tuple[int, int]) -> None:
    """The oldest lines are kept, in order; then a gap that says how many; then the rest."""
    out = Handover(pipe[1], most_waiting_bytes=200_000)
    for number in range(30_000):
        out.write(line(number, 100))
    dropped = out.counts["dropped"]
    found = drain(pipe[0])
    out.send()  # As it does every half second.
    for number in range(30_000, 30_100):
        out.write(line(number, 100))
    for _ in range(40):
        out.send()
        found += drain(pipe[0])
    parsed = [json.loads(one) for one in found.splitlines()]
    (at,) = [i for i, row in enumerate(parsed) if "gap" in row]
    assert parsed[at]["gap"]["num_lines"] == dropped
    assert [r["view"]["number"] for r in parsed[:at]] == list(range(30_000 - dropped))
    assert [r["view"]["number"] for r in parsed[at + 1 :]] == list(range(30_000, 30_100))
    assert out.counts == {"kept": 30_100 - dropped, "dropped": dropped}


def test_a_writer_that_died_is_no_error(pipe: tuple[int, int]) -> None:
    """All that waits and all that comes is lost, and counted as such; closing is quiet."""
    out = Handover(pipe[1])
    os.close(pipe[0])
    for number in range(5):
        out.write(line(number))
    out.send()
    out.write(line(5))
    assert out.counts == {"kept": 0, "dropped": 6}
    out.close()
    out.close()


def test_closing_hands_everything_over(pipe: tuple[int, int]) -> None:
    """Far more than the pipe holds, to a reader that is there; the gap at the end as well."""
    out = Handover(pipe[1], most_waiting_bytes=math.inf)
    for number in range(20_000):
        out.write(line(number, 100))
    count = "import sys; print(len(sys.stdin.buffer.read()))"
    reader = subprocess.Popen(
        [sys.executable, "-c", count], stdin=pipe[0], stdout=subprocess.PIPE, text=True
    )
    os.close(pipe[0])
    out.close()
    said, _ = reader.communicate()
    assert int(said) == sum(len(line(n, 100)) for n in range(20_000))
    assert out.counts == {"kept": 20_000, "dropped": 0}


def test_closing_does_not_wait_for_a_writer_that_does_not_move(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk does not keep a server from ending; what is lost is counted."""
    monkeypatch.setattr(recorder, "CLOSE_WITHIN_S", 0.0)
    out = Handover(pipe[1])
    for number in range(20_000):
        out.write(line(number, 100))
    out.close()
    kept = drain(pipe[0]).count(b"\n")
    assert out.counts == {"kept": kept, "dropped": 20_000 - kept}
    assert kept < 20_000


# -- what repeats is left out, and written out again -------------------------------------------


names = st.sampled_from("abc")
few = st.sampled_from([{}, {"a": 1}, {"a": 1, "b": 1}, {"b": 1, "a": 1}, {"a": 1, "b": 2}])
instants = st.floats(0, 100)
heard = st.one_of(
    st.builds(StepScheduled, instants, few, few, st.sampled_from([(), ("a",)])),
    st.builds(StepDone, instants, few),
    st.builds(Finished, instants, names, st.just("stopped")),
    st.tuples(
        st.builds(EngineView, st.just(9), st.integers(0, 9), st.just(4), st.just(8), st.just(64)),
        instants,
        st.builds(StepPlan, st.integers(0, 3), predicted_s=instants),
        st.just(0.0),
    ),
)


def as_plain_lines(told: Any) -> list[bytes]:
    """What a plain recorder writes of the same: each line in full."""
    if isinstance(told, tuple):
        view, now_s, plan, _ = told
        return [(one + "\n").encode() for one in (question_line(view, now_s), plan_line(plan))]
    return [(event_line(told) + "\n").encode()]


@given(st.lists(st.tuples(st.lists(heard, max_size=9), st.booleans()), max_size=6))
def test_what_is_left_out_is_written_out_again(batches: list[tuple[list[Any], bool]]) -> None:
    """Byte for byte what the plain recorder writes, whatever comes, whatever is lost between."""
    sent: list[bytes] = []
    is_taken = True

    def write(lines: bytes, num_lines: int) -> bool:
        assert lines.count(b"\n") == num_lines
        if is_taken:
            sent.append(lines)
        return is_taken

    brief = Brief(SimpleNamespace(write=write))  # type: ignore[arg-type]
    last: dict[bytes, Any] = {}
    expected = []
    for told, is_taken in batches:
        brief.write(told)
        if is_taken:
            expected += [line for one in told for line in as_plain_lines(one)]
    written = b"".join(portion for lines in sent for portion in in_full(lines, last))
    assert written == b"".join(expected)


def test_a_step_like_the_one_before_takes_a_short_line(pipe: tuple[int, int]) -> None:
    """256 streams that decode: the second step takes a hundredth of the first one's bytes."""
    out = Handover(pipe[1])
    brief = Brief(out)
    sizes = []
    for at_s in (1.0, 2.0):
        tokens = {f"chatcmpl-{i:032x}": 1 for i in range(256)}
        entries = [StepScheduled(at_s, tokens), StepDone(at_s, dict(tokens))]
        before = len(out._waiting)
        brief.write(entries)
        sizes.append(len(out._waiting) - before)
    assert sizes[1] * 100 < sizes[0]


def test_the_same_requests_in_another_order_are_no_repetition() -> None:
    """A core may go through them in their order: it has to come back as it was."""
    assert same({"a": 1, "b": 1}, {"a": 1, "b": 1})
    assert not same({"a": 1, "b": 1}, {"b": 1, "a": 1})
    assert not same({}, None), "nothing was written before"


def test_what_is_written_out_comes_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short lines may stand for many megabytes: the bound on a file is kept."""
    monkeypatch.setattr(writer, "READ_BYTES", 1000)
    full = event_line(StepDone(1.0, dict.fromkeys("abcdefgh", 1))).encode() + b"\n"
    short = b'{"event":"StepDone","at_s":1.0}\n'
    portions = list(in_full(full + 99 * short, {}))
    assert b"".join(portions) == 100 * full
    assert max(map(len, portions)) < 1000 + len(full)


# -- into files --------------------------------------------------------------------------------


def test_the_folder_never_holds_more_than_its_bound(tmp_path: Path) -> None:
    """Files are packed, the oldest removed; what is left is the newest lines, none missing."""
    bound = 200_000
    log = RotatingLog(tmp_path, RUN, HEADER, bound)
    filler = itertools.cycle(os.urandom(400).hex().encode() for _ in range(50))
    for number in range(2000):  # Random text packs to a half at best: rotation has to remove.
        log.write(b'{"view":{"number":%d,"filler":"%s"}}\n' % (number, next(filler)))
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= bound
    log.close()
    (run,) = runs_in(tmp_path)
    assert run.numbers[0] > 1, "the oldest are gone"
    assert [path.suffix for path in run.paths] == [".gz"] * (len(run.paths) - 1) + [".jsonl"]
    found = numbers_in(run)
    assert found == list(range(found[0], 2000))
    assert sum("start" in row for _, row in rows(run)) == len(run.paths), "each file says who"
    assert all(path.stat().st_mode & 0o077 == 0 for path in run.paths), "for this user alone"


def test_the_bound_is_for_all_runs_of_the_folder(tmp_path: Path) -> None:
    """Yesterday's run makes room for today's."""
    old = tmp_path / file_name("20251123T061745Z-1-e0", 1)
    old.write_bytes(line(0, 90_000))
    os.utime(old, (1, 1))
    other = tmp_path / "notes.txt"
    other.write_text("mine")
    log = RotatingLog(tmp_path, RUN, HEADER, 100_000)
    log.write(line(1))
    assert not old.exists()
    assert other.exists(), "what is no recording is not touched"


def test_a_disk_that_is_full_loses_nothing_that_was_offered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A write that fails halfway is taken back and made again; one sentence says what is up."""
    log = RotatingLog(tmp_path, RUN, HEADER, 10**6)
    log.write(line(0))
    real, fails = os.write, iter([True, True, False])

    def write(fd: int, data: Any) -> int:
        if next(fails, False):
            real(fd, bytes(data[:7]))
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(fd, data)

    monkeypatch.setattr(writer.os, "write", write)
    monkeypatch.setattr(writer.time, "sleep", lambda seconds: None)
    writer._insist(log, line(1) + line(2), os.getppid())
    log.close()
    monkeypatch.undo()
    assert numbers_in(runs_in(tmp_path)[0]) == [0, 1, 2]
    assert capsys.readouterr().err.count("No space left") == 1


def test_a_full_disk_does_not_outlive_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is left to wait for the disk: the writer ends too."""
    log = RotatingLog(tmp_path / "gone", RUN, HEADER, 10**6)
    monkeypatch.setattr(writer.time, "sleep", lambda seconds: None)
    with pytest.raises(SystemExit):
        writer._insist(log, line(0), parent=-1)


def test_a_file_removed_under_it_is_followed_by_another(tmp_path: Path) -> None:
    """Somebody cleans up: the next lines go to a new file, not into the void."""
    log = RotatingLog(tmp_path, RUN, HEADER, 10**6)
    log.write(line(0))
    (tmp_path / file_name(RUN, 1)).unlink()
    log.write(line(1))
    log.close()
    (run,) = runs_in(tmp_path)
    assert (run.numbers, numbers_in(run)) == ((2,), [1])


def test_only_whole_lines_are_written(tmp_path: Path, pipe: tuple[int, int]) -> None:
    """A scheduler that was killed in the middle of a line leaves no half of it."""
    os.write(pipe[1], line(0) + line(1) + line(2)[:9])
    os.close(pipe[1])
    pump(pipe[0], OneFile(tmp_path / "one.jsonl"))
    assert (tmp_path / "one.jsonl").read_bytes() == line(0) + line(1)


# -- out of files ------------------------------------------------------------------------------


def test_files_are_read_in_order_packed_or_not(tmp_path: Path) -> None:
    """A file that was left out gives a gap; a last line cut short is left out."""
    with gzip.open(tmp_path / (file_name(RUN, 2) + ".gz"), "wb") as packed:
        packed.write(line(1) + line(2))
    (tmp_path / file_name(RUN, 3)).write_bytes(line(3))
    (tmp_path / file_name(RUN, 5)).write_bytes(line(4) + line(5)[:9])
    run = run_of(tmp_path)
    found = [row for _, row in rows(run)]
    assert numbers_in(run) == [1, 2, 3, 4]
    assert found[3] == {"gap": {"num_files": 1}}


def test_a_reader_keeps_to_what_was_there_when_it_came(tmp_path: Path) -> None:
    """A file that grows as fast as it is read does not hold its reader for ever."""
    path = tmp_path / file_name(RUN, 1)
    path.write_bytes(line(0) + line(1))
    seen = []
    for _, row in rows(run_of(tmp_path)):
        seen.append(row["view"]["number"])
        with path.open("ab") as more:
            more.write(line(9))
    assert seen == [0, 1]


def test_a_file_packed_since_it_was_listed_is_found(tmp_path: Path) -> None:
    """The writer rotates while somebody reads."""
    path = tmp_path / file_name(RUN, 1)
    path.write_bytes(line(0))
    run = run_of(tmp_path)
    with gzip.open(str(path) + ".gz", "wb") as packed:
        packed.write(path.read_bytes())
    path.unlink()
    assert numbers_in(run) == [0]


def test_a_folder_means_its_newest_run(tmp_path: Path) -> None:
    """An older one is named by its folder and its own name."""
    older = "20261122T235959Z-9-e0"
    for run, number in ((older, 7), (RUN, 8)):
        (tmp_path / file_name(run, 1)).write_bytes(line(number))
    assert numbers_in(run_of(tmp_path)) == [8]
    assert numbers_in(run_of(tmp_path / older)) == [7]
    assert run_of(tmp_path).engine == "0"


@pytest.mark.parametrize(
    ("content", "hint"),
    [(b"{nonsense}\n", "line 1"), (b"[1]\n", "line 1"), (b"\x1f\x8bxx", "damaged")],
)
def test_what_is_no_recording_gets_a_sentence(tmp_path: Path, content: bytes, hint: str) -> None:
    """With the place, or what is wrong."""
    path = tmp_path / "x.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match=hint):
        list(rows(run_of(path)))
    with pytest.raises(UserError, match="holds no recording"):
        run_of(tmp_path)
    with pytest.raises(UserError, match="Cannot read"):
        list(rows(run_of(tmp_path / "absent")))


# -- the whole way -----------------------------------------------------------------------------


def test_a_recorded_server_replays_bit_for_bit(tmp_path: Path, fake_engine: Any) -> None:
    """Through pipe, process and files; the folder says who scheduled, and holds no other field."""
    folder = tmp_path / "rec"
    settings = Settings.parse({"policy": "slack", "record": str(folder)})
    recording = recording_of(settings, LAPTOP, CONFIG)
    core = Journal(settings.build(), recording)
    engine = fake_engine(core, num_blocks=20)
    for i in range(12):
        engine.arrive(f"r{i}", 5 + 3 * i, 6, slo=Slo(ttft_s=1.0, tbt_s=0.05))
    engine.drain(1000)
    core.close()
    run = run_of(folder)
    assert run.engine == "3"
    found = [row for _, row in rows(run)]
    assert {k: found[0]["start"][k] for k in ("policy", "overload", "options")} == {
        "policy": "slack", "overload": "demote", "options": {},
    }  # fmt: skip
    assert recording.counts == {"kept": len(found) - 1, "dropped": 0}
    lines = [one for path in run.paths for one in path.read_text().splitlines()[1:]]
    plans = [one for one in lines if one.startswith('{"plan"')]
    assert len(plans) == len(engine.plans)
    assert list(replay(lines, core_of(found[0]["start"]))) == plans
    assert verify(run) == len(plans)
    arrived = {k for row in found if row.get("event") == "Arrived" for k in row}
    assert arrived == {
        "event", "at_s", "request_id", "arrived_at_s", "num_prompt_tokens", "max_output_tokens",
        "slo", "num_found_tokens", "num_held_tokens", "last_try",
    }, "a new field of an event might hold text"  # fmt: skip


def served(core: Any, fake_engine: Any) -> Any:
    """Let the little engine serve a dozen requests under *core*, its cache too small for all."""
    engine = fake_engine(core, num_blocks=20)
    for i in range(12):
        engine.arrive(f"r{i}", 5 + 3 * i, 40, slo=Slo(ttft_s=1.0, tbt_s=0.011))
    engine.drain(2000)
    return engine


def test_a_watched_server_is_recorded_and_counted_the_same(
    tmp_path: Path, fake_engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Watched or not the recording has the same bytes; counts do not depend on when one counts."""
    settings = Settings.parse({"policy": "slack", "record": str(tmp_path / "alone")})
    alone = Journal(settings.build(), recording_of(settings, LAPTOP, CONFIG))
    served(alone, fake_engine)
    alone.close()
    settings = Settings.parse({"policy": "slack", "record": str(tmp_path / "both")})
    recording = recording_of(settings, LAPTOP, CONFIG)
    core = settings.build()
    both = Watch(core, Silent())
    journal = Journal(core, recording, both)
    engine = served(journal, fake_engine)
    journal.close()
    runs = [run_of(tmp_path / name) for name in ("alone", "both")]
    lines = [run.paths[0].read_bytes().split(b"\n", 1)[1] for run in runs]
    assert lines[0] == lines[1]
    assert verify(runs[1]) == len(engine.plans)
    monkeypatch.setattr(journal_module, "MOST_ENTRIES", 1)
    core = settings.build()
    each = Watch(core, Silent())
    served(Journal(core, each), fake_engine)
    counts = [one.observed.snapshot(core.live, engine.now_s)["counts"] for one in (both, each)]
    for one in counts:
        assert sum(one["plan"]["counts"]) == len(engine.plans)
        del one["plan"]  # Measured, and so not the same twice.
    assert counts[0] == counts[1]
    assert counts[0]["preemptions"]["recompute"] > 0


def test_what_does_not_replay_says_where(tmp_path: Path, fake_engine: Any) -> None:
    """A plan that differs, a gap, a file that is gone, a beginning nobody told of."""
    settings = Settings.parse({"policy": "slack", "record": str(tmp_path / "rec")})
    core = Journal(settings.build(), recording_of(settings, LAPTOP, CONFIG))
    engine = fake_engine(core)
    engine.arrive("a", 9, 5)
    engine.drain(50)
    core.close()
    (path,) = run_of(tmp_path / "rec").paths
    lines = path.read_text().splitlines()
    at = next(i for i, one in enumerate(lines) if '"admit":true' in one)
    other = [
        *lines[:at],
        lines[at].replace('"token_budget":9', '"token_budget":8'),
        *lines[at + 1 :],
    ]
    cut = [*lines[:3], '{"gap":{"num_lines":1}}', *lines[4:]]
    for wrong, hint in (
        (other, "plan 1"),
        (cut, "line 4: lines are missing"),
        (lines[1:], "began"),
    ):
        path.write_text("\n".join(wrong) + "\n")
        with pytest.raises(UserError, match=hint):
            verify(run_of(path.parent))
    path.write_text("\n".join(lines) + "\n")
    path.rename(path.with_name(path.name.replace("000001", "000002")))
    with pytest.raises(UserError, match="lines are missing"):
        verify(run_of(path.parent))


def test_it_hands_over_twice_a_second_and_when_nobody_is_left(fake_engine: Any) -> None:
    """An operator who looks sees what happened; a busy step pays no system call."""

    class Counting(Handover):
        def __init__(self) -> None:
            self.sent: list[float] = []
            self.counts = {"kept": 0, "dropped": 0}

        def write(self, lines: bytes, num_lines: int = 1) -> bool:
            self.counts["kept"] += num_lines
            return True

        def send(self) -> None:
            self.sent.append(engine.now_s)

        def close(self) -> None:
            return

    out = Counting()
    recording = Recording(out, SimpleNamespace(wait=lambda s: 0))
    engine = fake_engine(Journal(registry.build("fcfs"), recording), num_blocks=200)
    engine.arrive("a", 8, 300)
    engine.drain(400)
    steps_s = [after - before for before, after in itertools.pairwise(out.sent[:-1])]
    assert len(out.sent) >= 5
    assert all(span_s >= journal_module.EVERY_S for span_s in steps_s)
    assert out.sent[-1] == engine.now_s


@pytest.mark.parametrize(
    ("given", "hint"),
    [
        ({"record": 5}, "must name a folder"),
        ({"record": ""}, "must name a folder"),
        ({"record": "x", "record_gib": 0}, "record_gib"),
        ({"record": "x", "record_gib": True}, "record_gib"),
        ({"record": "x", "record_gib": math.nan}, "record_gib"),
        ({"record_gib": "much"}, "record_gib"),
    ],
)
def test_settings_that_cannot_be(given: dict[str, Any], hint: str) -> None:
    """One sentence with the setting's name."""
    with pytest.raises(UserError, match=hint):
        Settings.parse(given)


@pytest.mark.parametrize("where", ["file/below", "no/such/folder/run.jsonl", "folder.jsonl"])
def test_an_unwritable_recording_is_a_users_mistake(tmp_path: Path, where: str) -> None:
    """A path that cannot be written gives a sentence, not a traceback, before anything starts."""
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.jsonl").mkdir()
    settings = Settings.parse({"record": str(tmp_path / where)})
    with pytest.raises(UserError, match="Cannot write the recording"):
        check_writable(settings)
    with pytest.raises(UserError, match="Cannot write the recording"):
        recording_of(settings, LAPTOP, CONFIG)


def test_without_the_setting_nothing_is_recorded() -> None:
    """And no process starts."""
    assert recording_of(Settings.parse({}), LAPTOP, CONFIG) is None


def test_names_of_files_are_what_readers_look_for() -> None:
    """Plain, packed, and nothing that only looks like it."""
    assert FILE_NAME.fullmatch(file_name(RUN, 1))
    assert FILE_NAME.fullmatch(file_name(RUN, 1) + ".gz")
    assert not FILE_NAME.fullmatch(file_name(RUN, 1) + ".part")


def test_an_event_is_one_line() -> None:
    """Names with line ends in them too."""
    assert "\n" not in event_line(StepDone(1.0, {"a\nb": 1}))
