"""The way out of the scheduler's process: bounded, never waiting, counting what it drops."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from headway.engines.vllm import channel
from headway.engines.vllm.channel import CHANNEL_VARIABLE, Receiver, Sender, private_channel
from headway.engines.vllm.watch import Watched, watched
from headway.errors import UserError


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
    sender.send({"b": 2})
    for reader in readers:
        assert list(reader.receive()) == [{"a": [1, "ü"]}, {"b": 2}]
        reader.close()
    assert sender.find_readers() == 0


def test_without_a_reader_nothing_is_even_written(sender: Sender) -> None:
    """An object JSON cannot write would raise if it were looked at."""
    assert sender.find_readers() == 0
    sender.send({"no": object()})
    assert sum(sender.dropped.values()) == 0


def test_a_reader_that_does_not_read_costs_messages_and_no_time(
    sender: Sender, receiver: Receiver
) -> None:
    """Ten thousand messages to a sleeping reader: none waits, the rest is counted."""
    sender.find_readers()
    for number in range(10_000):
        sender.send({"number": number, "filler": "x" * 1000})
    heard = list(receiver.receive(most=20_000))
    assert [m["number"] for m in heard] == list(range(len(heard))), "the oldest are kept, in order"
    assert 0 < len(heard) < 10_000
    assert sender.dropped["reader_slow"] == 10_000 - len(heard)
    sender.send({"after": True})
    assert list(receiver.receive()) == [{"after": True}]


def test_a_reader_that_died_is_no_drop(tmp_path: Path, sender: Sender) -> None:
    """Its socket file stays behind and refuses; nobody misses the message."""
    reader = Receiver(tmp_path / "channel")
    reader._socket.close()
    assert sender.find_readers() == 1
    sender.send({"a": 1})
    assert sender.dropped["reader_slow"] == 0


def test_what_is_too_large_is_dropped_and_counted(sender: Sender, receiver: Receiver) -> None:
    """A message above the limit, whole; one at the limit arrives."""
    sender.find_readers()
    empty = len(json.dumps({"t": ""}, separators=(",", ":")))
    sender.send({"t": "x" * (channel.MAX_MESSAGE_BYTES - empty)})
    sender.send({"t": "x" * (channel.MAX_MESSAGE_BYTES - empty + 1)})
    assert len(list(receiver.receive())) == 1
    assert sender.dropped["too_large"] == 1


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


def test_a_folder_that_cannot_be_is_a_sentence(tmp_path: Path) -> None:
    """It names the variable."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=CHANNEL_VARIABLE):
        Sender(tmp_path / "file" / "below")


def test_nothing_is_watched_unless_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Plain vLLM with our scheduler class keeps the bare core."""
    core = SimpleNamespace(name="slack", overload="demote", live=None)
    config = SimpleNamespace(parallel_config=SimpleNamespace(data_parallel_index=3))
    monkeypatch.delenv(CHANNEL_VARIABLE, raising=False)
    assert watched(core, config) is core
    monkeypatch.setenv(CHANNEL_VARIABLE, str(tmp_path / "c"))
    seen = watched(core, config)
    assert isinstance(seen, Watched)
    assert seen._engine == "3"
    seen._sender.close()
    assert seen.overload == "demote", "what is not watched is the core's own"


def test_serve_names_a_channel_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new folder for each server, unless the operator named one."""
    monkeypatch.setenv(CHANNEL_VARIABLE, "")
    private_channel()
    folder = os.environ[CHANNEL_VARIABLE]
    assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
    private_channel()
    assert os.environ[CHANNEL_VARIABLE] == folder
    os.rmdir(folder)
