"""Promises are given by class, or as multiples of what a prompt of that length takes."""

from __future__ import annotations

import numpy as np
import pytest

from headway.errors import UserError
from headway.latency.model import StepShape
from headway.slo import SloBook
from headway.workloads import slos
from headway.workloads.schema import WorkloadRequest, slo_of

BOOK = SloBook.parse(
    {"default": "chat", "classes": {"chat": {"ttft_s": 1, "tbt_s": 0.1}, "batch": {"jct_s": 60}}}
)


def test_resolved_requests_carry_their_class_s_promise() -> None:
    """The class's fields are written out, a request's own stay, the meaning does not change."""
    requests = [
        WorkloadRequest("a", 0.0, 1, 1),
        WorkloadRequest("b", 0.0, 1, 1, slo_class="batch", weight=2.0),
        WorkloadRequest("c", 0.0, 1, 1, slo_class="chat", ttft_slo_s=3.0),
    ]
    a, b, c = slos.resolved(requests, BOOK)
    assert (a.slo_class, a.ttft_slo_s, a.tbt_slo_s, a.jct_slo_s) == ("chat", 1.0, 0.1, None)
    assert (b.ttft_slo_s, b.jct_slo_s, b.weight) == (None, 60.0, 2.0)
    assert (c.ttft_slo_s, c.tbt_slo_s) == (3.0, 0.1)
    assert [slo_of(r, BOOK) for r in (a, b, c)] == [slo_of(r, BOOK) for r in requests]


def test_an_unknown_class_is_refused() -> None:
    """A promise nobody defined cannot be written out."""
    with pytest.raises(UserError, match="'vip'"):
        slos.resolved([WorkloadRequest("a", 0.0, 1, 1, slo_class="vip")], BOOK)


def test_a_prompt_alone_is_prefilled_in_full_chunks_and_a_rest() -> None:
    """5 tokens by 2: chunks of 2, 2, 1 behind 0, 2, 4 tokens of context."""
    seen: list[StepShape] = []

    def truth(shape: StepShape) -> float:
        seen.append(shape)
        return 1.0 + shape.num_prefill_tokens

    assert slos.alone_ttft_s(truth, 5, 2) == pytest.approx(8.0)
    assert [(s.num_prefill_tokens, s.chunk_context) for s in seen] == [(2, 2), (2, 6), (1, 4.5)]
    assert slos.alone_ttft_s(truth, 4, 2) == pytest.approx(6.0)


def test_bins_are_512_tokens_wide() -> None:
    """512 is the last length of the first bin; a bin's mean is of its own prompts only."""
    measured = [(1, 0.2), (512, 0.4), (513, 1.0), (1500, 7.0)]
    assert slos.mean_ttft_s_by_bin(measured) == pytest.approx({0: 0.3, 1: 1.0, 2: 7.0})


def test_promises_by_bin_are_the_mean_times_uniform_multiples() -> None:
    """TTFT: mean of the bin × U(0.5, 1.5); TBT: 0.1875 s × U(0.75, 1.25), independent of it."""
    requests = [WorkloadRequest(f"r{i}", 0.0, 512 * (i % 2) + 10, 1) for i in range(20_000)]
    promised = slos.by_bin(requests, {0: 0.1, 1: 4.0}, seed=1)
    ttft = np.array([r.ttft_slo_s for r in promised]) / np.tile([0.1, 4.0], 10_000)
    tbt = np.array([r.tbt_slo_s for r in promised]) / 0.1875
    for multiples, low, high in ((ttft, 0.5, 1.5), (tbt, 0.75, 1.25)):
        assert low <= multiples.min() < multiples.max() <= high
        inner = (multiples - low) / (high - low)
        assert np.quantile(inner, [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9], abs=0.02)
    assert abs(np.corrcoef(ttft, tbt)[0, 1]) < 0.04
    assert promised == slos.by_bin(requests, {0: 0.1, 1: 4.0}, seed=1)
    assert promised != slos.by_bin(requests, {0: 0.1, 1: 4.0}, seed=2)


def test_a_bin_nobody_measured_is_refused() -> None:
    """The sentence names the lengths and the request."""
    with pytest.raises(UserError, match=r"513 to 1024 tokens, which the request 'r7' needs"):
        slos.by_bin([WorkloadRequest("r7", 0.0, 600, 1)], {0: 0.1}, seed=0)
