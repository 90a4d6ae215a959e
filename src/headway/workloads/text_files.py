"""Text files, plain or packed, a line at a time and never more than a line in memory."""

from __future__ import annotations

import gzip
import importlib
import io
import itertools
import json
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from headway.errors import UserError

MAX_LINE_CHARS = 16 * 1024 * 1024
"""No line of a workload is longer; a file without line ends must not fill the memory."""

GZIP_MARK = b"\x1f\x8b"
ZSTD_MARK = b"\x28\xb5\x2f\xfd"
PARQUET_MARK = b"PAR1"


def open_text(path: str | Path) -> io.TextIOWrapper:
    """Open a UTF-8 file; ``.gz`` and ``.zst`` are told by their first bytes, not their names.

    Raises:
        OSError: The file cannot be opened.
        UserError: It is no text, or packed in a way that nothing here unpacks.
    """
    with Path(path).open("rb") as file:
        mark = file.read(4)
    if mark == PARQUET_MARK:
        raise UserError(f"{path} is a Parquet file; a trace is text: CSV or JSON, a request a row.")
    return io.TextIOWrapper(_unpacked(Path(path), mark), encoding="utf-8-sig", newline=None)


def _unpacked(path: Path, mark: bytes) -> BinaryIO:
    if mark.startswith(GZIP_MARK):
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if mark == ZSTD_MARK:
        return _zstd().open(path, "rb")  # type: ignore[no-any-return]
    return path.open("rb")


def _zstd() -> Any:
    """Return the standard library's module, or the same one for Pythons before 3.14."""
    name = "compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd"
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(
            "Reading .zst needs the package backports.zstd (make setup installs it);"
            " or unpack the file first."
        ) from None


def text_lines(path: str | Path) -> Iterator[str]:
    """Yield the lines of a UTF-8 file (a byte order mark is skipped), with one-sentence errors.

    Raises:
        UserError: The file cannot be read, is not UTF-8, or has a line over 16 Mi characters;
            never more than that is held.
    """
    try:
        with open_text(path) as file:
            for index in itertools.count(1):
                line = file.readline(MAX_LINE_CHARS + 1)
                if not line:
                    return
                if len(line) > MAX_LINE_CHARS:
                    raise UserError(
                        f"{path}, line {index}: longer than {MAX_LINE_CHARS} characters;"
                        " a workload has one request a line."
                    )
                yield line
    except Exception as error:
        raise reading_error(path, error) from None


def reading_error(path: str | Path, error: Exception) -> Exception:
    """Return the sentence for what can go wrong while a file is read, else *error* itself."""
    if isinstance(error, UnicodeDecodeError):
        return UserError(f"{path} is not a text file in UTF-8.")
    is_packing = isinstance(error, EOFError | zlib.error | gzip.BadGzipFile)
    if is_packing or type(error).__name__ == "ZstdError":
        return UserError(f"{path} is a damaged packed file.")
    if isinstance(error, OSError):
        return UserError(f"Cannot read {path}: {error.strerror or error}.")
    return error


def json_lines(path: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield place and object of each non-empty line of a JSONL file.

    Raises:
        UserError: The file cannot be read, or a line is not a JSON object.
    """
    for index, row in json_rows(path):
        yield f"{path}, line {index}", row


def json_rows(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the object of each non-empty line of a JSONL file.

    Raises:
        UserError: The file cannot be read, or a line is not a JSON object.
    """
    for index, line in enumerate(text_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {index}"
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{where}, column {error.colno}: not valid JSON: {error.msg}."
            ) from None
        except (ValueError, RecursionError):
            # An integer of thousands of digits, or lists in lists in lists.
            raise UserError(
                f"{where}: not a row of a workload, but {line.strip()!r:.60}."
            ) from None
        if not isinstance(row, dict):
            raise UserError(f"{where}: expected a JSON object, not {line.strip()!r:.60}.")
        yield index, row
