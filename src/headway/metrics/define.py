"""Every figure Headway reports, defined once.

Arrival ``a`` and emission times ``e_1 … e_n`` are seconds on one clock, as the client sees them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np

from headway.request import GAPS_KEPT_PERCENT
from headway.slo import Slo

Reading = Literal["default", "plain", "strict", "pace"]
"""How a promised gap is read: by :func:`tbt_attained`, :func:`tbt_attained_plain`,
:func:`tbt_attained_strict` or :func:`pace_attained`. Only the first counts as kept."""

READINGS: tuple[Reading, ...] = get_args(Reading)

DEFINITION = "pause"
"""What a promise kept means in files written now. Files without a definition are :data:`PLAIN`."""

PLAIN = "plain"
"""What it meant before there was a pause: 99 % of the gaps, however long the others were."""

ROUNDING_S = 1e-9
"""A token due at a sum of floats is not late by their rounding."""

QUANTILES = {"p50": 0.50, "p95": 0.95, "p99": 0.99, "max": 1.0}


def definition_of(run: Mapping[str, Any]) -> str:
    """Return what a kept promise means in the summary of a run."""
    return str(run.get("definition") or PLAIN)


def differing_sentence(runs: Iterable[Mapping[str, Any]]) -> str | None:
    """Return one sentence when *runs* do not all mean the same by a kept promise."""
    found = {definition_of(run) for run in runs}
    if len(found) < 2:
        return None
    return (
        "These runs are not alike in what a kept promise is: some were counted by 99 % of the gaps"
        " alone, others also by the longest pause, which is stricter."
    )


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


def pause_s(emitted_at_s: Sequence[float]) -> float | None:
    """Return the longest gap; ``None`` with fewer than two tokens."""
    return max(gaps_s(emitted_at_s), default=None)


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


def pause_attained(emitted_at_s: Sequence[float], longest_pause_s: float) -> bool:
    """Whether no gap is longer than *longest_pause_s*; one token has no gap to miss."""
    return bool(emitted_at_s) and (pause_s(emitted_at_s) or 0.0) <= longest_pause_s


def tbt_attained(emitted_at_s: Sequence[float], promised_s: float, longest_pause_s: float) -> bool:
    """Whether 99 % of the gaps are at most *promised_s* and none exceeds *longest_pause_s*.

    The reading of a gap promise that counts. The other three stand beside it in a report.
    """
    return tbt_attained_plain(emitted_at_s, promised_s) and pause_attained(
        emitted_at_s, longest_pause_s
    )


def tbt_attained_plain(emitted_at_s: Sequence[float], promised_s: float) -> bool:
    """Whether at least 99 % of the gaps are at most *promised_s*, however long the others are.

    With fewer than 100 gaps this is the same as every gap.
    """
    spans_s = gaps_s(emitted_at_s)
    kept = sum(span_s <= promised_s for span_s in spans_s)
    return bool(emitted_at_s) and 100 * kept >= GAPS_KEPT_PERCENT * len(spans_s)


def tbt_attained_strict(emitted_at_s: Sequence[float], promised_s: float) -> bool:
    """Whether every gap is at most *promised_s*."""
    return bool(emitted_at_s) and all(span_s <= promised_s for span_s in gaps_s(emitted_at_s))


def pace_attained(begins_at_s: float, emitted_at_s: Sequence[float], promised_s: float) -> bool:
    """Whether 99 % of the tokens came by ``begins_at_s + k * promised_s``, *k* from 0.

    A client that shows the tokens at a steady pace from *begins_at_s* on has them in time; a
    stream that is ahead may pause.
    """
    kept = sum(
        at_s <= begins_at_s + k * promised_s + ROUNDING_S for k, at_s in enumerate(emitted_at_s)
    )
    return bool(emitted_at_s) and 100 * kept >= GAPS_KEPT_PERCENT * len(emitted_at_s)


def tpot_attained(emitted_at_s: Sequence[float], promised_s: float) -> bool:
    """Whether the mean gap is at most *promised_s*; one token has no gap to miss."""
    mean_s = tpot_s(emitted_at_s)
    return bool(emitted_at_s) and (mean_s is None or mean_s <= promised_s)


def jct_attained(arrived_at_s: float, emitted_at_s: Sequence[float], promised_s: float) -> bool:
    """Whether the last token came within *promised_s* seconds of arrival."""
    span_s = jct_s(arrived_at_s, emitted_at_s)
    return span_s is not None and span_s <= promised_s


def attained(
    slo: Slo,
    arrived_at_s: float,
    emitted_at_s: Sequence[float],
    *,
    finished: bool,
    reading: Reading = "default",
) -> bool:
    """Whether a request finished and kept everything it was promised.

    *reading* is how a promised gap is read; the other promises are read as always.
    """
    return (
        finished
        and spans_attained(slo, arrived_at_s, emitted_at_s)
        and gaps_attained(slo, arrived_at_s, emitted_at_s, reading)
    )


def spans_attained(slo: Slo, arrived_at_s: float, emitted_at_s: Sequence[float]) -> bool:
    """Whether everything promised but the gaps was kept: first token, mean gap, end."""
    return (
        (slo.ttft_s is None or ttft_attained(arrived_at_s, emitted_at_s, slo.ttft_s))
        and (slo.tpot_s is None or tpot_attained(emitted_at_s, slo.tpot_s))
        and (slo.jct_s is None or jct_attained(arrived_at_s, emitted_at_s, slo.jct_s))
    )


def gaps_attained(
    slo: Slo, arrived_at_s: float, emitted_at_s: Sequence[float], reading: Reading = "default"
) -> bool:
    """Whether what was promised about gaps, the pause included, was kept as *reading* has it.

    A pause promised without a gap is read alike in all. By ``strict`` every gap keeps the promise,
    and the pause too; by ``pace`` tokens are due from the promised first one on, or from the
    first one itself where no time was promised for it.
    """
    gap_s, longest_s = slo.tbt_s, slo.longest_pause_s
    if gap_s is None:
        return longest_s == math.inf or pause_attained(emitted_at_s, longest_s)
    if reading == "plain":
        return tbt_attained_plain(emitted_at_s, gap_s)
    if reading == "strict":
        return tbt_attained_strict(emitted_at_s, min(gap_s, longest_s))
    if reading == "pace":
        first_s = arrived_at_s + slo.ttft_s if slo.ttft_s is not None else None
        begins_at_s = first_s if first_s is not None else next(iter(emitted_at_s), 0.0)
        return pace_attained(begins_at_s, emitted_at_s, gap_s)
    return tbt_attained(emitted_at_s, gap_s, longest_s)


def attainment(kept: Iterable[bool]) -> float | None:
    """Return the share of *all offered* requests that were kept; ``None`` when none was offered."""
    flags = list(kept)
    return sum(flags) / len(flags) if flags else None


def target_met(kept: float, target: float) -> bool:
    """Return whether a share of promises *kept* is what the operator wants, or more."""
    return kept >= target


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
