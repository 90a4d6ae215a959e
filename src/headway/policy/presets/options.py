"""Checks of preset options, so that a mistake is told at start and not in the middle of a step."""

from __future__ import annotations

import math
from typing import Any

from headway.errors import UserError


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


def share(name: str, value: Any) -> float:
    """Return *value* as a share between 0 and 1, both left out.

    Raises:
        UserError: It is anything else.
    """
    good = isinstance(value, int | float) and not isinstance(value, bool)
    if not good or not 0 < value < 1:
        raise UserError(f"Option {name} must be a number between 0 and 1, not {value!r}.")
    return float(value)
