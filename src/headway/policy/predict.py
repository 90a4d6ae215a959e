"""How long a request's output will be: guesses that only shape plans, never correctness.

A :class:`Predictor` answers with one number. The default policy weighs every length instead
(:mod:`headway.policy.kv.forecast`) and takes the mean where one number is needed.
"""

from __future__ import annotations

from typing import Protocol

from headway.request import Request


class Predictor(Protocol):
    """Predicts output lengths, in tokens."""

    @property
    def coverage_target(self) -> float | None:
        """Share of outputs that predictions are meant to cover, or ``None``: a mean, a guess."""
        return None

    def predict(self, request: Request) -> int:
        """Return the total output tokens expected, more than were generated already."""

    def learn(self, request: Request) -> None:
        """Take in a request that ran to its natural end, or to its bound."""

    def learn_cut(self, request: Request) -> None:
        """Take in a request that left early; most predictors make nothing of it."""
        return  # An empty body would make it abstract to mypy.


def within(request: Request, num_tokens: int) -> int:
    """Return *num_tokens* as a length *request* can still have: ahead of it, within its bound."""
    return max(min(num_tokens, request.max_output_tokens), request.num_output_tokens + 1)
