"""The scheduler's side of a recording: lines leave by a pipe, and nothing here ever waits.

A process of its own (``writer.py``) reads the pipe and writes the files. What the pipe does not
take waits in memory, up to a bound; beyond it lines are dropped and counted, and a ``gap`` line
says so where they are missing. ``docs/decisions/0007`` says why not a thread, and why not the
datagrams of ``channel.py``.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from headway import __version__
from headway.config import Settings
from headway.engines.journal import Reader
from headway.engines.vllm.brief import Brief
from headway.errors import UserError
from headway.latency.roofline import Roofline
from headway.policy.log import Entry
from headway.units import GIB

PIPE_BYTES = 1 << 20
"""Asked of the kernel for the pipe; Linux gives an ordinary user no more. One second of 256
streams at 40 steps a second."""

SEND_BYTES = 1 << 16
"""Lines are handed over in portions of this: a system call a step would cost as much again."""

MOST_WAITING_BYTES = 8 * 1024 * 1024
"""Bound on what waits in memory for a writer that is slow."""

CLOSE_WITHIN_S = 10.0
"""How long the end of the scheduler waits for a writer that does not move."""


class Handover:
    """Hands lines to a descriptor without waiting; of what is dropped a ``gap`` line tells.

    Args:
        fd: Write end of a pipe; it is closed by :meth:`close`.
        most_waiting_bytes: Bound on lines in memory; ``inf`` loses none.
    """

    def __init__(self, fd: int, most_waiting_bytes: float = MOST_WAITING_BYTES) -> None:
        self._fd = fd
        os.set_blocking(fd, False)
        # Smaller pipes work too, with more waiting in memory.
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._most_waiting_bytes = most_waiting_bytes
        self._waiting = bytearray()
        self._send_at_bytes = SEND_BYTES
        self._gap_lines = 0
        self._is_gone = False
        self.counts = {"kept": 0, "dropped": 0}
        """Lines taken in, and lines lost."""

    def write(self, lines: bytes, num_lines: int = 1) -> bool:
        """Take whole lines in, or drop and count them; return whether they were taken."""
        waiting = self._waiting
        if self._is_gone or len(waiting) + len(lines) > self._most_waiting_bytes:
            self.counts["dropped"] += num_lines
            self._gap_lines += num_lines
            return False
        if self._gap_lines:
            waiting += b'{"gap":{"num_lines":%d}}\n' % self._gap_lines
            self._gap_lines = 0
        waiting += lines
        self.counts["kept"] += num_lines
        if len(waiting) >= self._send_at_bytes:
            self.send()
        return True

    def send(self) -> None:
        """Hand over what the pipe takes now."""
        waiting = self._waiting
        try:
            while waiting and not self._is_gone:
                # A portion at a time: what the pipe refuses is not copied in vain.
                del waiting[: os.write(self._fd, waiting[:SEND_BYTES])]
        except BlockingIOError:
            pass  # It is full: the rest goes with a later portion.
        except BrokenPipeError:
            self._lose()
        self._send_at_bytes = len(waiting) + SEND_BYTES

    def _lose(self) -> None:
        """The writer is gone, and with it what waits and what comes."""
        self._is_gone = True
        lost = self._waiting.count(b"\n")
        self._waiting.clear()
        self.counts["kept"] -= lost
        self.counts["dropped"] += lost

    def close(self) -> None:
        """Hand everything over, waiting for the pipe while it moves, and close it."""
        if self._fd < 0:
            return
        if self._gap_lines and not self._is_gone:
            self._waiting += b'{"gap":{"num_lines":%d}}\n' % self._gap_lines
        self.send()
        while self._waiting and select.select([], [self._fd], [], CLOSE_WITHIN_S)[1]:
            self.send()
        self._lose()  # What is left now, a disk that takes nothing had no room for.
        os.close(self._fd)
        self._fd = -1


class Recording(Reader):
    """What a server records, handed over every half second and when nobody is left."""

    def __init__(self, out: Handover, writer: subprocess.Popen[bytes]) -> None:
        self._out, self._writer = out, writer
        self._brief = Brief(out)
        self.counts: Mapping[str, int] = out.counts
        """Lines of the recording so far: ``kept`` and ``dropped``."""

    def read(self, entries: Sequence[Entry]) -> None:
        """Encode what happened."""
        self._brief.write(entries)

    def tell(self, at_s: float, *, is_idle: bool) -> None:
        """Hand over what was read until now."""
        self._out.send()

    def close(self) -> None:
        """Hand the rest over and wait, within bounds, until it is written."""
        self._out.close()
        # A slower writer goes on writing and ends by itself.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._writer.wait(CLOSE_WITHIN_S)


def recording_of(settings: Settings, guess: Roofline, vllm_config: Any) -> Recording | None:
    """Return the recording that the settings ask for.

    Args:
        guess: What the core's latency model begins with; a replay has to begin with it too.

    Raises:
        UserError: The folder or file cannot be written.
    """
    if settings.record is None:
        return None
    check_writable(settings)
    target = Path(settings.record)
    command = [sys.executable, "-m", "headway.engines.vllm.writer", str(target)]
    if settings.records_one_file:
        most_waiting_bytes = math.inf
    else:
        most_waiting_bytes = MOST_WAITING_BYTES
        engine = int(vllm_config.parallel_config.data_parallel_index)
        started = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        command += ["--run", f"{started}-{os.getpid()}-e{engine}"]
        command += ["--header", json.dumps({"start": start_of(settings, guess, str(engine))})]
        command += ["--total-bytes", str(int(settings.record_gib * GIB))]
    writer = subprocess.Popen(command, stdin=subprocess.PIPE)
    assert writer.stdin is not None
    # From here on the descriptor is ours: the file object around it must not close it.
    fd = os.dup(writer.stdin.fileno())
    writer.stdin.close()
    return Recording(Handover(fd, most_waiting_bytes), writer)


def start_of(settings: Settings, guess: Roofline, engine: str) -> dict[str, Any]:
    """Return what a recording says of itself: who schedules, and two clocks at one instant."""
    return {
        "version": __version__,
        "engine": engine,
        "policy": settings.policy,
        "overload": settings.overload,
        "options": dict(settings.options),
        "roofline": asdict(guess),
        "unix_s": time.time(),
        "at_s": time.monotonic(),
    }


def check_writable(settings: Settings) -> None:
    """See that the recording can be written; make its folder, for this user alone.

    Raises:
        UserError: It cannot.
    """
    if settings.record is None:
        return
    target = Path(settings.record)
    folder = target.parent if settings.records_one_file else target
    try:
        if folder is target:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        is_possible = folder.is_dir() and os.access(folder, os.W_OK | os.X_OK)
        is_possible = is_possible and not (settings.records_one_file and target.is_dir())
    except OSError as error:
        raise UserError(f"Cannot write the recording {target}: {error.strerror}.") from None
    if not is_possible:
        raise UserError(f"Cannot write the recording {target}: no folder that can be written to.")
