"""The three tails of gaps, against a walk over every token and a sort."""

from __future__ import annotations

import numpy as np
import pytest

from headway.metrics.record import RequestRecord, figures
from headway.slo import Slo


def slow_quantile(values: list[float], share: float) -> float | None:
    """Return the value at *share* of the way through the sorted *values*, between two of them."""
    if not values:
        return None
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    before = int(place)
    after = min(before + 1, len(ordered) - 1)
    return ordered[before] + (place - before) * (ordered[after] - ordered[before])


def slow_tails(streams: list[list[float]]) -> dict[str, list[float]]:
    """Return every gap, each stream's longest and each stream's mean, one token after another."""
    found: dict[str, list[float]] = {"tbt_s": [], "pause_s": [], "tpot_s": []}
    for stream in streams:
        longest, total, num_gaps = 0.0, 0.0, 0
        for k in range(1, len(stream)):
            gap = stream[k] - stream[k - 1]
            found["tbt_s"].append(gap)
            longest = max(longest, gap)
            total += gap
            num_gaps += 1
        if num_gaps:
            found["pause_s"].append(longest)
            found["tpot_s"].append(total / num_gaps)
    return found


@pytest.mark.parametrize("seed", range(20))
def test_tails(seed: int) -> None:
    """With long and short streams, with frozen ones, with one token, with none at all."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(0, (3, 40)[seed % 2], int(rng.integers(0, 30)))
    streams = [
        np.cumsum(rng.exponential(0.05, n) + 5.0 * (rng.random(n) < 0.02)).tolist() for n in sizes
    ]
    records = [
        RequestRecord(str(i), Slo(), 0.0, tuple(stream), ("finished", "aborted")[i % 2], 10)  # type: ignore[arg-type]
        for i, stream in enumerate(streams)
    ]
    told = figures(records, 60.0)
    for name, values in slow_tails(streams).items():
        for quantile, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1.0)):
            expected = slow_quantile(values, share)
            assert told[name][quantile] == pytest.approx(expected, abs=1e-9)
