"""The fields of a promise as they are written: in an SLO file's class, and in the edge's stamp.

What is judged here are the values; :mod:`headway.slo` makes promises of them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from headway.errors import UserError
from headway.slo_rules import (
    ANY,
    CLASS_FIELDS,
    CLASS_NAMES,
    MAX_PROMISE_S,
    MAX_WEIGHT,
    SPANS,
    Limits,
    can_be_class,
    number,
    shown,
)
from headway.units import format_s, ms_to_s

ENDLESS = "inf"
"""How a span without an end is written where JSON goes: it has no number for it."""


TABLE_FIELDS = (*CLASS_FIELDS, "target")
"""What a class of an SLO file may say."""


def span_of(name: str, value: Any, key: str, *, per_s: float = 1.0) -> float:
    """Return *value*, a number of units *per_s* of which make a second, for the field *key*.

    Only a pause may be endless.

    Raises:
        UserError: It is no such number.
    """
    unit = "seconds" if per_s == 1.0 else "milliseconds"
    return number(
        name, value, unit=unit, maximum=MAX_PROMISE_S * per_s, may_be_endless=key == "pause_s"
    )


def written(span_s: float | None) -> float | str | None:
    """Return a span as JSON, TOML and HTTP can hold it; :func:`span_of` reads it back."""
    return ENDLESS if span_s == math.inf else span_s


def check_pause(what: str, pause_s: float | None, tbt_s: float | None) -> None:
    """Raise a sentence when a longest pause is shorter than the gap promised beside it.

    Args:
        what: Whose pause it is, as it was written.

    Raises:
        UserError: It is: most gaps may then be longer than any.
    """
    if pause_s is not None and tbt_s is not None and pause_s < tbt_s:
        raise UserError(
            f"{what} is {format_s(pause_s)}, which is shorter than the promised gap between tokens"
            f" of {format_s(tbt_s)}; it must be as long or longer, or {ENDLESS}."
        )


def asked_field(name: str, label: str, value: Any, limits: Limits) -> tuple[str, float]:
    """Return the field of a promise that the request field *name* stands for, and its value.

    Args:
        label: How the client wrote the field.
        limits: What clients may ask for.

    Raises:
        UserError: It is no such value, or not allowed.
    """
    if name == "slo_weight":
        key, unit, per_unit = "weight", "units", 1.0
        result = weight_of(label, value)
    else:
        key = name.removeprefix("slo_").removesuffix("_ms") + "_s"
        unit, per_unit = "milliseconds", 1000.0
        result = ms_to_s(span_of(label, value, key, per_s=per_unit))
    limits.ranges.get(key, ANY).check(label, result, unit=unit, per_unit=per_unit)
    return key, result


def class_fields(name: str, table: Any, source: str) -> dict[str, Any]:
    """Return the fields of the class *name* that one TOML table describes.

    Raises:
        UserError: A name or value is not allowed.
    """
    if not can_be_class(name):
        raise UserError(f"{source}: a class is named by {CLASS_NAMES}, not {shown(name)}.")
    where = f"{source}: [classes.{name}]"
    allowed = ", ".join(TABLE_FIELDS)
    if not isinstance(table, Mapping):
        raise UserError(f"{where} must be a table of {allowed}.")
    unknown = sorted(set(table) - set(TABLE_FIELDS))
    if unknown:
        raise UserError(f"{where}: unknown key {unknown[0]!r}; allowed are {allowed}.")
    fields = {
        key: _SPECIAL[key](f"{where} {key}", value)
        if key in _SPECIAL
        else span_of(f"{where} {key}", value, key)
        for key, value in table.items()
    }
    check_pause(f"{where} pause_s", fields.get("pause_s"), fields.get("tbt_s"))
    return fields


def stamp_fields(stamp: Any, name: str, known: Collection[str]) -> dict[str, Any]:
    """Return the fields in a stamp of ours, *name*; in doubt it is checked, not believed.

    Raises:
        UserError: It is no such stamp.
    """
    if not isinstance(stamp, Mapping) or not set(stamp) <= set(known):
        raise UserError(f"{name} is set by the server itself; leave it out.")
    class_name = stamp.get("class_name", "none")
    if not can_be_class(class_name):
        raise UserError(f"{name} class_name must be {CLASS_NAMES}, not {shown(class_name)}.")
    fields: dict[str, Any] = {
        key: span_of(f"{name} {key}", stamp[key], key)
        for key in SPANS
        if stamp.get(key) is not None
    }
    check_pause(f"{name} pause_s", fields.get("pause_s"), fields.get("tbt_s"))
    weight = weight_of(f"{name} weight", stamp.get("weight", 1.0))
    return {**fields, **aims_in(stamp, name), "weight": weight, "class_name": class_name}


def weight_of(name: str, value: Any) -> float:
    """Return *value*, what a request counts against others.

    Raises:
        UserError: It is not a number above 0.
    """
    return number(name, value, unit="units", maximum=MAX_WEIGHT)


def target_of(name: str, value: Any) -> float:
    """Return *value*, the share of promises an operator wants kept.

    Raises:
        UserError: It is not between 0 and 1.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.0 < value < 1.0:
        raise UserError(f"{name} must be a share between 0 and 1, as in 0.95, not {shown(value)}.")
    return float(value)


def aims_in(stamp: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return who pays and what is aimed at in a stamp of ours, *name*.

    Raises:
        UserError: It is no such stamp.
    """
    aims: dict[str, Any] = {
        key: target_of(f"{name} {key}", stamp[key])
        for key in ("target", "tenant_target")
        if stamp.get(key) is not None
    }
    if tenant := stamp.get("tenant"):
        if not can_be_class(tenant):
            raise UserError(f"{name} tenant must be {CLASS_NAMES}, not {shown(tenant)}.")
        aims["tenant"] = tenant
    if (share := stamp.get("share", 1.0)) != 1.0:
        is_last = share == 0 and not isinstance(share, bool)
        aims["share"] = 0.0 if is_last else share_of(f"{name} share", share)
    return aims


def share_of(name: str, value: Any) -> float:
    """Return *value*, what a tenant may use relative to the others.

    Raises:
        UserError: It is not a number above 0.
    """
    return number(name, value, unit="shares", maximum=MAX_WEIGHT)


_SPECIAL = {"weight": weight_of, "target": target_of}
"""Fields of a class that are no spans."""
