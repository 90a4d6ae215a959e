"""A process of its own that writes a recording: lines from standard input into rotating files.

``python -m headway.engines.vllm.writer TARGET``; the scheduler starts it (``recorder.py``) and it
ends when its input does. Input is read as fast as the disk takes it. While the disk takes
nothing, nothing is read, so that the scheduler notices, drops and counts.
"""

from __future__ import annotations

import argparse
import gzip
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from headway.workloads.record_files import FILE_NAME, file_name, total_bytes

FILE_BYTES = 16 * 1024 * 1024
"""A file that has grown to this is packed, to about a twentieth, and the next one begun."""

LEAST_FILES = 4
"""With a small total the files are smaller, so that rotation removes a part and not all."""

READ_BYTES = 1 << 20

RETRY_S = 1.0
"""Seconds until a disk that is full is asked again."""

NICENESS = 10

_DECODER = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ENCODER = msgspec.json.Encoder()


class RotatingLog:
    """Files of whole lines in a folder that never holds more than *total_bytes* of them.

    The total is that of all runs in the folder; the oldest files, of whatever run, are removed.

    Args:
        run: Name of the run, as :mod:`~headway.workloads.record_files` reads it.
        header: First line of every file, its end included.
        total_bytes: Bound on the folder, packing included.
    """

    def __init__(self, folder: Path, run: str, header: bytes, total_bytes: int) -> None:
        self._folder, self._run, self._header = folder, run, header
        self._total_bytes = total_bytes
        self._file_bytes = min(FILE_BYTES, total_bytes // LEAST_FILES)
        self._number = 0
        self._size = 0
        self._fd = -1

    def write(self, lines: bytes) -> None:
        """Append whole lines.

        Raises:
            OSError: The disk does not take them; the file ends with the line before, and the
                same lines may be offered again.
        """
        if self._fd < 0 or os.fstat(self._fd).st_nlink == 0:  # Removed by somebody else.
            self._begin()
        elif self._size >= self._file_bytes:
            self._pack()
            self._begin()
        data = lines if self._size else self._header + lines
        try:
            write_all(self._fd, data)
        except OSError:
            os.ftruncate(self._fd, self._size)
            raise
        self._size += len(data)

    def close(self) -> None:
        """Close the newest file; it stays plain."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    @property
    def _path(self) -> Path:
        return self._folder / file_name(self._run, self._number)

    def _begin(self) -> None:
        """Open the next file, once there is room for it."""
        self.close()
        self._make_room(self._file_bytes)
        fd = os.open(
            self._folder / file_name(self._run, self._number + 1),
            os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND,
            0o600,
        )
        self._number += 1
        self._fd, self._size = fd, 0

    def _pack(self) -> None:
        """Compress the file that is full, and take the plain one away."""
        self.close()
        plain = self._path
        packed = plain.with_name(plain.name + ".gz")
        part = plain.with_name(plain.name + ".part")
        self._make_room(self._file_bytes)
        try:
            with plain.open("rb") as source, gzip.open(part, "wb", compresslevel=1) as out:
                shutil.copyfileobj(source, out, READ_BYTES)
            part.chmod(0o600)
            part.replace(packed)
        except FileNotFoundError:
            return  # Removed by somebody else; there is nothing to pack.
        except OSError:
            part.unlink(missing_ok=True)
            raise
        plain.unlink(missing_ok=True)

    def _make_room(self, num_bytes: int) -> None:
        """Remove the oldest files until *num_bytes* more fit."""
        ours = [p for p in self._folder.iterdir() if FILE_NAME.fullmatch(p.name)]
        known = sorted((p for p in ours if p != self._path), key=_age)
        while known and total_bytes(ours) + num_bytes > self._total_bytes:
            known.pop(0).unlink(missing_ok=True)


class OneFile:
    """One file without an end, begun anew: for debugging, and for bit-for-bit replay."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        self._size = 0

    def write(self, lines: bytes) -> None:
        """Append whole lines; see :meth:`RotatingLog.write` for errors."""
        try:
            write_all(self._fd, lines)
        except OSError:
            os.ftruncate(self._fd, self._size)
            os.lseek(self._fd, self._size, os.SEEK_SET)
            raise
        self._size += len(lines)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)


def write_all(fd: int, data: bytes) -> None:
    """Write *data*, however many calls it takes."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _age(path: Path) -> tuple[float, str]:
    try:
        return path.stat().st_mtime, path.name
    except FileNotFoundError:
        return 0.0, path.name


def pump(source: int, log: RotatingLog | OneFile) -> None:
    """Write what *source* (a descriptor) holds until it ends; a cut last line is left out."""
    rest, parent = b"", os.getppid()
    last: dict[bytes, dict[str, msgspec.Raw]] = {}
    while data := os.read(source, READ_BYTES):
        lines, end, rest = (rest + data).rpartition(b"\n")
        for portion in in_full(lines + end, last):
            _insist(log, portion, parent)
    log.close()


def in_full(lines: bytes, last: dict[bytes, dict[str, msgspec.Raw]]) -> Iterator[bytes]:
    """Yield whole lines, what was left out of them written out, a mebibyte at a time.

    What the line of a step leaves out is as in the last line of the same event, byte for byte;
    see ``Brief`` in ``recorder.py``.

    Args:
        last: The last of each event; kept from call to call.
    """
    written = bytearray()
    for line in lines.splitlines(keepends=True):
        if line.startswith(b'{"event":"Step'):
            row = _DECODER.decode(line)
            event = bytes(row["event"])
            whole = last[event] = {**last.get(event, {}), **row}
            written += line if len(row) == len(whole) else _ENCODER.encode(whole) + b"\n"
        else:
            written += line
        if len(written) >= READ_BYTES:
            yield bytes(written)
            written.clear()
    if written:
        yield bytes(written)


def _insist(log: RotatingLog | OneFile, lines: bytes, parent: int) -> None:
    """Write *lines*, however often it takes while the process *parent* lives."""
    is_first = True
    while True:
        try:
            log.write(lines)
        except OSError as error:
            if is_first:
                print(f"headway: cannot write the recording: {error.strerror}.", file=sys.stderr)
            is_first = False
            if os.getppid() != parent:
                sys.exit(1)  # The server has ended; nobody waits for this any more.
            time.sleep(RETRY_S)
        else:
            return


def main() -> None:
    """Write standard input to the target until it ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("target", type=Path)
    parser.add_argument("--run")
    parser.add_argument("--header", default="")
    parser.add_argument("--total-bytes", type=int, default=0)
    given = parser.parse_args()
    # Whoever stops the server stops the scheduler, and its end of the pipe ends this process,
    # once everything is written.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.nice(NICENESS)
    log: RotatingLog | OneFile
    if given.run is None:
        log = OneFile(given.target)
    else:
        header = given.header.encode() + b"\n"
        log = RotatingLog(given.target, given.run, header, given.total_bytes)
    pump(0, log)


if __name__ == "__main__":
    main()
