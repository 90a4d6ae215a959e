"""The files of a recording: one, or the folder that ``headway serve --record`` fills.

A run is what one scheduler recorded in one life. Its files are named after when it began, its
process and its engine, and numbered: ``20261123T061745Z-4711-e0-000001.jsonl.gz``. The last one is
plain text that still grows; the others are packed. When the oldest are removed, the numbers left
begin above 1.
"""

from __future__ import annotations

import gzip
import itertools
import math
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from headway.errors import UserError
from headway.policy.events import Event
from headway.policy.log import parse_event

NOTES = ("view", "plan", "start", "gap")
"""Keys that tell the lines of a recording that are no events."""

FILE_NAME = re.compile(
    r"(?P<run>\d{8}T\d{6}Z-\d+-e(?P<engine>\d+))-(?P<number>\d{6})\.jsonl(\.gz)?"
)

MAX_LINE_BYTES = 64 * 1024 * 1024
"""No line is longer: a step of a hundred thousand requests takes five million bytes."""

Row = tuple[str, dict[str, Any]]
"""File and line, for an error sentence; and the parsed line."""


def file_name(run: str, number: int) -> str:
    """Return the name of a file while it grows; packed, it ends in ``.gz`` besides."""
    return f"{run}-{number:06d}.jsonl"


@dataclass(frozen=True, slots=True)
class RunFiles:
    """One run's files, in order.

    Attributes:
        name: As its files are named; empty for a single file.
        numbers: Of the files; a number that is missing between two was removed.
    """

    name: str
    paths: tuple[Path, ...]
    numbers: tuple[int, ...] = (1,)

    @property
    def engine(self) -> str:
        """The engine's number among several (data parallel rank)."""
        found = FILE_NAME.fullmatch(self.paths[0].name)
        return found["engine"] if found else "0"

    def written_since(self, unix_s: float, most: int) -> RunFiles:
        """Return the same run with those files only, the newest *most* of them."""
        recent = [
            (path, number)
            for path, number in zip(self.paths[-most:], self.numbers[-most:], strict=True)
            if _written_at_unix_s(path) >= unix_s
        ]
        return RunFiles(self.name, tuple(p for p, _ in recent), tuple(n for _, n in recent))


def runs_in(folder: Path) -> list[RunFiles]:
    """Return the runs of a folder, the one that began last at the end.

    Raises:
        UserError: The folder cannot be read.
    """
    found: dict[str, dict[int, Path]] = {}
    try:
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise UserError(f"Cannot read {folder}: {error.strerror}.") from None
    for name in names:
        match = FILE_NAME.fullmatch(name)
        if match:
            # Plain before packed: where a crash left both, the plain one is whole.
            found.setdefault(match["run"], {}).setdefault(int(match["number"]), folder / name)
    return [
        RunFiles(run, tuple(files[n] for n in sorted(files)), tuple(sorted(files)))
        for run, files in sorted(found.items())
    ]


def run_of(path: Path) -> RunFiles:
    """Return the recording that *path* names.

    Args:
        path: A file; a folder, which means its newest run; or a run's name within its folder.

    Raises:
        UserError: There is no such recording.
    """
    if path.is_dir():
        runs = runs_in(path)
        if not runs:
            raise UserError(f"The folder {path} holds no recording of headway serve --record.")
        return runs[-1]
    if not path.exists() and path.parent.is_dir():
        named = [run for run in runs_in(path.parent) if run.name == path.name]
        if named:
            return named[0]
    return RunFiles("", (path,))


def _written_at_unix_s(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        packed = path.with_name(path.name + ".gz")
        return packed.stat().st_mtime if packed.exists() else 0.0


def rows(run: RunFiles) -> Iterator[Row]:
    """Yield every line of a run, parsed; a missing file gives a ``gap``.

    Of a file that grows, what was there when it was opened: a slow reader comes to an end. A
    last line cut short is left out: the server may be writing it.

    Raises:
        UserError: A file cannot be read, or a line is no JSON object.
    """
    before = None
    for path, number in zip(run.paths, run.numbers, strict=True):
        if before is not None and number != before + 1:
            yield str(path), {"gap": {"num_files": number - before - 1}}
        before = number
        yield from _rows_of(path)


def _rows_of(path: Path) -> Iterator[Row]:
    try:
        with _opened(path) as file:
            is_packed = isinstance(file, gzip.GzipFile)
            most_bytes = math.inf if is_packed else os.stat(file.fileno()).st_size
            num_bytes = 0
            for index in itertools.count(1):
                line = file.readline(MAX_LINE_BYTES + 1)
                num_bytes += len(line)
                if not line or num_bytes > most_bytes:
                    return
                where = f"{path}, line {index}"
                row = _parsed(line, where, has_more=line.endswith(b"\n"))
                if row is not None:
                    yield where, row
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror or error}.") from None
    except (EOFError, zlib.error):
        raise UserError(f"{path} is a damaged gzip file.") from None


def _opened(path: Path) -> BinaryIO | gzip.GzipFile:
    try:
        file = path.open("rb")
    except FileNotFoundError:
        packed = path.with_name(path.name + ".gz")  # It was packed since we looked.
        return gzip.open(packed, "rb")
    if file.read(2) == b"\x1f\x8b":
        file.close()
        return gzip.open(path, "rb")
    file.seek(0)
    return file


def _parsed(line: bytes, where: str, has_more: bool) -> dict[str, Any] | None:
    if not line.strip():
        return None
    try:
        row = msgspec.json.decode(line)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        if not has_more and len(line) <= MAX_LINE_BYTES:
            return None
        raise UserError(f"{where}: not valid JSON: {error}.") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected a JSON object, not {line.strip()[:60]!r}.")
    return row


def total_bytes(paths: Iterable[Path]) -> int:
    """Return the size of files; one that is gone counts nothing."""
    total = 0
    for path in paths:
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def event_in(where: str, row: dict[str, Any]) -> Event | None:
    """Return the event of one parsed line, ``None`` when it is another line of a recording.

    Args:
        where: File and line, for the error sentence.

    Raises:
        UserError: The line is none of a recording.
    """
    if "event" in row:
        try:
            return parse_event(row)
        except (TypeError, KeyError):
            raise UserError(f"{where}: not an event of a recording.") from None
    if row.keys().isdisjoint(NOTES):
        raise UserError(f"{where}: expected a line of a recording, with event, view or plan.")
    return None
