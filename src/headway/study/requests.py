"""The requests of a virtual run: from a trace or a named workload to calls with promises."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from headway.engines.virtual import Call
from headway.errors import UserError
from headway.slo import Slo, SloBook
from headway.study.spec import Load
from headway.workloads import named
from headway.workloads.arrivals import Arrivals, with_arrivals
from headway.workloads.prefixes import chain_of
from headway.workloads.readers import load as read_trace
from headway.workloads.schema import WorkloadRequest, slo_of

LEAST_BOUND_TOKENS = 2048
"""Clients' limit on the output where a workload names none, unless an output is longer."""

NAMED_DEFAULT_REQUESTS = 600
"""Requests of a named workload when the user does not say."""


@lru_cache(maxsize=2)
def _trace(path: str) -> tuple[WorkloadRequest, ...]:
    return tuple(read_trace(path))


def is_file(source: str) -> bool:
    """Whether *source* is a trace file rather than the name of a workload."""
    return source not in named.names()


def shares_prefixes(load: Load) -> bool:
    """Return whether requests of *load* name what their prompts begin with.

    Raises:
        UserError: The trace is not readable.
    """
    if not is_file(load.source):
        return named.WORKLOADS[load.source].shares_prefixes
    return any(request.hash_ids or request.prefix_id for request in _trace(load.source))


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
    rows = _stretch(_trace(load.source), load.num_requests, load.seed)
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


def calls_of(
    requests: Sequence[WorkloadRequest], book: SloBook, by_class: bool = False
) -> tuple[list[Call], dict[str, Slo]]:
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
) -> Call:
    hash_ids, hash_tokens = chain_of(request)
    return Call(
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
    """Return a promise as the fields a client would send to a server that has *book*."""
    fields = {
        "slo_class": slo.class_name if slo.class_name in book.classes else None,
        "slo_ttft_ms": slo.ttft_s and slo.ttft_s * 1000,
        "slo_tbt_ms": slo.tbt_s and slo.tbt_s * 1000,
        "slo_jct_ms": slo.jct_s and slo.jct_s * 1000,
        "slo_weight": slo.weight if slo.weight != 1.0 else None,
    }
    return {name: value for name, value in fields.items() if value is not None}


def class_ranks(slos: Iterable[Slo]) -> dict[str, int]:
    """Return the priority of each class: the tighter its promise, the lower the number."""
    tightest: dict[str, float] = {}
    for slo in slos:
        due_s = min(s for s in (slo.ttft_s, slo.jct_s, float("inf")) if s is not None)
        tightest[slo.class_name] = min(due_s, tightest.get(slo.class_name, float("inf")))
    ordered = sorted(tightest, key=lambda name: (tightest[name], name))
    return {name: i for i, name in enumerate(ordered)}
