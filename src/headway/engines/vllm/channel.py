"""The way out of the scheduler's process: bounded, never waiting, and counting what it drops.

Messages are JSON datagrams over Unix sockets in a private folder. Each reader binds a socket of
its own there; the sender writes to every socket it finds, without blocking, and
:mod:`headway.engines.vllm.mailbox` says what becomes of what a reader cannot take now. Rejected:
``multiprocessing`` queues (a feeder thread that competes for the interpreter, and pickle) and
shared memory (a slow reader sees torn data).
"""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from headway.engines.vllm.mailbox import MAX_STORIES_BYTES, Mailbox
from headway.errors import UserError

CHANNEL_VARIABLE = "HEADWAY_CHANNEL"
"""Environment variable that names the folder; set by ``headway serve``. Without it nothing is
observed and nothing is sent."""

LOAD_CHANNEL_VARIABLE = "HEADWAY_LOAD_CHANNEL"
"""The same for load reports (:mod:`headway.engines.vllm.load_signal`): a folder of its own, so that
a server without a page counts nothing else for them."""

MAX_MESSAGE_BYTES = 150_000
"""A larger message is dropped and counted; Linux takes datagrams of up to about 200 kB."""

MAX_READERS = 64
"""Sockets written to at most: one for each API server process."""

SUFFIX = ".sock"

_ENCODER = msgspec.json.Encoder()
"""As for recordings (:mod:`headway.policy.log`): it runs between two steps of the engine."""


class Sender:
    """Writes to all readers of a folder. Nothing here waits or raises once it is made.

    Args:
        engine: The scheduler it speaks for. A second sender of that name is refused, until this
            one is closed or its process ends; ``None`` claims nothing.

    Raises:
        UserError: The folder cannot be used, or another server uses it.
    """

    def __init__(self, folder: str | Path, engine: str | None = None) -> None:
        self._folder = open_folder(folder)
        self._claim = None if engine is None else claim(self._folder, engine)
        self._readers: dict[str, Mailbox] = {}
        self._refusing: set[str] = set()
        self.dropped = {"reader_slow": 0, "backlog_full": 0, "too_large": 0, "no_folder": 0}
        """Snapshots that a reader had no time for, the next one holds all they held; stories that
        waited too long; messages and looks at the folder that could not be."""

    def find_readers(self) -> int:
        """Look for readers again; return how many there are."""
        try:
            names = {name for name in os.listdir(self._folder) if name.endswith(SUFFIX)}
        except OSError:
            self.dropped["no_folder"] += 1
            names = set()
        for name in self._readers.keys() - names:
            self._readers.pop(name).close()
        refusing, self._refusing = self._refusing, set()
        for name in sorted(names - self._readers.keys())[:MAX_READERS]:
            if len(self._readers) < MAX_READERS:
                self._meet(name, refusing)
        return len(self._readers)

    def _meet(self, name: str, refusing: set[str]) -> None:
        """Connect to a reader; remove the socket of one that was killed."""
        path = os.path.join(self._folder, name)
        try:
            self._readers[name] = Mailbox(path)
        except ConnectionRefusedError:
            # At the first look it may be about to listen.
            if name not in refusing:
                self._refusing.add(name)
                return
            with contextlib.suppress(OSError):
                os.unlink(path)
        except OSError:
            pass  # It has just gone, or is no reader's.

    @property
    def has_readers(self) -> bool:
        """Whether anybody was there when :meth:`find_readers` last looked."""
        return bool(self._readers)

    def keep(self, story: Mapping[str, Any]) -> None:
        """Let *story* leave with the next message, if anybody is there to read it."""
        if not self._readers:
            return
        data = _ENCODER.encode(story)
        if len(data) + 2 > MAX_STORIES_BYTES:
            self.dropped["too_large"] += 1
            return
        for reader in self._readers.values():
            self.dropped["backlog_full"] += reader.keep(data)

    def send(self, message: Mapping[str, Any], *, is_last: bool = False) -> None:
        """Offer *message*, and the stories kept, to every reader.

        Args:
            is_last: None may follow for long: it goes also to whoever has not read the last one.
        """
        if not self._readers:
            return
        data = _ENCODER.encode(message)
        if len(data) > MAX_MESSAGE_BYTES:
            self.dropped["too_large"] += 1
            return
        for name, reader in list(self._readers.items()):
            try:
                if not reader.try_write(data, is_last=is_last):
                    self.dropped["reader_slow"] += 1
            except ConnectionError:  # It has gone, which is no loss to it.
                self._readers.pop(name).close()

    def close(self) -> None:
        """Close the sockets and give up the claim."""
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()
        if self._claim is not None:
            os.close(self._claim)
            self._claim = None


