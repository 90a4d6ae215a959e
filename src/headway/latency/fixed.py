"""A step-time model that is told, not learned: for policies that heed no time, and for tests."""

from __future__ import annotations

from collections.abc import Sequence

from headway.latency.model import LatencyModel, StepShape, linear_s


class FixedModel(LatencyModel):
    """The same coefficients for ever.

    Args:
        coefficients: Seconds a unit of each of :data:`~headway.latency.model.FEATURES`.
    """

    def __init__(self, coefficients: Sequence[float]) -> None:
        self._coefficients = tuple(coefficients)

    def predict_s(self, shape: StepShape) -> float:
        """Return the expected seconds of a step of this shape."""
        return linear_s(self._coefficients, shape)

    def margin(self, mixed: bool, miss_rate: float) -> float:
        """Return 1: nothing is known of the error."""
        return 1.0

    def exceeds(self, mixed: bool, ratio: float) -> float:
        """Return whether the prediction itself exceeds."""
        return float(ratio < 1.0)

    def observe(self, shape: StepShape, duration_s: float) -> None:
        """Learn nothing."""
