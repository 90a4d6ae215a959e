"""How the scheduler tells the HTTP edge what became of a request.

The two run in different processes. The one field of a finished request that vLLM carries
from scheduler to server untouched is ``stop_reason``, so the answer travels in it. A request
that is not served: ``headway:refused:<retry_after_s>:<sentence>`` or
``headway:invalid:<sentence>``; finish it with the reason *abort*: *error* makes vLLM log a
failure of its own. One that was served and whose client asked how late it was:
``headway:account:<json>``, the ``stop_reason`` of vLLM inside.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_REFUSED = "headway:refused:"
_INVALID = "headway:invalid:"
_ACCOUNT = "headway:account:"


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


@dataclass(frozen=True, slots=True)
class Account:
    """How a served request ended up against its promise."""

    told: Mapping[str, Any]
    """What its client is told; ``late_ms`` is a number."""
    stop_reason: int | str | None
    """What stood in the field that it travels in."""


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


def account(told: Mapping[str, Any], stop_reason: int | str | None) -> str:
    """Return the ``stop_reason`` of a served request with its account in it."""
    return f"{_ACCOUNT}{json.dumps({'told': told, 'stop_reason': stop_reason})}"


def parse_account(stop_reason: object) -> Account | None:
    """Return the account in *stop_reason*, or ``None`` when there is none.

    A stop string may be anything a client likes, so what only looks like an account is none.
    """
    if not isinstance(stop_reason, str) or not stop_reason.startswith(_ACCOUNT):
        return None
    try:
        document = json.loads(stop_reason.removeprefix(_ACCOUNT))
        told, original = document["told"], document["stop_reason"]
        is_account = isinstance(told["late_ms"], int | float)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return Account(told, original) if is_account else None


def outcome_of(stop_reason: str | None) -> str | None:
    """Return how a request ends by the scheduler's own word, ``None`` where it has none."""
    said = parse(stop_reason)
    if said is None:
        return None
    return "refused" if isinstance(said, Refused) else "rejected"
