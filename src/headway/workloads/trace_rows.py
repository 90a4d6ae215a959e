"""The rows of a trace file, whatever holds them: CSV, a JSON object a line, or one document."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from headway.errors import UserError
from headway.workloads.text_files import json_rows, open_text, reading_error, text_lines
from headway.workloads.trace_formats import names_in

MAX_DOCUMENT_CHARS = 512 * 1024 * 1024
"""A load generator's result is one JSON document and is held whole: no more than this."""

_PEEK_CHARS = 4096
_RESULT = re.compile(r'\{.*"(guidellm_version|benchmarks|tokenizer_id|request_throughput)"')
"""How the result of a load generator in one line begins; over several, it is "{" alone."""

NumberedRow = tuple[int, Mapping[str, Any]]


@dataclass(slots=True)
class Rows:
    """The rows of one file; read them once.

    Attributes:
        columns: Of the header, or of the first row; those inside of objects with a dot.
        numbered: Rows with the number of their line, or of their item in a document.
        num_empty: Rows of commas alone, met so far; they are not among the others.
        remark: What else must be known of the file.
    """

    path: Path
    columns: tuple[str, ...]
    numbered: Iterator[NumberedRow]
    is_json: bool = True
    is_document: bool = False
    num_empty: int = 0
    remark: str = ""

    @property
    def top(self) -> str:
        """The place where the columns are named."""
        return self.where(1)

    def where(self, number: int) -> str:
        """Return the place of a row, for an error sentence."""
        return f"{self.path}, {'item' if self.is_document else 'line'} {number}"


def rows_of(path: str | Path) -> Rows:
    """Open a trace file.

    Raises:
        UserError: It cannot be read, is empty, or is neither CSV nor JSON.
    """
    path = Path(path)
    if _is_document(path):
        return _document(path)
    first = next((line for line in text_lines(path) if line.strip()), None)
    if first is None:
        raise UserError(f"{path} is empty.")
    if first.lstrip().startswith("{"):
        return _of_json(path, json_rows(path))
    return _csv(path)


def _of_json(path: Path, numbered: Iterator[NumberedRow], is_document: bool = False) -> Rows:
    first = next(numbered, None)
    if first is None:
        raise UserError(f"{path} holds no requests.")
    columns = tuple(names_in(first[1]))
    return Rows(path, columns, chain((first,), numbered), is_document=is_document)


def _csv(path: Path) -> Rows:
    reader = csv.reader(text_lines(path), skipinitialspace=True)
    cells = _cells(path, reader)
    header = next((row for row in cells if any(row)), [])
    while header and not header[-1]:
        header.pop()
    twice = next((name for i, name in enumerate(header) if name and name in header[:i]), None)
    if twice is not None:
        raise UserError(f"{path}, line {reader.line_num}: two columns are named {twice!r:.60}.")
    rows = Rows(path, tuple(header), iter(()), is_json=False)
    rows.numbered = _csv_rows(rows, reader, cells, header)
    return rows


def _cells(path: Path, reader: Any) -> Iterator[list[str]]:
    try:
        for row in reader:
            if any("\n" in cell for cell in row):
                raise UserError(
                    f"{path}, line {reader.line_num}: a field goes on over the end of a line:"
                    " its quotation mark is not closed."
                )
            yield [cell.strip() for cell in row]
    except csv.Error as error:
        # Such as a quote that is never closed: the field grows until csv gives up.
        raise UserError(f"{path}, line {reader.line_num}: not valid CSV: {error}.") from None


def _csv_rows(
    rows: Rows, reader: Any, cells: Iterator[list[str]], header: Sequence[str]
) -> Iterator[NumberedRow]:
    for row in cells:
        if not any(row):
            rows.num_empty += len(row) > 1  # Commas alone were meant as a row, a blank line not.
            continue
        if any(row[len(header) :]):
            raise UserError(
                f"{rows.where(reader.line_num)}: {len(row)} fields under a header of {len(header)}."
            )
        yield reader.line_num, {k: v for k, v in zip(header, row, strict=False) if k}


def _is_document(path: Path) -> bool:
    try:
        with open_text(path) as file:
            beginning = file.read(_PEEK_CHARS).lstrip()
    except Exception as error:
        raise reading_error(path, error) from None
    first_line, end, _ = beginning.partition("\n")
    if first_line.startswith("["):
        return True
    return bool(_RESULT.match(first_line)) or (bool(end) and first_line.strip() == "{")


