"""The way out of the scheduler's process: bounded, never waiting, counting what it drops."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from headway.engines.vllm import channel, mailbox
from headway.engines.vllm.channel import (
    CHANNEL_VARIABLE,
    LOAD_CHANNEL_VARIABLE,
    Receiver,
    Sender,
    private_channel,
)
from headway.engines.vllm.watch import watch_of
from headway.errors import UserError

NONE_DROPPED = {"reader_slow": 0, "backlog_full": 0, "too_large": 0, "no_folder": 0}


@pytest.fixture
def sender(tmp_path: Path) -> Iterator[Sender]:
    made = Sender(tmp_path / "channel")
    yield made
    made.close()


@pytest.fixture
def receiver(tmp_path: Path) -> Iterator[Receiver]:
    made = Receiver(tmp_path / "channel")
    yield made
    made.close()


def test_every_reader_gets_every_message(tmp_path: Path, sender: Sender) -> None:
    """Several API server processes read the same scheduler."""
    readers = [Receiver(tmp_path / "channel") for _ in range(3)]
    assert sender.find_readers() == 3
    sender.send({"a": [1, "ü"]})
    for reader in readers:
        assert list(reader.receive()) == [{"a": [1, "ü"]}]
        reader.close()
    assert sender.find_readers() == 0


def test_without_a_reader_nothing_is_even_written(sender: Sender) -> None:
    """An object JSON cannot write would raise if it were looked at."""
    assert sender.find_readers() == 0
    sender.send({"no": object()})
    sender.keep({"no": object()})
    assert sum(sender.dropped.values()) == 0


def test_a_reader_that_does_not_read_costs_snapshots_and_no_time(
    sender: Sender, receiver: Receiver
) -> None:
    """It is passed over until it has read; then it gets the newest."""
    sender.find_readers()
    for number in range(1000):
        sender.send({"number": number})
    assert list(receiver.receive()) == [{"number": 0}]
    assert sender.dropped == NONE_DROPPED | {"reader_slow": 999}
    sender.send({"number": 1000})
    assert list(receiver.receive()) == [{"number": 1000}]


def test_a_sleeping_reader_takes_nothing_from_the_others(tmp_path: Path, sender: Sender) -> None:
    """Each reader is passed over, or not, by itself."""
    asleep, awake = Receiver(tmp_path / "channel"), Receiver(tmp_path / "channel")
    sender.find_readers()
    for number in range(3):
        sender.send({"number": number})
        assert list(awake.receive()) == [{"number": number}]
    assert list(asleep.receive()) == [{"number": 0}]
    asleep.close()
    awake.close()


def test_a_burst_of_stories_arrives_whole(sender: Sender, receiver: Receiver) -> None:
    """A hundred stories of one plan, of which the kernel alone would queue ten: behind a snapshot,
    in order, in datagrams of 60 kB."""
    sender.find_readers()
    stories = [{"story": number, "filler": "x" * 2000} for number in range(100)]
    for story in stories:
        sender.keep(story)
    sender.send({"snapshot": 1})
    assert list(receiver.receive(most=1)) == [{"snapshot": 1}]
    sizes = []
    while data := _datagram(receiver):
        sizes.append(len(data))
        assert json.loads(data) == [stories.pop(0) for _ in json.loads(data)]
    assert stories == []
    assert len(sizes) == 4
    assert all(50_000 < size <= mailbox.MAX_STORIES_BYTES for size in sizes[:-1])
    assert sender.dropped == NONE_DROPPED


def _datagram(receiver: Receiver) -> bytes:
    try:
        return receiver._socket.recv(200_000)
    except BlockingIOError:
        return b""


def test_stories_wait_for_a_reader_that_sleeps(sender: Sender, receiver: Receiver) -> None:
    """Told while it did not read, they leave with the first snapshot after it did."""
    sender.find_readers()
    sender.send({"snapshot": 1})
    sender.keep({"story": 1})
    sender.send({"snapshot": 2})
    sender.keep({"story": 2})
    assert list(receiver.receive()) == [{"snapshot": 1}]
    sender.send({"snapshot": 3})
    assert list(receiver.receive()) == [{"snapshot": 3}, {"story": 1}, {"story": 2}]
    assert sender.dropped == NONE_DROPPED | {"reader_slow": 1}


def test_more_stories_than_a_tell_takes_leave_with_the_next(
    sender: Sender, receiver: Receiver
) -> None:
    """Ten datagrams' worth: six now, four later, none twice."""
    sender.find_readers()
    for number in range(10):
        sender.keep({"story": number, "filler": "x" * (mailbox.MAX_STORIES_BYTES - 100)})
    for first, last in ((0, 6), (6, 10), (10, 10)):
        sender.send({"snapshot": first})
        heard = list(receiver.receive())
        assert heard[0] == {"snapshot": first}
        assert [m["story"] for m in heard[1:]] == list(range(first, last))


