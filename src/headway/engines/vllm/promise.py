"""From one HTTP request to its promise: body over header over API key over model over default.

Field by field: a body that names a class and a header that names a first token's time make a
promise of both. The class is the body's, else the header's, else the API key's, else the
model's, else the default; the spans given in body or header replace those of the class.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headway.engines.vllm.headers import Headers, api_key_of, asked_in
from headway.errors import UserError
from headway.slo import Slo, SloBook
from headway.slo_rules import shown

BODY_FIELDS = {
    "class": "slo_class",
    "ttft_ms": "slo_ttft_ms",
    "tbt_ms": "slo_tbt_ms",
    "jct_ms": "slo_jct_ms",
    "weight": "slo_weight",
}
"""What the body's ``slo`` object may hold, and the request fields it stands for."""


def promise_of(book: SloBook, headers: Headers, body: Any) -> Slo:
    """Return what a request was promised.

    Args:
        headers: As ASGI has them.
        body: The parsed JSON; ``None`` when there is nothing in it for us.

    Raises:
        UserError: Something asked for is a mistake or not allowed.
    """
    model = None
    asked: dict[str, Any] = {}
    labels: dict[str, str] = {}
    by_header, header_labels = asked_in(headers)
    if isinstance(body, Mapping):
        asked, labels = asked_in_body(body)
        model = body.get("model")
    for field, value in by_header.items():
        if field not in asked:
            asked[field], labels[field] = value, header_labels[field]
    return book.promise(
        asked,
        api_key=api_key_of(headers),
        model=model if isinstance(model, str) else None,
        labels=labels,
    )


def asked_in_body(body: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the request fields in ``slo`` and ``vllm_xargs``, and how each was written.

    Raises:
        UserError: A field is where it has no effect, unknown, or said twice differently.
    """
    for name in body:
        if name.startswith("slo_"):
            raise UserError(
                f"Put {shown(name)} into 'vllm_xargs', or say it in 'slo'; where it is,"
                " it has no effect."
            )
    xargs = body.get("vllm_xargs")
    asked = {}
    if isinstance(xargs, Mapping):
        asked = {name: value for name, value in xargs.items() if name.startswith("slo_")}
    labels: dict[str, str] = {}
    plain = body.get("slo")
    if plain is None:
        return asked, labels
    if not isinstance(plain, Mapping):
        raise UserError(f"slo must be an object of {', '.join(BODY_FIELDS)}, not {shown(plain)}.")
    for name, value in plain.items():
        if name not in BODY_FIELDS:
            raise UserError(
                f"{shown(name)} is no field of slo; allowed are {', '.join(BODY_FIELDS)}."
            )
        field = BODY_FIELDS[name]
        if value is None:
            continue  # How many a client library writes what was not set.
        if not isinstance(value, str | int | float):
            raise UserError(f"slo.{name} must be a number or a text, not {shown(value)}.")
        if field in asked and asked[field] != value:
            raise UserError(f"slo.{name} and vllm_xargs.{field} differ; say it once.")
        asked[field], labels[field] = value, f"slo.{name}"
    return asked, labels
