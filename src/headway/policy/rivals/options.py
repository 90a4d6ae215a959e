"""Checks of the rivals' options, told at start and not in the middle of a step."""

from __future__ import annotations

from typing import Any

from headway.errors import UserError
from headway.policy.predict import MaxTokens, Predictor, SlidingHistogram

PREDICTORS = ("histogram", "max_tokens")


def positive_count(name: str, value: Any) -> int:
    """Return *value* as a whole number above 0.

    Raises:
        UserError: It is anything else.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise UserError(f"Option {name} must be a whole number above 0, not {value!r}.")
    return value


def share(name: str, value: Any) -> float:
    """Return *value* as a share of a whole, from 0 to below 1.

    Raises:
        UserError: It is anything else.
    """
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not 0 <= value < 1:
        raise UserError(f"Option {name} must be a number from 0 to below 1, not {value!r}.")
    return float(value)


def length_predictor(name: Any) -> Predictor:
    """Return the predictor called *name* in :data:`PREDICTORS`.

    Raises:
        UserError: There is no such predictor.
    """
    if name == "histogram":
        return SlidingHistogram()
    if name == "max_tokens":
        return MaxTokens()
    raise UserError(f"Option predictor must be one of {', '.join(PREDICTORS)}, not {name!r}.")