def test_what_waits_is_bounded_and_counted(sender: Sender, receiver: Receiver) -> None:
    """A reader that sleeps through a flood misses the oldest stories, and it is said how many."""
    sender.find_readers()
    for number in range(3000):
        sender.keep({"story": number, "filler": "x" * 1000})
    num_lost = sender.dropped["backlog_full"]
    assert 1900 < num_lost < 2100
    heard: list[int] = []
    while len(heard) < 3000 - num_lost:
        sender.send({})
        told = [m["story"] for m in receiver.receive() if m]
        assert told, "each tell brings some"
        heard += told
    assert heard == list(range(num_lost, 3000))
    for number in range(900):
        sender.keep({"story": number, "filler": "x" * 1000})
    assert sender.dropped["backlog_full"] == num_lost, "what has left takes no room"


def test_the_last_snapshot_before_idle_is_never_passed_over(
    sender: Sender, receiver: Receiver
) -> None:
    """Behind a full tell that nobody has read, three more times in a row: nothing would supersede
    it, and stories do not take its place."""
    sender.find_readers()
    for _ in range(19):
        sender.keep({"filler": "x" * 50_000})
    sender.send({"snapshot": 0})
    for number in range(1, 4):
        sender.send({"snapshot": number}, is_last=True)
    heard = [m for m in receiver.receive() if "snapshot" in m]
    assert heard == [{"snapshot": number} for number in range(4)]
    assert sender.dropped == NONE_DROPPED


def test_stories_leave_before_idle_though_something_is_unread(
    sender: Sender, receiver: Receiver
) -> None:
    """The last promise was broken while the reader slept: no tell may follow that brings it. It
    takes no room in the queue either."""
    sender.find_readers()
    sender.send({"snapshot": 0})
    for number in range(1, 10):
        sender.keep({"story": number})
        sender.send({"snapshot": number}, is_last=True)
    heard = list(receiver.receive())
    assert [m["story"] for m in heard if "story" in m] == list(range(1, 10))
    assert [m["snapshot"] for m in heard if "snapshot" in m] == list(range(10))
    assert sender.dropped == NONE_DROPPED


def test_the_largest_snapshot_and_stories_are_read_whole(
    sender: Sender, receiver: Receiver
) -> None:
    """What is sent last, together, is more than a snapshot may be alone."""
    sender.find_readers()
    empty = len(json.dumps({"t": ""}, separators=(",", ":")))
    sender.send({"t": ""})
    sender.keep({"t": "x" * (mailbox.MAX_STORIES_BYTES - empty - 2)})
    sender.send({"t": "x" * (channel.MAX_MESSAGE_BYTES - empty)}, is_last=True)
    sizes = [len(message["t"]) + empty for message in receiver.receive()]
    assert sizes == [empty, channel.MAX_MESSAGE_BYTES, mailbox.MAX_STORIES_BYTES - 2]
    assert receiver.num_unreadable == 0


