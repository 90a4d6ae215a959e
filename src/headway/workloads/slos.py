"""Giving promises to requests that came without, as AccelGen's evaluation does."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from headway.errors import UserError
from headway.workloads.schema import WorkloadRequest

BIN_TOKENS = 512
"""Width of the prompt-length bins whose mean TTFT a promise is a multiple of."""

TTFT_MULTIPLES = (0.5, 1.5)
TBT_MULTIPLES = (0.75, 1.25)
TBT_BASE_S = 0.1875


def mean_ttft_s_by_bin(measured: Iterable[tuple[int, float]]) -> dict[int, float]:
    """Return the mean TTFT in seconds of each bin of prompt lengths.

    Args:
        measured: Pairs of prompt tokens and TTFT in seconds, from records of a run.

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