def _document(path: Path) -> Rows:
    found = list(_objects(path))
    if len(found) == 1 and isinstance(found[0], list):
        return _of_json(path, _items(path, found[0]), is_document=True)
    results = [one for one in found if isinstance(one, Mapping)]
    if not results or len(results) != len(found):
        raise UserError(f"{path} is not a list of requests, nor the result of a load generator.")
    if all("benchmarks" in one for one in results):
        return _guidellm(path, results)
    if all("input_lens" in one and "output_lens" in one for one in results):
        return _of_json(path, enumerate(_vllm_rows(path, results), 1), is_document=True)
    if all("request_throughput" in one for one in results):
        raise UserError(
            f"{path} has no single requests: vllm bench serve writes them with --save-detailed."
        )
    return _of_json(path, enumerate(results, 1), is_document=True)


def _objects(path: Path) -> Iterator[Any]:
    """Yield the JSON documents of a file; vllm bench serve --append-result makes several."""
    try:
        with open_text(path) as file:
            text = file.read(MAX_DOCUMENT_CHARS + 1)
    except Exception as error:
        raise reading_error(path, error) from None
    if len(text) > MAX_DOCUMENT_CHARS:
        raise UserError(f"{path} is longer than {MAX_DOCUMENT_CHARS} characters in one document.")
    decoder, at = json.JSONDecoder(), 0
    while (at := _next_text(text, at)) < len(text):
        try:
            found, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{path}, line {error.lineno}, column {error.colno}: not valid JSON: {error.msg}."
            ) from None
        except (ValueError, RecursionError):
            raise UserError(f"{path}, line 1: not a row of a workload.") from None
        yield found


def _next_text(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at


def _items(path: Path, items: Sequence[Any]) -> Iterator[NumberedRow]:
    for number, one in enumerate(items, start=1):
        if not isinstance(one, Mapping):
            raise UserError(f"{path}, item {number}: expected a JSON object, not {one!r:.60}.")
        yield number, one


def _vllm_rows(path: Path, results: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    names = ("start_times", "input_lens", "output_lens", "errors")
    for result in results:
        columns = [name for name in names if result.get(name) is not None]
        lists = [result[name] for name in columns]
        if not all(isinstance(one, list) and len(one) == len(lists[0]) for one in lists):
            raise UserError(f"{path}: {', '.join(columns)} are not lists of one length.")
        for values in zip(*lists, strict=True):
            row = dict(zip(columns, values, strict=True))
            row["error"] = row.pop("errors", None)
            yield row


def _guidellm(path: Path, results: Sequence[Mapping[str, Any]]) -> Rows:
    benchmarks = [b for one in results for b in _list_in(path, one, "benchmarks")]
    made: list[Mapping[str, Any]] = []
    num_served = 0
    for benchmark in benchmarks:
        by_status = benchmark.get("requests") if isinstance(benchmark, Mapping) else None
        if not isinstance(by_status, Mapping):
            raise UserError(f"{path}: a benchmark of it has no requests.")
        for status in ("successful", "incomplete", "errored"):
            for _, one in _items(path, _list_in(path, by_status, status)):
                at = one.get("request_start_time", one.get("start_time"))
                error = None if status == "successful" else status
                made.append({**one, "request_start_time": at, "error": error})
        num_served += _total_of(benchmark)
    rows = _of_json(path, enumerate(made, 1), is_document=True)
    remarks = []
    if len(benchmarks) > 1:
        remarks.append(f"{len(benchmarks)} benchmarks, one after another")
    if num_served > len(made):
        remarks.append(f"a sample: {len(made)} of {num_served} requests are in the file")
    rows.remark = "; ".join(remarks)
    return rows


def _list_in(path: Path, row: Mapping[str, Any], name: str) -> Sequence[Any]:
    found = row.get(name) or []
    if not isinstance(found, list):
        raise UserError(f"{path}: {name!r} is not a list.")
    return found


def _total_of(benchmark: Mapping[str, Any]) -> int:
    """Return how many requests a guidellm benchmark made, 0 where it does not say."""
    found: Any = benchmark
    for name in ("metrics", "request_totals", "total"):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, int) else 0
