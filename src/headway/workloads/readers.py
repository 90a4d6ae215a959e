"""Readers of public trace formats; each returns requests in order of arrival, from 0 s on.

Azure CSV, BurstGPT CSV, CSVs of lengths alone (Sarathi-Serve's, Vidur's), the JSONL of Mooncake
and its kin (vLLM's ``timed_trace``, Qwen-Bailian, LLMServingSim), and our own JSONL.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

from headway.errors import UserError
from headway.workloads.schema import (
    MOONCAKE_HASH_TOKENS,
    WorkloadRequest,
    checked,
    count,
    fitting,
    hashes,
    json_lines,
    number,
    read_jsonl,
    text_lines,
)

TIMED_TRACE_HASH_TOKENS = 16
"""Tokens a hash stands for in Qwen-Bailian's and LLMServingSim's files; timed_trace's default."""

LENGTH_COLUMNS = (
    ("num_prefill_tokens", "num_decode_tokens"),
    ("num_prompt_tokens", "num_output_tokens"),
)
"""Headers of CSVs with lengths alone: prompt, output."""

KNOWN = (
    "Headway JSONL, Mooncake JSONL, vLLM timed_trace JSONL, Azure LLM inference CSV, BurstGPT CSV"
    " and CSV with the columns num_prefill_tokens and num_decode_tokens"
)

Row = Mapping[str, Any]


def load(path: str | Path) -> list[WorkloadRequest]:
    """Read any known format, told apart by its column names.

    Mooncake's columns come in dialects: rows with ``chat_id`` (Qwen-Bailian) count seconds, all
    others milliseconds; a hash stands for 16 tokens if the first row's hashes fit that, else
    for 512. For a file that means something else call :func:`read_timed_trace`.

    Raises:
        UserError: One sentence with the line number of the mistake.
    """
    first = next((line for line in text_lines(path) if line.strip()), None)
    if first is None:
        raise UserError(f"{path} is empty.")
    if first.lstrip().startswith("{"):
        if '"input_length"' not in first:
            return read_jsonl(path)
        _, row = next(json_lines(path))
        return read_timed_trace(path, 1.0 if "chat_id" in row else 1e-3, _hash_tokens(row))
    header = {name.strip() for name in first.split(",")}
    if "ContextTokens" in header:
        return read_azure(path)
    if "Request tokens" in header:
        return read_burstgpt(path)
    if any(header.issuperset(columns) for columns in LENGTH_COLUMNS):
        return read_lengths(path)
    raise UserError(f"{path} is in no known format; known are {KNOWN}.")


def read_azure(path: str | Path) -> list[WorkloadRequest]:
    """Read an Azure LLM inference trace (``TIMESTAMP,ContextTokens,GeneratedTokens``)."""

    def request(where: str, row: Row, index: int) -> WorkloadRequest:
        return WorkloadRequest(
            id=f"r{index}",
            arrived_at_s=_timestamp_s(where, row["TIMESTAMP"]),
            num_prompt_tokens=count(where, "ContextTokens", row["ContextTokens"], minimum=1),
            num_output_tokens=count(where, "GeneratedTokens", row["GeneratedTokens"], minimum=1),
        )

    return _read_csv(path, ("TIMESTAMP", "ContextTokens", "GeneratedTokens"), request)


def read_burstgpt(path: str | Path) -> list[WorkloadRequest]:
    """Read a BurstGPT trace; rows without response tokens are failures and are left out."""

    def request(where: str, row: Row, index: int) -> WorkloadRequest | None:
        num_output_tokens = count(where, "Response tokens", row["Response tokens"])
        if num_output_tokens == 0:
            return None
        return WorkloadRequest(
            id=f"r{index}",
            arrived_at_s=number(where, "Timestamp", row["Timestamp"], minimum=0.0),
            num_prompt_tokens=count(where, "Request tokens", row["Request tokens"], minimum=1),
            num_output_tokens=num_output_tokens,
        )

    return _read_csv(path, ("Timestamp", "Request tokens", "Response tokens"), request)


def read_lengths(path: str | Path) -> list[WorkloadRequest]:
    """Read a CSV of prompt and output lengths; with no times in it, all requests come at 0 s.

    Use it with a random arrival process; as it is, it is an offline batch.
    """
    header = next(iter(text_lines(path)), "")
    names = {name.strip() for name in header.split(",")}
    columns = next((c for c in LENGTH_COLUMNS if names.issuperset(c)), LENGTH_COLUMNS[0])
    prompt, output = columns

    def request(where: str, row: Row, index: int) -> WorkloadRequest:
        num_prompt_tokens = count(where, prompt, row[prompt], minimum=1)
        num_output_tokens = count(where, output, row[output], minimum=1)
        return WorkloadRequest(f"r{index}", 0.0, num_prompt_tokens, num_output_tokens)

    return _read_csv(path, columns, request)


