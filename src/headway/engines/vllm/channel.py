"""The way out of the scheduler's process: bounded, never waiting, and counting what it drops.

Messages are JSON datagrams over Unix sockets in a private folder. Each reader binds a socket of
its own there; the sender writes to every socket it finds, without blocking. A reader that is
slow has a full queue in the kernel, and its message is dropped and counted; one that is absent
has no socket. Rejected: ``multiprocessing`` queues (a feeder thread that competes for the
interpreter, and pickle) and shared memory (a slow reader sees torn data).
"""

from __future__ import annotations

import atexit
import errno
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

from headway.errors import UserError

CHANNEL_VARIABLE = "HEADWAY_CHANNEL"
"""Environment variable that names the folder; set by ``headway serve``. Without it nothing is
observed and nothing is sent."""

MAX_MESSAGE_BYTES = 120_000
"""A larger message is dropped and counted; Linux takes datagrams of up to about 200 kB."""

MAX_READERS = 64
"""Sockets written to at most: one for each API server process."""

RECEIVE_BUFFER_BYTES = 1 << 20

SUFFIX = ".sock"

_ENCODER = msgspec.json.Encoder()
"""Takes a tenth of the time that ``json`` does, between two steps of the engine."""


class Sender:
    """Writes to all readers of a folder. Nothing here waits or raises once it is made.

    Raises:
        UserError: The folder cannot be used.
    """

    def __init__(self, folder: str | Path) -> None:
        self._folder = open_folder(folder)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._readers: list[str] = []
        self.dropped = {"reader_slow": 0, "too_large": 0, "no_folder": 0}

    def find_readers(self) -> int:
        """Look for readers again; return how many there are."""
        try:
            names = os.listdir(self._folder)
        except OSError:
            self.dropped["no_folder"] += 1
            names = []
        found = sorted(name for name in names if name.endswith(SUFFIX))[:MAX_READERS]
        self._readers = [os.path.join(self._folder, name) for name in found]
        return len(self._readers)

    @property
    def has_readers(self) -> bool:
        """Whether anybody was there when :meth:`find_readers` last looked."""
        return bool(self._readers)

    def send(self, message: Mapping[str, Any]) -> None:
        """Offer *message* to every reader; drop and count where one cannot take it now."""
        if not self._readers:
            return
        data = _ENCODER.encode(message)
        if len(data) > MAX_MESSAGE_BYTES:
            self.dropped["too_large"] += 1
            return
        for path in self._readers:
            try:
                self._socket.sendto(data, path)
            except OSError as error:
                # A reader that has gone is not slow: the next look will not find it, or will
                # find the socket it left behind, which refuses.
                if error.errno not in (errno.ECONNREFUSED, errno.ENOENT):
                    self.dropped["reader_slow"] += 1

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class Receiver:
    """One reader's socket in the folder.

    Raises:
        UserError: The folder cannot be used.
    """

    def __init__(self, folder: str | Path) -> None:
        self._path = os.path.join(open_folder(folder), uuid.uuid4().hex[:12] + SUFFIX)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
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
        """Yield the messages that are there, *most* at most; what is no object is counted."""
        for _ in range(most):
            try:
                data = self._socket.recv(MAX_MESSAGE_BYTES + 1)
            except BlockingIOError:
                return
            try:
                message = json.loads(data)
            except (ValueError, RecursionError):
                message = None
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
            f"{CHANNEL_VARIABLE}: cannot use the folder {folder}: {error.strerror}."
        ) from None
    if owner != os.getuid():
        raise UserError(f"{CHANNEL_VARIABLE}: the folder {folder} belongs to another user.")
    return str(path)


def private_channel() -> None:
    """Name a new folder as this server's channel, unless one is named; it goes with the process."""
    if not os.environ.get(CHANNEL_VARIABLE):
        folder = tempfile.mkdtemp(prefix="headway-")
        os.environ[CHANNEL_VARIABLE] = folder
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
