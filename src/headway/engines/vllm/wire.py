"""How the scheduler tells the HTTP edge that it will not serve a request.

The two run in different processes. The one field of a finished request that vLLM carries
from scheduler to server untouched is ``stop_reason``, so the answer travels in it:
``headway:refused:<retry_after_s>:<sentence>`` or ``headway:invalid:<sentence>``. Finish
such a request with the reason *abort*: *error* makes vLLM log a failure of its own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

_REFUSED = "headway:refused:"
_INVALID = "headway:invalid:"


@dataclass(frozen=True, slots=True)
class Refused:
    """The server is too busy to keep this promise (HTTP 429)."""

    retry_after_s: float
    """Seconds until trying again makes sense; finite and not negative."""
    sentence: str


@dataclass(frozen=True, slots=True)
class Invalid:
    """The request itself is a mistake and will never be served (HTTP 400)."""

    sentence: str


def refused(retry_after_s: float, sentence: str) -> str:
    """Return the ``stop_reason`` of a request refused for now.

    A *retry_after_s* that is not a sensible number of seconds travels as 0.
    """
    seconds = retry_after_s if math.isfinite(retry_after_s) and retry_after_s > 0 else 0.0
    return f"{_REFUSED}{seconds:.3f}:{sentence}"


def invalid(sentence: str) -> str:
    """Return the ``stop_reason`` of a request that can never be served."""
    return f"{_INVALID}{sentence}"


def parse(stop_reason: object) -> Refused | Invalid | None:
    """Return what *stop_reason* says, or ``None`` when it is not one of ours."""
    if not isinstance(stop_reason, str):
        return None
    if stop_reason.startswith(_INVALID):
        return Invalid(stop_reason.removeprefix(_INVALID))
    if not stop_reason.startswith(_REFUSED):
        return None
    seconds, _, sentence = stop_reason.removeprefix(_REFUSED).partition(":")
    try:
        return Refused(float(seconds), sentence)
    except ValueError:
        return None
