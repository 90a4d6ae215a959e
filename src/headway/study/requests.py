"""The requests of a virtual run: from a trace or a named workload to calls with promises."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from headway.engines.virtual import VirtualCall
from headway.errors import UserError
from headway.slo import STAMP, Slo, SloBook
from headway.study.spec import Load
from headway.workloads import named
from headway.workloads.arrivals import Arrivals, busiest, with_arrivals
from headway.workloads.prefixes import chain_of
from headway.workloads.readers import read
from headway.workloads.reading import Reading, ReadOptions
from headway.workloads.schema import WorkloadRequest, fields_of, slo_of

LEAST_BOUND_TOKENS = 2048
"""Clients' limit on the output where a workload names none, unless an output is longer."""

NAMED_DEFAULT_REQUESTS = 600
"""Requests of a named workload when the user does not say."""


@lru_cache(maxsize=2)
def _trace(path: str, options: ReadOptions) -> Reading:
    return read(path, options)


def is_file(source: str) -> bool:
    """Whether *source* is a trace file rather than the name of a workload."""
    return source not in named.names()


def reading_of(load: Load) -> Reading | None:
    """Return the trace of *load* and how it was read, ``None`` for a named workload.

    Raises:
        UserError: The trace is not readable.
    """
    return _trace(load.source, load.reading) if is_file(load.source) else None


def shares_prefixes(load: Load) -> bool:
    """Return whether requests of *load* name what their prompts begin with.

    Raises:
        UserError: The trace is not readable.
    """
    trace = reading_of(load)
    if trace is None:
        return named.WORKLOADS[load.source].shares_prefixes
    return any(request.hash_ids or request.prefix_id for request in trace.requests)


def book_of(load: Load) -> SloBook:
    """Return the SLO classes that apply to *load*; nobody in a simulation has an API key.

    Raises:
        UserError: The SLO file is not one.
    """
    if load.slo_file is not None:
        return replace(SloBook.load(load.slo_file), keys={})
    return SloBook.builtin() if is_file(load.source) else named.book(load.source)


def requests_of(load: Load) -> list[WorkloadRequest]:
    """Return the requests of *load* with their arrival times.

    Raises:
        UserError: Neither a workload nor a readable trace, or too short for what was asked.
    """
    most = load.max_output_tokens
    if most is None:
        return _offered(load)
    return [
        replace(r, num_output_tokens=min(r.num_output_tokens, most), max_output_tokens=most)
        for r in _offered(load)
    ]


def _offered(load: Load) -> list[WorkloadRequest]:
    rng = np.random.default_rng([load.seed, 0x51B])
    if not is_file(load.source):
        if load.rate_rps is None:
            raise UserError(f"The workload {load.source!r} has no recorded times; give --rate.")
        count = load.num_requests or NAMED_DEFAULT_REQUESTS
        return named.make(
            load.source, count, load.rate_rps, load.seed, Arrivals.parse(load.arrivals or "poisson")
        )
    if not Path(load.source).exists():
        raise UserError(
            f"{load.source!r:.80} is neither a file nor a workload;"
            f" the workloads are {', '.join(named.names())}."
        )
    trace = _trace(load.source, load.reading)
    offered = trace.requests
    if load.busiest_s is not None:
        offered = busiest(offered, load.busiest_s)
    rows = _stretch(offered, load.num_requests, load.seed)
    return with_arrivals(rows, Arrivals.parse(load.arrivals or "trace"), load.rate_rps, rng)


