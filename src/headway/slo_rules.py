"""What an operator lets clients ask for: limits, and what an API key or a model stands for.

The nouns behind the ``[limits]``, ``[keys]`` and ``[models]`` tables of an SLO file; how the file
is read as a whole is in :mod:`headway.slo`.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from headway.errors import UserError
from headway.slo_digests import listed_digest, sent_digests

SPANS = ("ttft_s", "tbt_s", "pause_s", "tpot_s", "jct_s")
"""What a promise may name, in the order of people's reading."""

PROMISES = tuple(span.removesuffix("_s") for span in SPANS)
"""What may be promised, without the unit."""

CLASS_FIELDS = (*SPANS, "weight")
"""What a class of an SLO file, and a limit, may say in numbers."""


def field_of(span: str) -> str:
    """Return the request field that asks for a span, in milliseconds."""
    return f"slo_{span.removesuffix('_s')}_ms"


MAX_PROMISE_S = 7 * 24 * 3600.0
"""No promise is longer than a week: a larger number is a unit mistake."""

MAX_WEIGHT = 1e6
MAX_NUMBER_CHARS = 40
"""A number written as text is not longer than this."""

MAX_CLASS_CHARS = 100
"""The name of a class becomes a label of metrics and a heading: it is printable, and short."""

CLASS_NAMES = f"1 to {MAX_CLASS_CHARS} printable characters"

UNJUDGED = (
    "This server's SLO file has [keys], which Headway's middleware alone can check; it did not"
    " read this request, so that it may ask for no promise."
)

LEAST_NUMBER = 1e-300
"""As good as 0, and still above it in whatever unit it is converted to."""

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 60


def is_ours(name: str) -> bool:
    """Return whether *name* is one of our fields, or is meant to be: with capitals, or misspelt."""
    lowered = name.lower()
    return lowered == "slo" or lowered.startswith("slo_")


def can_be_class(name: Any) -> bool:
    """Whether *name* may be the name of a class, in some SLO file if not in ours."""
    return isinstance(name, str) and 0 < len(name) <= MAX_CLASS_CHARS and name.isprintable()


def shown(value: object) -> str:
    """Return *value* for a sentence: short, whatever a client sent, and however deep it is."""
    return _SHORT.repr(value)


def number(
    name: str, value: Any, *, unit: str, maximum: float, may_be_endless: bool = False
) -> float:
    """Return *value*, a number or the text of one, as a float.

    Raises:
        UserError: It is not a number, not above 0, or above *maximum* (``inf`` included, unless
            it *may_be_endless*).
    """
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise UserError(f"{name} must be a number of {unit} greater than 0, not {shown(value)}.")
    try:
        if isinstance(value, str) and not _can_be_number(value):
            raise ValueError(value)
        result = float(value)
    except (ValueError, OverflowError):
        raise UserError(
            f"{name} must be a number of {unit} greater than 0, not {shown(value)}."
        ) from None
    if may_be_endless and result == math.inf:
        return result
    if not math.isfinite(result) or not LEAST_NUMBER <= result <= maximum:
        most = f"{maximum:g} {unit}{' (or inf)' if may_be_endless else ''}"
        raise UserError(f"{name} must be greater than 0 and at most {most}, not {shown(value)}.")
    return result


def _can_be_number(text: str) -> bool:
    """Whether *text* may be one: digits of other scripts are none, nor is Python's ``1_000``."""
    return len(text) <= MAX_NUMBER_CHARS and text.isascii() and "_" not in text


def truth(name: str, value: Any) -> bool:
    """Return *value*, a truth value or the text or number of one.

    Raises:
        UserError: It is none.
    """
    word = value.strip().lower() if isinstance(value, str) else value
    for answer, words in ((True, ("true", "1")), (False, ("false", "0"))):
        if word in words or (isinstance(word, int) and word == answer):
            return answer
    raise UserError(f"{name} must be true or false (or 1 or 0), not {shown(value)}.")


@dataclass(frozen=True, slots=True)
class Range:
    """What a client may ask for, both ends included; seconds, or units of weight."""

    least: float = 0.0
    most: float = math.inf

    def check(self, name: str, value: float, *, unit: str, per_unit: float) -> None:
        """Raise a sentence when *value* is outside.

        Args:
            name: The field as the client wrote it.
            unit: The client's unit, *per_unit* of which make one of ours.

        Raises:
            UserError: It is.
        """
        if self.least <= value <= self.most:
            return
        least, most = self.least * per_unit, self.most * per_unit
        if self.most == math.inf:
            allowed = f"at least {least:g}"
        elif self.least == 0.0:
            allowed = f"at most {most:g}"
        else:
            allowed = f"between {least:g} and {most:g}"
        raise UserError(
            f"{name} must be {allowed} {unit} on this server, not {value * per_unit:g}."
        )


