"""A server's own words, made fit for one sentence of ours."""

from __future__ import annotations

import json
from typing import Any


def in_one_line(text: str) -> str:
    """Return *text* on one line; what a terminal might obey becomes U+FFFD."""
    line = " ".join(text.split())
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in line)


def message_of(text: str) -> str:
    """Return the message of an error body, or the body itself when it has none."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        return text.strip()
    return message_in(body.get("error", body) if isinstance(body, dict) else body)


def message_in(error: Any) -> str:
    """Return the message of an error in one of the shapes that servers use."""
    try:
        if isinstance(error, dict):
            return str(error.get("message") or error.get("detail") or error)
        return str(error)
    except RecursionError:
        return "an error nested too deep to be told"