def _stretch(
    rows: Sequence[WorkloadRequest], count: int | None, seed: int
) -> list[WorkloadRequest]:
    """Return *count* rows in a row; seed k begins k times *count* into the trace, wrapping."""
    if count is None or count >= len(rows):
        return list(rows)
    windows = max(len(rows) // count, 1)
    start = seed % windows * count
    chosen = rows[start : start + count]
    first_s = chosen[0].arrived_at_s
    return [replace(r, arrived_at_s=r.arrived_at_s - first_s) for r in chosen]


@dataclass(frozen=True, slots=True)
class TooLong:
    """Requests that a server cannot serve whole, by name.

    Attributes:
        cut: Prompt and answer together are longer than its cache: the answer ends early.
        never_fit: The prompt alone leaves no room for a token: answered with an error.
    """

    cut: tuple[str, ...]
    never_fit: tuple[str, ...]

    def lines(self, capacity_tokens: int) -> list[str]:
        """Return a sentence for each kind that there is; many names are cut short."""
        cut = f"{_counted(self.cut)} cut at the {capacity_tokens} tokens of the KV cache:"
        never = f"{_counted(self.never_fit)} answered with an error, for the prompt alone fills"
        never = f"{never} the {capacity_tokens} tokens of the KV cache:"
        pairs = ((cut, self.cut), (never, self.never_fit))
        return [f"{what} {_some(names)}." for what, names in pairs if names]


MOST_NAMED = 8
"""Requests that a line on the terminal names; JSON has all of them."""


def too_long(requests: Iterable[WorkloadRequest], capacity_tokens: int) -> TooLong:
    """Return the requests that *capacity_tokens* of KV cannot hold to their last token."""
    whole = [
        (r.id, r.num_prompt_tokens >= capacity_tokens)
        for r in requests
        if r.num_prompt_tokens + r.num_output_tokens > capacity_tokens
    ]
    return TooLong(
        cut=tuple(name for name, never in whole if not never),
        never_fit=tuple(name for name, never in whole if never),
    )


def _counted(names: Sequence[str]) -> str:
    return f"{len(names)} request{'s are' if len(names) > 1 else ' is'}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:MOST_NAMED]) + (", …" if len(names) > MOST_NAMED else "")


def calls_of(
    requests: Sequence[WorkloadRequest], book: SloBook, by_class: bool = False
) -> tuple[list[VirtualCall], dict[str, Slo]]:
    """Return what the engines are fed, and each request's promise.

    Args:
        by_class: Give vLLM's priority field the rank of the class, the tightest first.
    """
    slos = {r.id: slo_of(r, book) for r in requests}
    bound = bound_of(requests)
    rank = class_ranks(slos.values()) if by_class else {}
    calls = [_call(r, slos[r.id], book, bound, rank) for r in requests]
    return calls, slos


def _call(
    request: WorkloadRequest, slo: Slo, book: SloBook, bound: int, rank: Mapping[str, int]
) -> VirtualCall:
    hash_ids, hash_tokens = chain_of(request)
    return VirtualCall(
        request_id=request.id,
        arrived_at_s=request.arrived_at_s,
        num_prompt_tokens=request.num_prompt_tokens,
        num_output_tokens=request.num_output_tokens,
        xargs=xargs_of(slo, book),
        max_output_tokens=request.max_output_tokens or bound,
        priority=rank.get(slo.class_name, 0),
        hash_ids=hash_ids,
        hash_tokens=hash_tokens,
    )


def bound_of(requests: Sequence[WorkloadRequest]) -> int:
    """Return one limit on the output for all of a workload: a power of two above the longest.

    It must not tell a request's own length: a policy would see the future through it.
    """
    longest = max(request.num_output_tokens for request in requests)
    bound = LEAST_BOUND_TOKENS
    while bound <= longest:
        bound *= 2
    return bound


def xargs_of(slo: Slo, book: SloBook) -> dict[str, Any]:
    """Return a promise as the fields a client would send to a server that has *book*.

    Who pays no client can say there: then it is what the HTTP edge writes for the scheduler.
    """
    if slo.tenant:
        return {STAMP: slo.stamp()}
    known = {"slo_class": slo.class_name} if slo.class_name in book.classes else {}
    return known | fields_of(slo)


def class_ranks(slos: Iterable[Slo]) -> dict[str, int]:
    """Return the priority of each class: the tighter its promise, the lower the number."""
    tightest: dict[str, float] = {}
    for slo in slos:
        due_s = min(s for s in (slo.ttft_s, slo.jct_s, float("inf")) if s is not None)
        tightest[slo.class_name] = min(due_s, tightest.get(slo.class_name, float("inf")))
    ordered = sorted(tightest, key=lambda name: (tightest[name], name))
    return {name: i for i, name in enumerate(ordered)}
