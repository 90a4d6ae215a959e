"""From one HTTP request to its promise: body over header over API key over model over default.

Field by field: a body that names a class and a header that names a first token's time make a
promise of both. The class is the body's, else the header's, else the API key's, else the
model's, else the default; the spans given in body or header replace those of the class.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from headway.engines.vllm.headers import Headers, api_key_of, asked_in, tenant_in
from headway.engines.vllm.request_body import HOLDERS
from headway.errors import UserError
from headway.slo import EXPLAIN, Slo, SloBook
from headway.slo_rules import PROMISES, grant_of, is_ours, shown, truth

BODY_FIELDS = {
    "class": "slo_class",
    **{f"{name}_ms": f"slo_{name}_ms" for name in PROMISES},
    "weight": "slo_weight",
    "explain": EXPLAIN,
}
"""What the body's ``slo`` object may hold, and the request fields it stands for."""

WHOLE = ("sampling_params", "extra_args")
"""Where vLLM takes sampling parameters whole."""

LIKE_HOLDERS = (*HOLDERS, "extra_body")
"""Names, in lower case, under which a client may mean to ask us something; the last is what the
OpenAI SDK calls its own argument."""


@dataclass(frozen=True, slots=True)
class RequestedPromise:
    """What one request asks for.

    Attributes:
        slo: What it was promised.
        explain: Whether its answer is to say how late it was.
    """

    slo: Slo
    explain: bool = False


def asked_of(
    book: SloBook,
    headers: Headers,
    body: Any,
    *,
    is_stranger: bool = False,
    is_key_accepted: bool = False,
) -> RequestedPromise:
    """Return what a request asks for, and is promised.

    A header that the body or another header overrides is judged too: a mistake is told,
    whether it would have counted or not.

    Args:
        headers: As ASGI has them.
        body: The parsed JSON; ``None`` when there is nothing in it for us.
        is_stranger: Whether the client shows no key of the server, where vLLM asks for none.
        is_key_accepted: Whether the server has API keys, and accepts the client's.

    Raises:
        UserError: Something asked for is a mistake or not allowed.
    """
    asked: dict[str, Any] = {}
    labels: dict[str, str] = {}
    model = None
    if isinstance(body, Mapping):
        asked, labels = asked_in_body(body)
        model = body.get("model")
    client: dict[str, Any] = {
        "api_key": api_key_of(headers),
        "tenant": payer_of(book, headers, is_stranger=is_stranger, is_key_accepted=is_key_accepted),
        "model": model if isinstance(model, str) else None,
        "is_stranger": is_stranger,
    }
    for field, value, label in asked_in(headers):
        if field not in asked:
            asked[field], labels[field] = value, label
        elif field == EXPLAIN:
            truth(label, value)
        else:
            book.promise({field: value}, labels={field: label}, is_whole=False, **client)
    explain = EXPLAIN in asked and truth(labels.get(EXPLAIN, EXPLAIN), asked.pop(EXPLAIN))
    return RequestedPromise(book.promise(asked, labels=labels, **client), explain)


def payer_of(book: SloBook, headers: Headers, *, is_stranger: bool, is_key_accepted: bool) -> str:
    """Return the tenant that pays: its API key's, else a header's, else nobody in particular.

    A stranger's header does not count: where the server has keys, their bearers speak.

    Args:
        is_stranger: As :func:`asked_of` has it, and the next one.

    Raises:
        UserError: The header that counts is no name of a tenant.
    """
    api_key, tenants = api_key_of(headers), book.tenants
    is_checked = is_key_accepted or grant_of(book.keys, api_key) is not None
    named = tenants.tenant_of_key(api_key, is_checked=is_checked)
    if named is not None:
        return named
    if tenants.header is None or (is_stranger and not tenants.is_gateway(api_key)):
        return ""
    return tenant_in(headers, tenants.header)


def asked_in_body(body: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the request fields in ``slo`` and ``vllm_xargs``, and how each was written.

    Where vLLM takes sampling parameters whole, their ``extra_args`` are its ``vllm_xargs``.

    Raises:
        UserError: A field is where it has no effect, unknown, or said twice differently.
    """
    _check_places(body)
    asked: dict[str, Any] = {}
    for xargs in _extra_arguments(body):
        for name, value in xargs.items():
            if not is_ours(name):
                continue
            if name in asked:
                raise UserError(f"{shown(name)} is there twice; say it once.")
            asked[name] = value
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


def _check_places(body: Mapping[str, Any]) -> None:
    """Raise a sentence for a field of ours where neither vLLM nor we look for one."""
    for name, value in body.items():
        if is_ours(name) and name != "slo":
            raise _misplaced(name)
        if not _is_like_a_holder(name, value):
            continue
        for inner, deeper in value.items():
            if is_ours(inner) and name != "vllm_xargs":
                raise _misplaced(f"{name}.{inner}")
            if _is_like_a_holder(inner, deeper) and (name, inner) != WHOLE:
                for innermost in filter(is_ours, deeper):
                    raise _misplaced(f"{name}.{inner}.{innermost}")


def _is_like_a_holder(name: str, value: Any) -> bool:
    return name.lower() in LIKE_HOLDERS and isinstance(value, Mapping)


def _misplaced(name: str) -> UserError:
    return UserError(
        f"Put {shown(name)} into 'vllm_xargs', or say it in 'slo'; where it is, it has no effect."
    )


def _extra_arguments(body: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    params = body.get("sampling_params")
    for xargs in (
        params.get("extra_args") if isinstance(params, Mapping) else None,
        body.get("vllm_xargs"),
    ):
        if isinstance(xargs, Mapping):
            yield xargs