def test_a_kernel_that_cannot_tell_what_is_unread_is_asked_by_writing(
    sender: Sender, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then the queue fills, and what it refuses is counted or waits."""

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOTTY, "not here")

    monkeypatch.setattr(mailbox.fcntl, "ioctl", refuse)
    sender.find_readers()
    for number in range(100):
        sender.keep({"story": number})
        sender.send({"snapshot": number})
    heard = list(receiver.receive())
    assert sender.dropped["reader_slow"] == 100 - sum("snapshot" in m for m in heard) > 0
    sender.send({})
    heard += receiver.receive()
    assert [m["story"] for m in heard if "story" in m] == list(range(100))


def test_a_reader_that_died_is_no_drop(tmp_path: Path, sender: Sender) -> None:
    """Nobody misses the message, nor the stories that waited."""
    reader = Receiver(tmp_path / "channel")
    assert sender.find_readers() == 1
    reader._socket.close()
    sender.keep({"story": 1})
    sender.send({"a": 1})
    assert not sender.has_readers
    assert sender.dropped == NONE_DROPPED


def test_the_sockets_of_the_killed_are_removed(tmp_path: Path, sender: Sender) -> None:
    """A hundred servers were killed in this folder; the live one, last by name, is heard after a
    few looks. One that refuses once may be about to listen, and is left."""
    folder = tmp_path / "channel"
    for number in range(100):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as killed:
            killed.bind(str(folder / f"{number:03}.sock"))
    living = Receiver(folder)
    last = folder / "zzz.sock"
    Path(living._path).rename(last)
    living._path = str(last)
    found = [sender.find_readers() for _ in range(4)]
    assert found == [0, 0, 1, 1]
    assert len(list(folder.glob("*.sock"))) == 1
    living.close()


def test_what_is_too_large_is_dropped_and_counted(sender: Sender, receiver: Receiver) -> None:
    """A message above the limit, whole; one at the limit arrives."""
    sender.find_readers()
    empty = len(json.dumps({"t": ""}, separators=(",", ":")))
    sender.send({"t": "x" * (channel.MAX_MESSAGE_BYTES - empty + 1)})
    sender.keep({"t": "x" * (mailbox.MAX_STORIES_BYTES - empty - 2)})
    sender.keep({"t": "x" * (mailbox.MAX_STORIES_BYTES - empty - 1)})
    sender.send({"t": "x" * (channel.MAX_MESSAGE_BYTES - empty)})
    sizes = [len(m["t"]) + empty for m in receiver.receive()]
    assert sizes == [channel.MAX_MESSAGE_BYTES, mailbox.MAX_STORIES_BYTES - 2]
    assert sender.dropped == NONE_DROPPED | {"too_large": 2}


@pytest.mark.parametrize("data", [b"", b"{", b"[1]", b"\xff", b"7", b"[" * 100_000])
def test_what_is_no_object_is_counted(tmp_path: Path, receiver: Receiver, data: bytes) -> None:
    """Somebody else's datagram harms nobody."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.sendto(data, receiver._path)
    assert list(receiver.receive()) == []
    assert receiver.num_unreadable == 1


def test_the_folder_is_private(tmp_path: Path, sender: Sender) -> None:
    """Only the user who runs the server can listen in."""
    mode = stat.S_IMODE((tmp_path / "channel").stat().st_mode)
    assert mode == 0o700


@pytest.mark.parametrize("variable", [CHANNEL_VARIABLE, LOAD_CHANNEL_VARIABLE])
def test_a_folder_that_cannot_be_is_a_sentence(
    variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names the variable that names the folder."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(variable, str(tmp_path / "file" / "below"))
    with pytest.raises(UserError, match=f"^{variable}: "):
        Sender(tmp_path / "file" / "below")


def of_rank(index: int) -> SimpleNamespace:
    """Return what of vLLM's scheduler says which data parallel rank it is."""
    ranks = SimpleNamespace(data_parallel_index=index)
    return SimpleNamespace(vllm_config=SimpleNamespace(parallel_config=ranks))


def test_nothing_is_watched_unless_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Plain vLLM with our scheduler class keeps the bare core."""
    core = SimpleNamespace(name="slack", known=SimpleNamespace(overload="demote"), live=None)
    scheduler = of_rank(3)
    monkeypatch.delenv(CHANNEL_VARIABLE, raising=False)
    assert watch_of(core, scheduler) is None  # type: ignore[arg-type]
    monkeypatch.setenv(CHANNEL_VARIABLE, str(tmp_path / "c"))
    seen = watch_of(core, scheduler)  # type: ignore[arg-type]
    assert seen is not None
    assert seen._engine == "3"
    with pytest.raises(UserError, match=f"process {os.getpid()}.*folder of its own"):
        watch_of(core, scheduler)  # type: ignore[arg-type]
    watch_of(core, of_rank(4)).close()  # type: ignore[arg-type, union-attr]  # Another rank of the same server.
    seen.close()
    watch_of(core, scheduler).close()  # type: ignore[arg-type, union-attr]  # What one let go of, the next may have.


@pytest.mark.parametrize("variable", [CHANNEL_VARIABLE, LOAD_CHANNEL_VARIABLE])
def test_serve_names_a_channel_of_its_own(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A new folder for each server, unless the operator named one."""
    monkeypatch.setenv(variable, "")
    private_channel(variable)
    folder = os.environ[variable]
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    private_channel(variable)
    assert os.environ[variable] == folder
    running = Sender(folder, "0")
    with pytest.raises(UserError, match="another server uses the folder"):
        private_channel(variable)
    running.close()


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_server_leaves_no_claim(tmp_path: Path, signum: int) -> None:
    """The kernel lets go of the folder, and the next server starts in it."""
    code = (
        "import sys, time; from headway.engines.vllm.channel import Sender;"
        "s = Sender(sys.argv[1], '0'); print('up', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        with pytest.raises(UserError, match=f"process {process.pid}"):
            Sender(tmp_path, "0")
        process.send_signal(signum)
        process.wait()
    Sender(tmp_path, "0").close()
