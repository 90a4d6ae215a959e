"""Who shows an API key of the server, where vLLM itself does not ask for one or does not say."""

from __future__ import annotations

import base64
import binascii
import hmac
import os
from collections.abc import Iterable, MutableMapping
from typing import Any


def is_allowed(scope: MutableMapping[str, Any]) -> bool:
    """Return whether the server has no API key, or a request carries one.

    As a bearer token, or as the password of a browser's own dialogue.
    """
    keys = _keys(scope)
    if not keys:
        return keys is not None
    given = dict(scope["headers"]).get(b"authorization", b"").decode("latin-1")
    scheme, _, word = given.partition(" ")
    if scheme.lower() == "basic":
        try:
            word = base64.b64decode(word, validate=True).decode("latin-1").partition(":")[2]
        except (binascii.Error, ValueError):
            return False
    elif scheme.lower() != "bearer":
        return False
    return _is_one_of(word, keys)


def accepts(scope: MutableMapping[str, Any], api_key: bytes | None) -> bool:
    """Return whether the server has API keys, and *api_key*, bytes of a header, is one of them."""
    if not api_key or "app" not in scope:
        return False
    return _is_one_of(api_key.decode("latin-1"), _keys(scope) or ())


def _is_one_of(word: str, keys: Iterable[str]) -> bool:
    """Compare every key, so that the time taken tells nothing."""
    matches = [hmac.compare_digest(word.encode(), key.encode()) for key in keys]
    return any(matches)


def _keys(scope: MutableMapping[str, Any]) -> list[str] | None:
    """Return the server's API keys as vLLM finds them: the option, else the environment.

    ``None`` for a server that keeps its options elsewhere: it shows nothing, rather than all to
    everybody.
    """
    args = getattr(scope["app"].state, "args", None)
    if args is None:
        return None
    return [key for key in args.api_key or [os.environ.get("VLLM_API_KEY")] if key]