class Receiver:
    """One reader's socket in the folder.

    Raises:
        UserError: The folder cannot be used.
    """

    def __init__(self, folder: str | Path) -> None:
        self._path = os.path.join(open_folder(folder), uuid.uuid4().hex[:12] + SUFFIX)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            self._socket.bind(self._path)
        except OSError as error:
            self._socket.close()
            raise UserError(f"Cannot listen in {folder}: {error.strerror or error}.") from None
        self.num_unreadable = 0

    def fileno(self) -> int:
        """Return the descriptor an event loop can watch."""
        return self._socket.fileno()

    def receive(self, most: int = 256) -> Iterator[dict[str, Any]]:
        """Yield the messages of *most* datagrams at most; what is no object is counted."""
        for _ in range(most):
            try:
                data = self._socket.recv(MAX_MESSAGE_BYTES + MAX_STORIES_BYTES + 1)
            except BlockingIOError:
                return
            try:
                heard = json.loads(data)
            except (ValueError, RecursionError):
                heard = None
            for message in heard if isinstance(heard, list) else (heard,):
                if isinstance(message, dict):
                    yield message
                else:
                    self.num_unreadable += 1

    def close(self) -> None:
        """Close the socket and take it out of the folder."""
        self._socket.close()
        Path(self._path).unlink(missing_ok=True)


def open_folder(folder: str | Path) -> str:
    """Make the folder, for this user alone, unless it is there; return its path.

    Raises:
        UserError: It cannot be made, or belongs to somebody else.
    """
    path = Path(folder)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = path.stat().st_uid
    except OSError as error:
        raise UserError(
            f"{_variable_of(folder)}: cannot use the folder {folder}: {error.strerror}."
        ) from None
    if owner != os.getuid():
        raise UserError(f"{_variable_of(folder)}: the folder {folder} belongs to another user.")
    return str(path)


def claim(folder: str | Path, engine: str) -> int:
    """Take a folder for one scheduler; return the descriptor that holds it.

    The kernel lets go of it when the process ends, however it ends.

    Raises:
        UserError: Another one of that name has it, or it cannot be written to.
    """
    path = os.path.join(folder, f"engine-{engine}.lock")
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise UserError(
            f"{_variable_of(folder)}: cannot use the folder {folder}: {error.strerror}."
        ) from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        owner = os.pread(fd, 20, 0).decode("latin-1").strip()
        os.close(fd)
        raise UserError(
            f"{_variable_of(folder)}: another server uses the folder {folder} (process {owner});"
            " give each server a folder of its own."
        ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, b"%d\n" % os.getpid(), 0)
    return fd


def _variable_of(folder: str | Path) -> str:
    """Return the variable that names *folder*."""
    is_load = os.environ.get(LOAD_CHANNEL_VARIABLE) == str(folder)
    return LOAD_CHANNEL_VARIABLE if is_load else CHANNEL_VARIABLE


def private_channel(variable: str = CHANNEL_VARIABLE) -> None:
    """Name a new folder in *variable*, unless one is named; it goes with the process.

    Raises:
        UserError: One is named, and another server uses it.
    """
    named = os.environ.get(variable)
    if named:
        # Here it is a sentence; in the engine, a traceback.
        os.close(claim(open_folder(named), "0"))
        return
    folder = tempfile.mkdtemp(prefix="headway-")
    os.environ[variable] = folder
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
