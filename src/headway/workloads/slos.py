"""Giving promises to requests that came without: by class, or as AccelGen's evaluation does."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from headway.errors import UserError
from headway.latency.model import StepShape
from headway.slo import SloBook
from headway.workloads.schema import WorkloadRequest, slo_of

BIN_TOKENS = 512
"""Width of the prompt-length bins whose mean TTFT a promise is a multiple of."""

TTFT_MULTIPLES = (0.5, 1.5)
TBT_MULTIPLES = (0.75, 1.25)
TBT_BASE_S = 0.1875


def resolved(requests: Iterable[WorkloadRequest], book: SloBook) -> list[WorkloadRequest]:
    """Return *requests* with the promises of their classes written out in their own fields.

    A request's own fields stay. The result means the same without the book.

    Raises:
        UserError: A request names a class that *book* does not have.
    """
    return [_with_promise(request, book) for request in requests]


def _with_promise(request: WorkloadRequest, book: SloBook) -> WorkloadRequest:
    slo = slo_of(request, book)
    return replace(
        request,
        slo_class=slo.class_name if slo.class_name in book.classes else request.slo_class,
        ttft_slo_s=slo.ttft_s,
        tbt_slo_s=slo.tbt_s,
        jct_slo_s=slo.jct_s,
        weight=slo.weight,
    )


def alone_ttft_s(
    truth: Callable[[StepShape], float], num_prompt_tokens: int, chunk_tokens: int
) -> float:
    """Return seconds to prefill one prompt on an idle engine, in steps of *chunk_tokens*.

    Args:
        truth: What a step takes, in seconds.
        chunk_tokens: Most prompt tokens of one step; at least 1.
    """
    total_s = 0.0
    for done in range(0, num_prompt_tokens, chunk_tokens):
        chunk = min(chunk_tokens, num_prompt_tokens - done)
        total_s += truth(StepShape().with_chunk(chunk, done))
    return total_s


def mean_ttft_s_by_bin(measured: Iterable[tuple[int, float]]) -> dict[int, float]:
    """Return the mean TTFT in seconds of each bin of prompt lengths.

    Args:
        measured: Pairs of prompt tokens and TTFT in seconds, from records of a run or from
            :func:`alone_ttft_s`.

    Returns:
        Bin → mean; bin k holds prompts of ``512 * k + 1`` to ``512 * (k + 1)`` tokens.
    """
    spans_s: defaultdict[int, list[float]] = defaultdict(list)
    for num_prompt_tokens, span_s in measured:
        spans_s[bin_of(num_prompt_tokens)].append(span_s)
    return {index: sum(found) / len(found) for index, found in sorted(spans_s.items())}


def bin_of(num_prompt_tokens: int) -> int:
    """Return the number of the bin, from 0, that a prompt of this length belongs to."""
    return (num_prompt_tokens - 1) // BIN_TOKENS


def by_bin(
    requests: Sequence[WorkloadRequest], mean_ttft_s: Mapping[int, float], seed: int
) -> list[WorkloadRequest]:
    """Return *requests* with the promises of AccelGen's evaluation, each drawn for itself.

    TTFT: the mean TTFT of its 512-token prompt bin, times U(0.5, 1.5). TBT: 0.1875 s, times
    U(0.75, 1.25). After arXiv 2503.13737, setup, as third parties report it; the paper's own
    bins are of TTFTs measured on its machine. Differs: here the caller says where means come
    from (:func:`mean_ttft_s_by_bin`).

    Args:
        mean_ttft_s: Bin → seconds.
        seed: The same seed and number of requests give the same multiples, whatever the lengths.

    Raises:
        UserError: A request's bin has no mean.
    """
    rng = np.random.default_rng([seed, 0xACCE])
    ttft_multiples = rng.uniform(*TTFT_MULTIPLES, len(requests))
    tbt_multiples = rng.uniform(*TBT_MULTIPLES, len(requests))
    promised: list[WorkloadRequest] = []
    for request, ttft_multiple, tbt_multiple in zip(
        requests, ttft_multiples, tbt_multiples, strict=True
    ):
        index = bin_of(request.num_prompt_tokens)
        if index not in mean_ttft_s:
            raise UserError(
                f"No TTFT was measured for prompts of {index * BIN_TOKENS + 1} to"
                f" {(index + 1) * BIN_TOKENS} tokens, which the request {request.id!r:.60} needs."
            )
        ttft_slo_s = mean_ttft_s[index] * float(ttft_multiple)
        tbt_slo_s = TBT_BASE_S * float(tbt_multiple)
        promised.append(replace(request, ttft_slo_s=ttft_slo_s, tbt_slo_s=tbt_slo_s))
    return promised
