"""The promise in a request's HTTP headers, in our words and in those of other stacks."""

from __future__ import annotations

from collections.abc import Iterable

from headway.errors import UserError
from headway.slo import EXPLAIN
from headway.slo_rules import CLASS_NAMES, PROMISES, can_be_class, number, shown

OWN = {
    "x-slo-class": "slo_class",
    **{f"x-slo-{name}-ms": f"slo_{name}_ms" for name in PROMISES},
    "x-slo-weight": "slo_weight",
}
"""Our headers and the request fields they stand for."""

OTHERS = {
    # llm-d's router. Its earlier names, which load generators still send, are ours too.
    "x-llm-d-slo-ttft-ms": "slo_ttft_ms",
    "x-llm-d-slo-tpot-ms": "slo_tpot_ms",
    # SGLang's model gateway.
    "x-sgl-ttft-slo-ms": "slo_ttft_ms",
}
"""Headers of other stacks with the same meaning and unit."""

TOKENS_PER_S = "x-sgl-tps-slo"
"""SGLang's tokens a second; their inverse is a mean time per output token."""

EXPLAIN_HEADER = "x-slo-explain"
"""Asks for the lateness in the answer: ``1`` or ``true``; ``0`` or ``false`` is not to ask."""

MIN_TOKENS_PER_S, MAX_TOKENS_PER_S = 1e-5, 1e6

_FIELDS = {
    name.encode(): (name, field)
    for name, field in {**OWN, **OTHERS, EXPLAIN_HEADER: EXPLAIN}.items()
}
_OWN_PREFIX = b"x-slo-"

Headers = Iterable[tuple[bytes, bytes]]
"""As ASGI has them: names in lower case."""


def asked_in(headers: Headers) -> list[tuple[str, str | float, str]]:
    """Return what *headers* ask for: request fields, their values, and how to name each.

    Where several headers stand for one field, ours come first, then those of :data:`OTHERS` in
    its order, then :data:`TOKENS_PER_S`.

    Raises:
        UserError: A header beginning with ``X-Slo-`` is none of ours, one is there twice with
            different values, or tokens a second are no number. Other values are not judged.
    """
    found: dict[str, str] = {}
    for raw_name, raw_value in headers:
        if raw_name in _FIELDS or raw_name == TOKENS_PER_S.encode():
            name, value = raw_name.decode(), raw_value.decode("latin-1").strip()
            if found.setdefault(name, value) != value:
                raise UserError(f"{name} is there twice with different values; send it once.")
        elif raw_name.startswith(_OWN_PREFIX):
            raise UserError(
                f"{shown(raw_name.decode('latin-1'))} is not an SLO header; allowed are"
                f" {', '.join((*OWN, EXPLAIN_HEADER, *OTHERS, TOKENS_PER_S))}."
            )
    asked: list[tuple[str, str | float, str]] = [
        (field, found[name], name) for name, field in _FIELDS.values() if name in found
    ]
    if TOKENS_PER_S in found:
        label = f"the time per token that {TOKENS_PER_S} asks for"
        asked.append(("slo_tpot_ms", _per_token_ms(found[TOKENS_PER_S]), label))
    return asked


def api_key_of(headers: Headers) -> bytes | None:
    """Return what the client identifies itself by: a bearer token, else ``x-api-key``.

    Whether it is a key the server accepts is vLLM's to judge, before we read anything.
    """
    api_key = None
    for name, value in headers:
        if name == b"authorization":
            scheme, _, token = value.partition(b" ")
            if scheme.lower() == b"bearer" and token:
                return token
        elif name == b"x-api-key" and value:
            api_key = value
    return api_key


def tenant_in(headers: Headers, name: str) -> str:
    """Return the tenant that the header *name* says pays; empty where it is not there.

    Raises:
        UserError: It is no name of a tenant, or there twice with different values.
    """
    raw_name, tenant = name.encode(), ""
    for other, raw_value in headers:
        if other != raw_name:
            continue
        value = _text_of(raw_value).strip()
        if not can_be_class(value):
            raise UserError(f"{name} must be {CLASS_NAMES}, not {shown(value)}.")
        if tenant and tenant != value:
            raise UserError(f"{name} is there twice with different values; send it once.")
        tenant = value
    return tenant


def _text_of(raw_value: bytes) -> str:
    """Return a header's text: UTF-8, as an SLO file is, or else ISO 8859-1."""
    try:
        return raw_value.decode()
    except UnicodeDecodeError:
        return raw_value.decode("latin-1")


def _per_token_ms(value: str) -> float:
    per_s = number(TOKENS_PER_S, value, unit="tokens a second", maximum=MAX_TOKENS_PER_S)
    return 1000.0 / max(per_s, MIN_TOKENS_PER_S)
