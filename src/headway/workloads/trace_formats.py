"""The known formats of traces, each recognised by the names of its columns."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from headway.workloads.trace_times import DATE

ROLES = ("arrived", "prompt", "output", "hashes", "class", "tenant")
"""What a column can be: when it came, lengths, the chain of its prompt, its SLO class, who pays."""

Row = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Format:
    """One known format: which column is what.

    Attributes:
        marks: Columns that tell it from others, besides those that it reads.
        unit: Of the times; ``None`` where the format leaves it open.
        hash_tokens: Tokens of a hash; ``None`` where the format leaves it open.
        is_result: Written as requests end, so that the order of its rows means nothing.
        is_own: Headway's own, whose every column is read.
    """

    name: str
    arrived: str | None
    prompt: str
    output: str
    hashes: str | None = None
    slo_class: str | None = None
    tenant: str | None = None
    marks: frozenset[str] = frozenset()
    unit: str | None = None
    hash_tokens: int | None = None
    is_result: bool = False
    is_own: bool = False

    def columns(self) -> dict[str, str]:
        """Return the columns that are read, by role."""
        pairs = zip(
            ROLES,
            (self.arrived, self.prompt, self.output, self.hashes, self.slo_class, self.tenant),
            strict=True,
        )
        return {role: column for role, column in pairs if column is not None}

    def fits(self, columns: frozenset[str]) -> bool:
        """Whether a file with *columns* is in this format."""
        if self.marks:
            return self.marks <= columns
        needed = {self.arrived, self.prompt, self.output} - {None}
        return needed <= columns


OWN = Format(
    "Headway's own format", "arrived_at_s", "num_prompt_tokens", "num_output_tokens",
    "hash_ids", "slo_class", "tenant", unit="s", is_own=True,
)  # fmt: skip

VLLM_RESULT = Format(
    "the result of vllm bench serve", "start_times", "input_lens", "output_lens",
    unit="s", is_result=True,
)  # fmt: skip

GUIDELLM_RESULT = Format(
    "a guidellm report", "request_start_time", "prompt_tokens", "output_tokens",
    marks=frozenset({"request_start_time"}), unit="s", is_result=True,
)  # fmt: skip

FORMATS = (
    OWN,
    Format("an Azure LLM inference trace", "TIMESTAMP", "ContextTokens", "GeneratedTokens",
           unit=DATE),
    Format("BurstGPT", "Timestamp", "Request tokens", "Response tokens", unit="s"),
    Format("a Vidur trace", "arrived_at", "num_prefill_tokens", "num_decode_tokens", unit="s"),
    Format("lengths alone", None, "num_prefill_tokens", "num_decode_tokens"),
    Format("lengths alone", None, "num_prompt_tokens", "num_output_tokens"),
    Format("Qwen-Bailian", "timestamp", "input_length", "output_length", "hash_ids",
           marks=frozenset({"chat_id", "timestamp", "input_length"}), unit="s", hash_tokens=16),
    Format("Mooncake or timed_trace", "timestamp", "input_length", "output_length", "hash_ids"),
    Format("offline lengths", None, "input_length", "output_length", "hash_ids"),
    Format("LLMServingSim", "arrival_time_ns", "input_toks", "output_toks", unit="ns"),
    Format("a measured LLMServingSim run", "arrival_time", "input_toks", "output_toks",
           unit="s", is_result=True),
    Format("ServeGen", "timestamp", "input_tokens", "output_tokens"),
    Format("an aiperf export", "metadata.request_start_ns", "metrics.input_sequence_length",
           "metrics.output_sequence_length", unit="ns", is_result=True,
           marks=frozenset({"metadata.request_start_ns", "metrics"})),
    VLLM_RESULT,
    GUIDELLM_RESULT,
)  # fmt: skip

KNOWN = (
    "Headway JSONL and CSV, Azure LLM inference, BurstGPT, Vidur, Mooncake, vLLM timed_trace,"
    " Qwen-Bailian, LLMServingSim, ServeGen, CSV with num_prefill_tokens and num_decode_tokens,"
    " and the results of aiperf, guidellm and vllm bench serve --save-detailed"
)


def recognised(columns: frozenset[str], is_json: bool) -> Format | None:
    """Return the format of a file with *columns*; ``None`` when it is none of the known.

    JSON rows with any of our own required columns are ours: what is missing is then named.
    """
    if is_json and columns & {OWN.arrived, OWN.prompt, OWN.output}:
        return OWN
    return next((one for one in FORMATS if one.fits(columns)), None)


def names_in(row: Row, before: str = "", depth: int = 2) -> Iterator[str]:
    """Yield the columns of a row; those of objects in it with a dot: ``metrics.ttft``."""
    for name, value in row.items():
        yield before + name
        if depth and isinstance(value, Mapping):
            yield from names_in(value, f"{before}{name}.", depth - 1)


def shown(name: str) -> str:
    """Return a column's name as a terminal can take it: in one line, without escapes."""
    return name if name.isprintable() else repr(name)[1:-1]


def pick(row: Row, column: str) -> Any:
    """Return the value of *column*, ``None`` where there is none.

    An object with a ``value`` beside its unit (aiperf's metrics) is that value.
    """
    found: Any = row.get(column)
    if found is None and "." in column:
        found = row
        for part in column.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
    return found.get("value") if isinstance(found, Mapping) else found


def why_failed(row: Row) -> str | None:
    """Return why a row of a load generator's result is no request that was served."""
    inside = row.get("metadata")
    about: Row = inside if isinstance(inside, Mapping) else row
    if about.get("benchmark_phase") == "warmup":
        return "of the warm-up"
    if row.get("error") or about.get("was_cancelled"):
        return "of requests that failed"
    return None


def without(columns: Iterable[str], used: Iterable[str]) -> list[str]:
    """Return the columns that are not read, those around and inside of read ones left out."""
    taken = set(used)
    roots = {name.partition(".")[0] for name in taken}
    return [c for c in columns if c and c not in taken and "." not in c and c not in roots]
