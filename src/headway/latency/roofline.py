"""A first guess of the step time from the model's shapes, so that step one is already sane.

Williams et al., "Roofline" (CACM 2009): a step costs the longer of its arithmetic and its
memory traffic. The absolute scale is soon corrected by the first real steps
(:mod:`headway.latency.online`); the *proportions* between terms are what the guess gives.
"""

from __future__ import annotations

from dataclasses import dataclass

from headway.latency.model import StepShape


@dataclass(frozen=True, slots=True)
class Roofline:
    """Model and device in seven numbers, from a driver that knows the model's shapes.

    Where nobody does they are those of :data:`headway.latency.laptop.LAPTOP`.

    Attributes:
        num_params: Weights used for one token.
        weight_bytes: Bytes of those weights, read once a step.
        kv_bytes_per_token: Bytes of KV of one token over all layers.
        attention_flops_per_pair: Operations for one query token against one context token
            (4 x layers x heads x head width).
        flops_per_s, bytes_per_s: What the device sustains.
        fixed_s: Launch and bookkeeping of a step.
    """

    num_params: float
    weight_bytes: float
    kv_bytes_per_token: float
    attention_flops_per_pair: float
    flops_per_s: float
    bytes_per_s: float
    fixed_s: float

    def coefficients(self) -> tuple[float, ...]:
        """Return seconds a unit of :data:`~headway.latency.model.FEATURES`.

        Differs from the roofline proper: memory time and arithmetic time are added instead of
        the longer being taken, which errs on the slow side by at most a factor of two and
        keeps the guess linear.
        """
        per_token_s = 2.0 * self.num_params / self.flops_per_s
        return (
            self.fixed_s + self.weight_bytes / self.bytes_per_s,
            0.0,
            per_token_s,
            per_token_s,
            self.kv_bytes_per_token / self.bytes_per_s,
            self.attention_flops_per_pair / self.flops_per_s,
            0.0,
        )

    def predict_s(self, shape: StepShape) -> float:
        """Return the seconds of a step of this shape."""
        pairs = zip(self.coefficients(), shape.features(), strict=True)
        return sum(coefficient * size for coefficient, size in pairs)
