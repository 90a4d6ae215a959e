"""Damaged traces: one sentence or all rows, never a traceback, never fewer rows in silence."""

from __future__ import annotations

import json
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from trace_shapes import SHAPES, Shape

from headway.errors import UserError
from headway.workloads.readers import read
from headway.workloads.reading import Reading, ReadOptions

CASES = int(os.environ.get("HEADWAY_FUZZ_CASES", "100"))
"""Damaged files of each shape; 100,000 were tried before this was written down."""

PIECES = (
    b'"', b",", b"\n", b"\r", b"\r\n", b"\0", b" ", b"\t", b"{", b"}", b"[", b"]", b":", b"-", b".",
    b"\xff", b"\xef\xbb\xbf", b"0", b"1", b"9", b"e", b"1e999", b"NaN", b"Infinity", b"null",
    b"true", b"9" * 30, b"9" * 5000, b'""', b"''", b";", b"\\", b"\\u0000", b"+05:00", b"Z", b"T",
    "\u2028".encode(), "\x85".encode(), "٣".encode(), b",,,,", b"\x1c",
)  # fmt: skip

OPTIONS = (
    ReadOptions(),
    ReadOptions(),
    ReadOptions(sort=True, any_rate=True),
    ReadOptions(time_unit="ms", any_rate=True),
    ReadOptions(hash_tokens=16),
    ReadOptions(columns=(("arrived", "none"),)),
)


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Return *data* with one to four small changes."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(7)
        if kind == 0:
            data = data[:at] + rng.choice(PIECES) + data[at:]
        elif kind == 1:
            data = data[:at] + data[at + rng.choice((1, 1, 2, 8)) :]
        elif kind == 2:
            data = data[:at] + rng.choice(PIECES) + data[at + 1 :]
        elif kind == 3:
            data = data[:at] + bytes([rng.randrange(256)]) + data[at + 1 :]
        elif kind == 4:
            data = data[:at] if rng.random() < 0.3 else data
        else:
            lines = data.split(b"\n")
            one, other = rng.randrange(len(lines)), rng.randrange(len(lines))
            if kind == 5:
                lines[one], lines[other] = lines[other], lines[one]
            else:
                lines.insert(one, lines[other])
            data = b"\n".join(lines)
    return data


def rows_in(text: str) -> int:
    """Count the rows of a file that was read, in the plainest way: the reader's slow twin."""
    lines = [line for line in re.split("\r\n|\r|\n", text) if _says(line, '"')]
    if lines[0].lstrip().startswith(("{", "[")):
        return sum(_in_document(one) for one in _documents(text.strip()))
    header = next(i for i, line in enumerate(lines) if _says(line, '",'))
    return len(lines) - 1 - header


def _says(line: str, marks: str) -> bool:
    return any(not one.isspace() and one not in marks for one in line)


def _documents(text: str) -> Iterator[Any]:
    while text:
        found, end = json.JSONDecoder().raw_decode(text)
        yield found
        text = text[end:].strip()


def _in_document(found: Any) -> int:
    if isinstance(found, list):
        return len(found)
    if "benchmarks" in found:
        by_status = [benchmark["requests"] for benchmark in found["benchmarks"]]
        kinds = ("successful", "incomplete", "errored")
        return sum(len(one.get(kind) or ()) for one in by_status for kind in kinds)
    return len(found["input_lens"]) if isinstance(found.get("input_lens"), list) else 1


def _read(path: Path, options: ReadOptions) -> Reading | str:
    try:
        return read(path, options)
    except UserError as error:
        return str(error)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)
def test_a_damaged_file_is_read_whole_or_refused(tmp_path: Path, shape: Shape) -> None:
    """Every row is a request or is counted with its reason."""
    rng = random.Random(shape.name)
    path = tmp_path / "damaged"
    plain = shape.text.encode()
    num_read = 0
    for _ in range(CASES):
        data = damaged(plain, rng)
        path.write_bytes(data)
        reading = _read(path, rng.choice(OPTIONS))
        if isinstance(reading, str):
            assert reading.isprintable(), data
            assert len(reading) < 1000
            continue
        num_read += 1
        assert reading.sentence().isprintable()
        told = len(reading.requests) + sum(reading.num_skipped.values())
        assert told == rows_in(data.decode("utf-8-sig")), data
    assert num_read > CASES / 20  # Else nothing but refusals was tried.
