"""The reference page of trace files, from the table of formats."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import MISSING, fields

from docs_text import attributes_of, escaped, table

from headway.workloads.schema import WorkloadRequest
from headway.workloads.trace_formats import FORMATS, Format
from headway.workloads.trace_times import DATE, NAMES

HEAD = """
# Trace files

`headway trace inspect FILE` says how a file is read: the format, the unit of the times, the columns
that were not read, the rows that were skipped. Every command that reads a trace prints this in one
line before its result, and puts it into the JSON under `trace`.

```sh
headway trace synth mixed --requests 400 --rate 10 --out trace.jsonl
headway trace inspect trace.jsonl
```

## Formats

A format is recognised by the names of its columns, in a CSV with a header, in JSON rows (one per
line, or a list), or in the single document that a load generator writes. A dot stands for an object
inside a row.
"""

TAIL = """
- **Left open** means that the unit is inferred from the file. A name that ends in `_s`, `_ms`,
  `_us` or `_ns` gives the unit, and so do values of the size of clock times. Otherwise the unit is
  the one that gives a usual rate: Mooncake's times are milliseconds, because as seconds they would
  mean a request in four minutes. If two units are possible (more than 20 requests a second in one,
  fewer than six a minute in the other), the file is refused until `--time-unit` names one.
- **A hash** of a prompt stands for 512 or 16 tokens (or another power of two), whichever fits the
  prompts' lengths.
- **Dates** may have an offset from UTC, which counts. Without one they are UTC.
- **Results of load generators** are in the order of the requests' ends. They are sorted by arrival.

Files may be compressed (`.gz`, `.zst`), begin with a byte order mark, have quotes and spaces around
names and values, and have commas at the ends of lines. A row with 0 output tokens, a failed
request, and a row of only commas are skipped and counted. Parquet is not supported.

## Options for reading a file

Each option overrides one thing; the rest is recognised as before. `trace inspect`, `trace convert`,
`simulate`, `capacity` and `bench` have them. A column is `arrived`, `prompt`, `output`, `hashes`,
`class` or `tenant`. `replay` has none of them, because a recording needs none.

| option | sets or allows |
|---|---|
| `--time-unit ms` | the unit of the times |
| `--hash-tokens 64` | the tokens that a hash stands for |
| `--column arrived=sent_at` | the column for a role; `arrived=none` for lengths alone |
| `--sort` | rows out of order |
| `--any-rate` | a trace of fewer than one request an hour, or more than 100,000 a second |

<!-- not run: needs a file of your own; tests/unit/test_trace_formats.py reads one -->
```sh
headway trace inspect log.csv --column arrived=received_ms --column prompt=in --column output=out
```

## Longer than the cache

If prompt and answer together do not fit into the KV cache, the answer is cut, as vLLM cuts it. If
the prompt alone does not fit, the request ends with an error. `simulate`, `capacity` and `replay`
count such requests (column *too long*), name them below the table, and list them in the JSON under
`too_long`. `trace inspect --kv-tokens 60000` counts them without a run.
"""


def traces_page() -> Iterator[str]:
    """Every known format, and what can be said of a file."""
    yield from HEAD.strip().splitlines()
    yield ""
    rows = [
        (
            one.name.partition(" ")[2] if one.name.startswith(("a ", "an ", "the ")) else one.name,
            f"`{one.arrived}`" if one.arrived else "none: all at once",
            f"`{one.prompt}`, `{one.output}`" + (f", `{one.hashes}`" if one.hashes else ""),
            _unit(one),
        )
        for one in FORMATS
    ]
    yield from table(("format", "times", "lengths", "unit"), rows)
    yield from TAIL.splitlines()
    yield from own_columns()


def own_columns() -> Iterator[str]:
    """The columns of Headway's own format."""
    yield from [
        "",
        "## Headway's own format",
        "",
        "JSON with one request per line, or a CSV with a header, in seconds and tokens and in order"
        " of arrival. The promise columns of a request override those of its class.",
        "",
    ]
    told = attributes_of(WorkloadRequest)
    rows: list[tuple[str, ...]] = []
    last = ""
    for one in fields(WorkloadRequest):
        needed = "yes" if one.default is MISSING and one.name != "id" else ""
        last = one.name if one.name in told else last
        text = told.get(one.name, f"As `{last}` says.").replace("`None`", "`null`")
        rows.append((f"`{one.name}`", needed, escaped(text)))
    yield from table(("column", "needed", "meaning"), rows)


def _unit(one: Format) -> str:
    if one.arrived is None:
        return ""
    if one.unit == DATE:
        return "dates"
    return NAMES[one.unit] if one.unit else "left open"
