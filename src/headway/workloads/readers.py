"""Readers of public trace formats: Azure CSV, BurstGPT CSV, Mooncake JSONL, and our own JSONL.

Each returns requests in order of arrival, with the first one at 0 s.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
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

Row = Mapping[str, Any]


def load(path: str | Path) -> list[WorkloadRequest]:
    """Read any known format, told apart by its column names.

    Raises:
        UserError: One sentence with the line number of the mistake.
    """
    first = next((line for line in text_lines(path) if line.strip()), None)
    if first is None:
        raise UserError(f"{path} is empty.")
    if first.lstrip().startswith("{"):
        return read_mooncake(path) if '"input_length"' in first else read_jsonl(path)
    header = {name.strip() for name in first.split(",")}
    if "ContextTokens" in header:
        return read_azure(path)
    if "Request tokens" in header:
        return read_burstgpt(path)
    raise UserError(
        f"{path} is in no known format; known are Headway JSONL, Mooncake JSONL,"
        " Azure LLM inference CSV and BurstGPT CSV."
    )


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


def read_mooncake(path: str | Path) -> list[WorkloadRequest]:
    """Read a Mooncake trace (``timestamp`` in ms, lengths in tokens, ``hash_ids``).

    Consecutive equal leading hashes are a shared prefix. Here a request shares with those that
    have the same *first* hash, for the 512 tokens that hash covers: less than the truth, never
    more.
    """

    def requests() -> Iterator[tuple[str, WorkloadRequest]]:
        for index, (where, row) in enumerate(json_lines(path)):
            _require(where, row, ("timestamp", "input_length", "output_length"))
            num_prompt_tokens = count(where, "input_length", row["input_length"], minimum=1)
            hashes = row.get("hash_ids") or []
            if not isinstance(hashes, list):
                raise UserError(f"{where}: hash_ids must be a list, not {hashes!r:.60}.")
            yield (
                where,
                WorkloadRequest(
                    id=f"r{index}",
                    arrived_at_s=number(where, "timestamp", row["timestamp"], minimum=0.0) / 1000,
                    num_prompt_tokens=num_prompt_tokens,
                    num_output_tokens=count(
                        where, "output_length", row["output_length"], minimum=1
                    ),
                    prefix_id=str(hashes[0]) if hashes else None,
                    prefix_tokens=min(MOONCAKE_HASH_TOKENS, num_prompt_tokens) if hashes else 0,
                ),
            )

    return _from_zero(checked(requests(), str(path)))


def _read_csv(
    path: str | Path,
    columns: tuple[str, ...],
    request: Callable[[str, Row, int], WorkloadRequest | None],
) -> list[WorkloadRequest]:
    """Read a CSV file with a header, one request a row; ``None`` leaves a row out."""

    def requests() -> Iterator[tuple[str, WorkloadRequest]]:
        reader = csv.DictReader(text_lines(path), skipinitialspace=True)
        for index, row in enumerate(reader):
            where = f"{path}, line {reader.line_num}"
            _require(where, row, columns)
            made = request(where, row, index)
            if made is not None:
                yield where, made

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
