"""The shape of a step, and what a model of its duration must answer."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

FEATURES = (
    "fixed",
    "mixed",
    "prefill tokens",
    "decodes",
    "context tokens",
    "chunk x context",
    "prefills",
)
"""Columns of :meth:`StepShape.features`. Every coefficient is non-negative seconds a unit."""


@dataclass(frozen=True, slots=True)
class StepShape:
    """What one step computes.

    Attributes:
        num_prefill_tokens: Prompt tokens, all chunks together.
        num_prefills: Requests those chunks belong to.
        num_decodes: Requests that compute one token each.
        sum_context_tokens: KV tokens the decodes read.
        chunk_context: Sum over chunks of ``chunk * (prefix + chunk / 2)``, the attention
            work of prefill; without it a 10,000-token prompt looks as cheap as 100 short ones.
    """

    num_prefill_tokens: int = 0
    num_prefills: int = 0
    num_decodes: int = 0
    sum_context_tokens: int = 0
    chunk_context: float = 0.0

    @property
    def is_mixed(self) -> bool:
        """Whether prompts are computed: such steps do not run the decode-only graphs."""
        return self.num_prefill_tokens > 0

    @property
    def num_tokens(self) -> int:
        """Tokens computed, prompts' and decodes'."""
        return self.num_prefill_tokens + self.num_decodes

    @property
    def decodes(self) -> StepShape:
        """The decodes of the step alone."""
        return StepShape(0, 0, self.num_decodes, self.sum_context_tokens)

    def with_decode(self, context_tokens: int) -> StepShape:
        """Return this shape with one more decode that reads *context_tokens* of KV."""
        return StepShape(
            self.num_prefill_tokens,
            self.num_prefills,
            self.num_decodes + 1,
            self.sum_context_tokens + context_tokens,
            self.chunk_context,
        )

    def features(self) -> tuple[float, ...]:
        """Return the row of :data:`FEATURES`."""
        mixed = 1.0 if self.num_prefill_tokens > 0 else 0.0
        return (
            1.0,
            mixed,
            float(self.num_prefill_tokens),
            float(self.num_decodes),
            float(self.sum_context_tokens),
            self.chunk_context,
            float(self.num_prefills),
        )

    def with_chunk(self, num_tokens: int, prefix_tokens: int) -> StepShape:
        """Return this shape with one more chunk of *num_tokens* behind *prefix_tokens*."""
        if num_tokens <= 0:
            return self
        return StepShape(
            self.num_prefill_tokens + num_tokens,
            self.num_prefills + 1,
            self.num_decodes,
            self.sum_context_tokens,
            self.chunk_context + num_tokens * (prefix_tokens + num_tokens / 2),
        )


def linear_s(coefficients: Sequence[float], shape: StepShape) -> float:
    """Return the seconds of a step by a linear model.

    Args:
        coefficients: Seconds a unit of each of :data:`FEATURES`.
    """
    # Spelled out: this runs some ten times a plan, and a sum over features() costs four times it.
    fixed, mixed, per_token, per_decode, per_context, per_pair, per_prefill = coefficients
    seconds = fixed + per_decode * shape.num_decodes + per_context * shape.sum_context_tokens
    if shape.num_prefill_tokens:
        seconds += (
            mixed
            + per_token * shape.num_prefill_tokens
            + per_pair * shape.chunk_context
            + per_prefill * shape.num_prefills
        )
    return seconds


class LatencyModel(Protocol):
    """Predicts the seconds a step takes and learns from the steps that ran."""

    def predict_s(self, shape: StepShape) -> float:
        """Return the expected seconds of a step; non-decreasing in every size."""

    def margin(self, mixed: bool, miss_rate: float) -> float:
        """Return the factor that covers all but *miss_rate* of the steps of this mode."""

    def exceeds(self, mixed: bool, ratio: float) -> float:
        """Return the probability that a step lasts over *ratio* times its prediction."""

    def observe(self, shape: StepShape, duration_s: float) -> None:
        """Learn from one finished step."""

    @property
    def num_mixed_steps(self) -> int:
        """Steps with prompt tokens learned from; a model that is told needs none."""
        return sys.maxsize

    @property
    def is_warm(self) -> bool:
        """Whether steps with prompts have shown how fast the machine is; one that is told knows."""
        return True

    @property
    def num_steps_unconfirmed(self) -> int:
        """Steps since one with prompt tokens took as long as predicted; 0 where nothing is learned.

        The estimate may be too long as well as too old: whoever plans by it prevents the steps
        that would tell.
        """
        return 0
