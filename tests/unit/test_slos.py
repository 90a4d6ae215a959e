"""Promises are given as multiples of what a prompt of that length takes."""

from __future__ import annotations

import numpy as np
import pytest

from headway.errors import UserError
from headway.workloads import slos
from headway.workloads.schema import WorkloadRequest


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
