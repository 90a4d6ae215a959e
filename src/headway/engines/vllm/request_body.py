"""A request's JSON body, read as vLLM reads it: in whatever encoding JSON may have.

What is read here is what vLLM will act on, or a client could say one thing to each of us.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from headway.errors import UserError
from headway.slo_rules import is_ours, shown

HINT = b'"slo'
"""In lower case; a body in UTF-8 without it and without :data:`ESCAPED` has no field of ours."""

ESCAPED = re.compile(rb"\\u00[4-7]")
"""How JSON may write a letter, small or capital."""

HOLDERS = ("vllm_xargs", "sampling_params", "extra_args")
"""Objects that hold fields of ours, beside those of others."""


class JsonObject(dict[str, Any]):
    """A JSON object, with all of its pairs: of two with one name the last one counts."""

    pairs: Sequence[tuple[str, Any]] = ()


def can_matter(body: bytes) -> bool:
    """Return whether there may be a field of ours in *body*: not to parse it twice for nothing."""
    if not json.detect_encoding(body).startswith("utf-8"):
        return True
    return HINT in body.lower() or ESCAPED.search(body) is not None


def parsed(body: bytes) -> Any:
    """Return the value that *body* is, ``None`` where it is no JSON: vLLM has words for that.

    Raises:
        UserError: A field of ours is there twice.
    """
    try:
        value = json.loads(body, object_pairs_hook=_object)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, JsonObject):
        _check_said_once(value)
    return value


def _object(pairs: Sequence[tuple[str, Any]]) -> JsonObject:
    result = JsonObject(pairs)
    result.pairs = pairs
    return result


def _check_said_once(value: JsonObject, *, all_ours: bool = False) -> None:
    seen: dict[str, Any] = {}
    for name, inner in value.pairs:
        if name in seen and (all_ours or _speaks(name, inner) or _speaks(name, seen[name])):
            raise UserError(f"{shown(name)} is there twice in one object; say it once.")
        seen[name] = inner
        if isinstance(inner, JsonObject) and (name in HOLDERS or name == "slo"):
            _check_said_once(inner, all_ours=name == "slo")


def _speaks(name: str, value: Any) -> bool:
    """Whether a promise is in *value*, which stands under *name*."""
    if is_ours(name):
        return True
    return name in HOLDERS and isinstance(value, Mapping) and _any_speaks(value.items())


def _any_speaks(pairs: Iterable[tuple[str, Any]]) -> bool:
    return any(_speaks(name, value) for name, value in pairs)
