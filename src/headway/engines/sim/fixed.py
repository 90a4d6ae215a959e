"""A step-time model that is told, not learned: for policies that heed no time."""

from __future__ import annotations

from headway.latency.model import FEATURES, LatencyModel, StepShape
from headway.latency.roofline import Roofline

assert len(FEATURES) == 7, "predict_s spells the features out"


class FixedModel(LatencyModel):
    """The roofline's coefficients for ever.

    ``fcfs`` and ``sarathi`` plan by tokens, so learning would cost time and change nothing.
    """

    def __init__(self, roofline: Roofline | None = None) -> None:
        self._coefficients = (roofline or Roofline()).coefficients()

    def predict_s(self, shape: StepShape) -> float:
        """Return the expected seconds of a step of this shape."""
        fixed, mixed, per_token, per_decode, per_context, per_pair, per_prefill = self._coefficients
        seconds = fixed + per_decode * shape.num_decodes + per_context * shape.sum_context_tokens
        if shape.num_prefill_tokens:
            seconds += (
                mixed
                + per_token * shape.num_prefill_tokens
                + per_pair * shape.chunk_context
                + per_prefill * shape.num_prefills
            )
        return seconds

    def margin(self, mixed: bool, miss_rate: float) -> float:
        """Return 1: nothing is known of the error."""
        return 1.0

    def exceeds(self, mixed: bool, ratio: float) -> float:
        """Return whether the prediction itself exceeds."""
        return float(ratio < 1.0)

    def observe(self, shape: StepShape, duration_s: float) -> None:
        """Learn nothing."""
