"""From measured steps to a :class:`~headway.latency.profile.StepCost`.

Non-negative least squares (Lawson & Hanson 1974) on the *relative* error, so that a decode step
of 6 ms counts as much as a prompt of 200 ms; iteratively re-weighted with Huber's weights
(Huber 1964), so that a step that hung for a second counts like one that was merely off.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from headway.latency.model import StepShape
from headway.latency.profile import FitError, StepCost

KNEES = (64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048)
"""Knees tried, in tokens. Finer ones lower the mean held-out error by under 0.1 points
(Llama-3.1-8B on A100 and L40S)."""

ROUNDS = 12
"""Re-weighting rounds; the coefficients settle after about six."""

HUBER = 1.345
"""Standard deviations up to which an error counts squared (95 % efficient on normal noise)."""

LEAST_SPREAD = 1e-4
"""A spread below this is rounding: nothing is an outlier then."""

Vector = npt.NDArray[np.float64]


def fit(shapes: Sequence[StepShape], seconds: Sequence[float]) -> StepCost:
    """Return the cost that explains the steps best, over all :data:`KNEES`.

    Args:
        shapes: What each step computed.
        seconds: What it took; positive.
    """
    measured = np.asarray(seconds, dtype=np.float64)
    best: tuple[float, int, Vector] | None = None
    for knee in KNEES:
        rows = np.array([row_of(shape, knee) for shape in shapes])
        coefficients = _robust(rows, measured)
        loss = float(np.mean(np.minimum(np.abs(rows @ coefficients / measured - 1.0), 1.0)))
        if best is None or loss < best[0]:
            best = (loss, knee, coefficients)
    assert best is not None
    _, knee, coefficients = best
    return StepCost(knee, *rounded(*coefficients))


def rounded(*seconds: float) -> tuple[float, ...]:
    """Return the numbers with four digits: more would be noise, and hard to read in a file."""
    return tuple(float(f"{value:.4g}") for value in seconds)


def row_of(shape: StepShape, knee_tokens: int) -> tuple[float, ...]:
    """Return the sizes that the seven coefficients of a step cost multiply, in their order."""
    tokens = shape.num_prefill_tokens + shape.num_decodes
    return (
        1.0,
        float(min(tokens, knee_tokens)),
        float(max(tokens - knee_tokens, 0)),
        float(shape.sum_context_tokens),
        float(shape.num_decodes),
        shape.chunk_context,
        float(shape.num_prefills),
    )


def error_of(cost: StepCost, shapes: Sequence[StepShape], seconds: Sequence[float]) -> FitError:
    """Return how far *cost* is off on steps that were not used to fit it."""
    pairs = zip(shapes, seconds, strict=True)
    off = np.array([abs(cost.step_s(shape) / duration_s - 1.0) for shape, duration_s in pairs])
    return FitError(
        len(off),
        *(round(float(v), 4) for v in (np.median(off), off.mean(), np.quantile(off, 0.95))),
    )


def _robust(rows: Vector, measured: Vector) -> Vector:
    """Solve for one knee.

    Errors are taken relative to the prediction of the round before, not to the measurement:
    dividing by a noisy measurement would favour the steps that happened to be short.
    """
    unit_s = measured
    weight = np.ones(len(measured))
    coefficients = np.zeros(rows.shape[1])
    for _ in range(ROUNDS):
        scale = weight / unit_s
        scaled = rows * scale[:, None]
        width = np.maximum(np.linalg.norm(scaled, axis=0), 1e-300)  # Columns differ by 1e10.
        solution, _ = nnls(scaled / width, measured * scale)
        coefficients = solution / width
        unit_s = np.maximum(rows @ coefficients, 1e-9)
        off = np.abs(measured / unit_s - 1.0)
        spread = max(1.4826 * float(np.median(off)), LEAST_SPREAD)
        weight = np.sqrt(np.minimum(1.0, HUBER * spread / np.maximum(off, 1e-300)))
    return coefficients
