"""Every figure Headway reports, defined once.

Arrival ``a`` and emission times ``e_1 … e_n`` are seconds on one clock, as the client sees them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from headway.request import GAPS_KEPT_PERCENT
from headway.slo import Slo

QUANTILES = {"p50": 0.50, "p95": 0.95, "p99": 0.99, "max": 1.0}


def ttft_s(arrived_at_s: float, emitted_at_s: Sequence[float]) -> float | None:
    """Return seconds from arrival to the first token; ``None`` without a token."""
    return emitted_at_s[0] - arrived_at_s if emitted_at_s else None


def gaps_s(emitted_at_s: Sequence[float]) -> list[float]:
    """Return the n − 1 spans in seconds between successive tokens."""
    return [after - before for before, after in pairwise(emitted_at_s)]


def tpot_s(emitted_at_s: Sequence[float]) -> float | None:
    """Return mean seconds per token after the first; ``None`` with fewer than two tokens."""
    if len(emitted_at_s) < 2:
        return None
    return (emitted_at_s[-1] - emitted_at_s[0]) / (len(emitted_at_s) - 1)


def jct_s(arrived_at_s: float, emitted_at_s: Sequence[float]) -> float | None:
    """Return seconds from arrival to the last token; ``None`` without a token."""
    return emitted_at_s[-1] - arrived_at_s if emitted_at_s else None


def normalised_latency_s(arrived_at_s: float, emitted_at_s: Sequence[float]) -> float | None:
    """Return seconds from arrival to the last token, a token of the output (ORCA's measure)."""
    if not emitted_at_s:
        return None
    return (emitted_at_s[-1] - arrived_at_s) / len(emitted_at_s)


def ttft_attained(arrived_at_s: float, emitted_at_s: Sequence[float], promised_s: float) -> bool:
    """Whether the first token came within *promised_s* seconds of arrival."""
    span_s = ttft_s(arrived_at_s, emitted_at_s)
    return span_s is not None and span_s <= promised_s


def tbt_attained(emitted_at_s: Sequence[float], promised_s: float) -> bool:
    """Whether at least 99 % of the gaps are at most *promised_s*; one token has no gap to miss.

    With fewer than 100 gaps this is the same as every gap.
    """
    spans_s = gaps_s(emitted_at_s)
    kept = sum(span_s <= promised_s for span_s in spans_s)
    return bool(emitted_at_s) and 100 * kept >= GAPS_KEPT_PERCENT * len(spans_s)


def tbt_attained_strict(emitted_at_s: Sequence[float], promised_s: float) -> bool:
    """Whether every gap is at most *promised_s*."""
    return bool(emitted_at_s) and all(span_s <= promised_s for span_s in gaps_s(emitted_at_s))


def tbt_attained_lenient(emitted_at_s: Sequence[float], promised_s: float) -> bool:
    """Whether the mean gap is at most *promised_s*, as vLLM's own benchmark counts."""
    mean_s = tpot_s(emitted_at_s)
    return bool(emitted_at_s) and (mean_s is None or mean_s <= promised_s)


def jct_attained(arrived_at_s: float, emitted_at_s: Sequence[float], promised_s: float) -> bool:
    """Whether the last token came within *promised_s* seconds of arrival."""
    span_s = jct_s(arrived_at_s, emitted_at_s)
    return span_s is not None and span_s <= promised_s


def attained(
    slo: Slo, arrived_at_s: float, emitted_at_s: Sequence[float], *, finished: bool
) -> bool:
    """Whether a request finished and kept everything it was promised."""
    return (
        finished
        and (slo.ttft_s is None or ttft_attained(arrived_at_s, emitted_at_s, slo.ttft_s))
        and (slo.tbt_s is None or tbt_attained(emitted_at_s, slo.tbt_s))
        and (slo.jct_s is None or jct_attained(arrived_at_s, emitted_at_s, slo.jct_s))
    )


def attainment(kept: Iterable[bool]) -> float | None:
    """Return the share of *all offered* requests that were kept; ``None`` when none was offered."""
    flags = list(kept)
    return sum(flags) / len(flags) if flags else None


def goodput_per_s(amount: float, duration_s: float) -> float | None:
    """Return attained requests (or their tokens) per second; ``None`` for no time at all."""
    return amount / duration_s if duration_s > 0 else None


def quantiles(values: Sequence[float]) -> dict[str, float | None]:
    """Return p50, p95, p99 and max (linear interpolation); all ``None`` without values."""
    if not values:
        return dict.fromkeys(QUANTILES)
    found = np.quantile(np.asarray(values, dtype=float), list(QUANTILES.values()))
    return {name: float(value) for name, value in zip(QUANTILES, found, strict=True)}


def is_bounded(predicted_s: Any, promised_s: Any) -> Any:
    """Whether a step was planned with a bound; of arrays, which of the steps.

    A promise no greater than the prediction, rounding aside, is none: half of all steps exceed a
    mean.
    """
    return promised_s > predicted_s * (1 + 1e-9)