def read_mooncake(path: str | Path) -> list[WorkloadRequest]:
    """Read a Mooncake trace: times in milliseconds, a hash for each 512 tokens."""
    return read_timed_trace(path, 1e-3, MOONCAKE_HASH_TOKENS)


def read_llmservingsim(path: str | Path) -> list[WorkloadRequest]:
    """Read the requests of a measured LLMServingSim run (``*.sanitized.jsonl``).

    Times are milliseconds since the run began, a hash stands for 16 tokens. The measured run
    beside it lists the same requests in the same order.
    """
    return read_timed_trace(path, 1e-3, TIMED_TRACE_HASH_TOKENS)


def read_timed_trace(
    path: str | Path, unit_s: float = 1.0, hash_tokens: int = TIMED_TRACE_HASH_TOKENS
) -> list[WorkloadRequest]:
    """Read what vLLM's ``timed_trace`` reads, with the same defaults.

    Rows have ``timestamp``, ``input_length``, ``output_length`` and maybe ``hash_ids``; other
    columns are ignored.

    Args:
        unit_s: Seconds in one unit of ``timestamp``.
        hash_tokens: Prompt tokens that one hash stands for; the last may stand for fewer.
    """

    def requests() -> Iterator[tuple[str, WorkloadRequest]]:
        for index, (where, row) in enumerate(json_lines(path)):
            _require(where, row, ("timestamp", "input_length", "output_length"))
            at_s = number(where, "timestamp", row["timestamp"], minimum=0.0) * unit_s
            request = WorkloadRequest(
                id=f"r{index}",
                arrived_at_s=at_s,
                num_prompt_tokens=count(where, "input_length", row["input_length"], minimum=1),
                num_output_tokens=count(where, "output_length", row["output_length"], minimum=1),
                hash_ids=hashes(where, row.get("hash_ids") or ()),
                hash_tokens=hash_tokens,
            )
            yield where, fitting(where, request)

    return _from_zero(checked(requests(), str(path)))


def _hash_tokens(row: Row) -> int:
    """Return what one hash of *row* stands for: 16 tokens if that fits its length, else 512."""
    length, hashes = row.get("input_length"), row.get("hash_ids")
    if not isinstance(length, int) or not isinstance(hashes, list) or not hashes:
        return MOONCAKE_HASH_TOKENS
    fits = len(hashes) in (
        length // TIMED_TRACE_HASH_TOKENS,
        math.ceil(length / TIMED_TRACE_HASH_TOKENS),
    )
    return TIMED_TRACE_HASH_TOKENS if fits else MOONCAKE_HASH_TOKENS


def _read_csv(
    path: str | Path,
    columns: tuple[str, ...],
    request: Callable[[str, Row, int], WorkloadRequest | None],
) -> list[WorkloadRequest]:
    """Read a CSV file with a header, one request a row; ``None`` leaves a row out."""

    def requests() -> Iterator[tuple[str, WorkloadRequest]]:
        reader = csv.DictReader(text_lines(path), skipinitialspace=True)
        try:
            for index, row in enumerate(reader):
                where = f"{path}, line {reader.line_num}"
                _require(where, row, columns)
                made = request(where, row, index)
                if made is not None:
                    yield where, made
        except csv.Error as error:
            # Such as a quote that is never closed: the field grows until csv gives up.
            raise UserError(f"{path}, line {reader.line_num}: not valid CSV: {error}.") from None

    return _from_zero(checked(requests(), str(path)))


def _require(where: str, row: Row, columns: tuple[str, ...]) -> None:
    for name in columns:
        if row.get(name) is None:
            raise UserError(f"{where}: the column {name!r} is missing.")


def _timestamp_s(where: str, text: str) -> float:
    """Return an ISO-like timestamp as seconds; fractions beyond microseconds are cut."""
    head, dot, fraction = text.strip().partition(".")
    try:
        # Zone marks after the fraction (the 2024 files have one) are the same in every row.
        digits = fraction.split("+")[0].rstrip("Z")[:6] if dot else "0"
        at = datetime.fromisoformat(head.split("+")[0].rstrip("Z"))
        return (at - datetime(1970, 1, 1)).total_seconds() + float(f"0.{digits or 0}")
    except (ValueError, TypeError):
        raise UserError(
            f"{where}: TIMESTAMP must look like 2023-11-16 18:15:46.68, not {text!r:.60}."
        ) from None


def _from_zero(requests: list[WorkloadRequest]) -> list[WorkloadRequest]:
    first_s = requests[0].arrived_at_s
    return [replace(r, arrived_at_s=round(r.arrived_at_s - first_s, 6)) for r in requests]