ANY = Range()


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds on what clients ask for themselves; classes of the operator are not checked.

    Attributes:
        ranges: By :data:`SPANS` and ``weight``; absent is any value.
        classes: What a client may name; ``None`` is every class of the file.
    """

    ranges: Mapping[str, Range] = field(default_factory=dict)
    classes: frozenset[str] | None = None

    @classmethod
    def parse(cls, table: Any, known: Collection[str], source: str) -> Limits:
        """Read ``[limits]``; *known* are the file's classes.

        Raises:
            UserError: A key or value is not allowed.
        """
        where = f"{source}: [limits]"
        check_keys(where, table, (*CLASS_FIELDS, "classes"))
        ranges = {
            name: _range_of(f"{where} {name}", name, table[name])
            for name in CLASS_FIELDS
            if name in table
        }
        return cls(ranges, _classes_of(where, table, known))


@dataclass(frozen=True, slots=True)
class Grant:
    """What an API key or a model stands for.

    Attributes:
        class_name: The class of requests that name none.
        classes: What such a client may name instead of what ``[limits]`` says.
    """

    class_name: str | None = None
    classes: frozenset[str] | None = None


def keys_of(table: Any, known: Collection[str], source: str) -> dict[str, Grant]:
    """Read ``[keys]``: grants by the SHA-256 of the key, in hexadecimal.

    A key is named by ``sha256:`` and its digest, or in clear; in memory there are digests only.

    Raises:
        UserError: A digest, key or value is not allowed. No sentence repeats a key.
    """
    grants = {}
    for number_of_key, (name, entry) in enumerate(tables_in(f"{source}: [keys]", table), start=1):
        where = f"{source}: key {number_of_key} of [keys]"
        digest = listed_digest(where, name)
        check_keys(where, entry, ("class", "classes"))
        grants[digest] = Grant(_class_of(where, entry, known), _classes_of(where, entry, known))
    return grants


def grant_of(grants: Mapping[str, Grant], api_key: bytes | None) -> Grant | None:
    """Return what *api_key*, bytes of a header, stands for."""
    if not api_key or not grants:
        return None
    sent, plain = sent_digests(api_key)
    return grants.get(sent) or grants.get(plain)


def models_of(table: Any, known: Collection[str], source: str) -> dict[str, Grant]:
    """Read ``[models]``: grants by the model's name as clients write it.

    Raises:
        UserError: A key or value is not allowed.
    """
    grants = {}
    for name, entry in tables_in(f"{source}: [models]", table):
        where = f"{source}: [models.{shown(name)}]"
        check_keys(where, entry, ("class",))
        grants[name] = Grant(_class_of(where, entry, known))
    return grants


def _range_of(where: str, name: str, table: Any) -> Range:
    check_keys(where, table, ("min", "max"))
    unit, maximum = ("units", MAX_WEIGHT) if name == "weight" else ("seconds", MAX_PROMISE_S)
    ends = {
        end: number(f"{where} {end}", table[end], unit=unit, maximum=maximum)
        for end in ("min", "max")
        if end in table
    }
    result = Range(ends.get("min", 0.0), ends.get("max", math.inf))
    if result.least > result.most:
        raise UserError(f"{where}: min is greater than max.")
    return result


def _class_of(where: str, table: Mapping[str, Any], known: Collection[str]) -> str | None:
    name = table.get("class")
    if name is not None and (not isinstance(name, str) or name not in known):
        raise UserError(f"{where}: class = {shown(name)} is not one of {sorted(known)}.")
    return name


def _classes_of(
    where: str, table: Mapping[str, Any], known: Collection[str]
) -> frozenset[str] | None:
    names = table.get("classes")
    if names is None:
        return None
    if not isinstance(names, list):
        raise UserError(f"{where}: classes must be a list of class names.")
    for name in names:
        if not isinstance(name, str) or name not in known:
            raise UserError(f"{where}: classes has {shown(name)}, not one of {sorted(known)}.")
    return frozenset(names)


def tables_in(where: str, table: Any) -> Iterable[tuple[str, Any]]:
    """Return the named tables in *table*.

    Raises:
        UserError: It is none.
    """
    if not isinstance(table, Mapping):
        raise UserError(f"{where} must be a table of tables.")
    return table.items()


def check_keys(where: str, table: Any, allowed: Collection[str]) -> None:
    """Raise a sentence where *table* is none, or has a key that is not *allowed*.

    Raises:
        UserError: It is so.
    """
    if not isinstance(table, Mapping):
        raise UserError(f"{where} must be a table of {', '.join(allowed)}.")
    unknown = sorted(set(table) - set(allowed))
    if unknown:
        raise UserError(
            f"{where}: unknown key {shown(unknown[0])}; allowed are {', '.join(allowed)}."
        )
