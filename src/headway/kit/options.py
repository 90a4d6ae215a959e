"""Checks of preset options, so that a mistake is told at start and not in the middle of a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from headway.errors import UserError
from headway.kit.lengths import MaxTokens, SlidingHistogram
from headway.policy.predict import Predictor

PREDICTORS: dict[str, Callable[[], Predictor]] = {
    "histogram": SlidingHistogram,
    "max_tokens": MaxTokens,
}


def positive_s(name: str, value: Any) -> float:
    """Return *value* as positive seconds.

    Raises:
        UserError: It is not a finite number greater than 0.
    """
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not math.isfinite(value) or value <= 0:
        raise UserError(f"Option {name} must be a number of seconds greater than 0, not {value!r}.")
    return float(value)


def positive_tokens(name: str, value: Any) -> int:
    """Return *value* as a positive whole number of tokens.

    Raises:
        UserError: It is anything else.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise UserError(f"Option {name} must be a whole number of tokens above 0, not {value!r}.")
    return value


def positive_count(name: str, value: Any) -> int:
    """Return *value* as a whole number above 0.

    Raises:
        UserError: It is anything else.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        raise UserError(f"Option {name} must be a whole number above 0, not {value!r}.")
    return value


def count_from_0(name: str, value: Any) -> int:
    """Return *value* as a whole number, 0 or more.

    Raises:
        UserError: It is anything else.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise UserError(f"Option {name} must be a whole number, 0 or more, not {value!r}.")
    return value


def share(name: str, value: Any, may_be_0: bool = False) -> float:
    """Return *value* as a share of a whole, below 1 and above 0 (or from 0 on).

    Raises:
        UserError: It is anything else.
    """
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not 0 <= value < 1 or (value == 0 and not may_be_0):
        span = "from 0 to below 1" if may_be_0 else "between 0 and 1"
        raise UserError(f"Option {name} must be a number {span}, not {value!r}.")
    return float(value)


def one_of(name: str, value: Any, known: Iterable[str]) -> str:
    """Return *value* if it is among the *known* words.

    Raises:
        UserError: It is not.
    """
    words = list(known)
    if not isinstance(value, str) or value not in words:
        raise UserError(f"Option {name} must be one of {', '.join(words)}, not {value!r:.60}.")
    return value


def length_predictor(name: Any) -> Predictor:
    """Return the predictor called *name* in :data:`PREDICTORS`.

    Raises:
        UserError: There is no such predictor.
    """
    return PREDICTORS[one_of("predictor", name, PREDICTORS)]()
