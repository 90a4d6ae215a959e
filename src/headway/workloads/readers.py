"""Readers of public trace formats; each returns requests in order of arrival, from 0 s on.

Azure CSV, BurstGPT CSV, CSVs of lengths alone (Sarathi-Serve's, Vidur's), the JSONL of Mooncake
and its kin (vLLM's ``timed_trace``, Qwen-Bailian, LLMServingSim), and our own JSONL.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from itertools import takewhile
from pathlib import Path
from typing import Any

from headway.errors import UserError
from headway.workloads.schema import (
    WorkloadRequest,
    checked,
    count,
    json_lines,
    number,
    read_jsonl,
    text_lines,
)

MOONCAKE_HASH_TOKENS = 512
"""Tokens that one entry of Mooncake's ``hash_ids`` stands for."""

TIMED_TRACE_HASH_TOKENS = 16
"""The same in Qwen-Bailian's and LLMServingSim's files; the default of vLLM's timed_trace."""

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
    chains: list[Sequence[Hashable]] = []

    def requests() -> Iterator[tuple[str, WorkloadRequest]]:
        for index, (where, row) in enumerate(json_lines(path)):
            _require(where, row, ("timestamp", "input_length", "output_length"))
            chains.append(_hashes(where, row))
            yield (
                where,
                WorkloadRequest(
                    id=f"r{index}",
                    arrived_at_s=number(where, "timestamp", row["timestamp"], minimum=0.0) * unit_s,
                    num_prompt_tokens=count(where, "input_length", row["input_length"], minimum=1),
                    num_output_tokens=count(
                        where, "output_length", row["output_length"], minimum=1
                    ),
                ),
            )

    made = _from_zero(checked(requests(), str(path)))
    return [
        replace(
            r, prefix_id=str(chain[0]), prefix_tokens=min(depth * hash_tokens, r.num_prompt_tokens)
        )
        if depth
        else r
        for r, chain, depth in zip(made, chains, shared_depths(chains), strict=True)
    ]


def shared_depths(chains: Sequence[Sequence[Hashable]]) -> list[int]:
    """Return how many leading hashes each chain shares with an earlier one.

    The first chain of each root has no earlier one; it gets the most it shares with a later
    one, since somebody must own what the later ones find. Requests that name their root as
    their prefix then find at most what an endless cache would give them, and mostly just that.
    """
    children: dict[tuple[int, Hashable], int] = {}
    pioneers: dict[Hashable, int] = {}
    depths: list[int] = []
    for index, chain in enumerate(chains):
        node = depth = 0
        for hash_id in chain:
            child = children.get((node, hash_id))
            if child is None:
                break
            node, depth = child, depth + 1
        depths.append(depth)
        for hash_id in chain[depth:]:
            children[node, hash_id] = node = len(children) + 1
        if depth:
            pioneer = pioneers[chain[0]]
            depths[pioneer] = max(depths[pioneer], _common(chains[pioneer], chain))
        elif chain:
            pioneers[chain[0]] = index
    return depths


def _common(one: Sequence[Hashable], other: Sequence[Hashable]) -> int:
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _hashes(where: str, row: Row) -> list[Hashable]:
    hashes = row.get("hash_ids") or []
    if not isinstance(hashes, list) or any(not isinstance(h, int | str) for h in hashes):
        raise UserError(
            f"{where}: hash_ids must be a list of numbers or texts, not {hashes!s:.60}."
        )
    return hashes


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
