"""The workload format: one request a line, JSON, seconds and tokens."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from headway.errors import UserError
from headway.slo import Slo, SloBook
from headway.slo_fields import ENDLESS, check_pause, written
from headway.slo_rules import CLASS_NAMES, SPANS, can_be_class, field_of
from headway.units import blocks_for

MAX_TOKENS = 100_000_000
"""No request is longer than this; a larger count is a column mix-up."""


MOONCAKE_HASH_TOKENS = 512
"""Tokens that one entry of Mooncake's ``hash_ids`` stands for."""

HashId = int | str


@dataclass(frozen=True, slots=True)
class WorkloadRequest:
    """One request of a workload: when it comes, how long it is, what it is promised.

    Attributes:
        id: Name, unique in its workload.
        arrived_at_s: Seconds since the start of the workload.
        num_prompt_tokens: Prompt length; approximate when ``prompt`` is given.
        num_output_tokens: Recorded output length; for a live run with ``prompt`` an upper limit.
        slo_class: Name of a class in the SLO file, or ``None`` for the file's default.
        ttft_slo_s: Promise of this request, which overrides its class's; likewise the next four, of
            which ``pause_slo_s`` may be ``inf``.
        weight: How much it counts; ``None`` leaves it to the class.
        prefix_id: Requests with the same id share their first ``prefix_tokens`` tokens; with 0
            they share the whole length of the shorter prompt.
        hash_ids: The beginning of the prompt, block by block, as in Mooncake's traces. An id
            means the same tokens only together with all ids before it: two prompts share the
            blocks up to the first id that differs, and nothing after. Tokens beyond the last id
            are the request's own. Not together with ``prefix_id``.
        hash_tokens: Tokens that one of ``hash_ids`` stands for; the prompt may cut the last short.
        prompt: Text to send in a live run. Without it a text of the right length is generated
            and the output is forced to ``num_output_tokens``.
        max_output_tokens: Bound on the output in a live run; ``num_output_tokens`` when absent.
        tenant: The party that pays; the SLO file has its share and target. ``None`` means none.
    """

    id: str
    arrived_at_s: float
    num_prompt_tokens: int
    num_output_tokens: int
    slo_class: str | None = None
    ttft_slo_s: float | None = None
    tbt_slo_s: float | None = None
    jct_slo_s: float | None = None
    tpot_slo_s: float | None = None
    pause_slo_s: float | None = None
    weight: float | None = None
    prefix_id: str | None = None
    prefix_tokens: int = 0
    hash_ids: tuple[HashId, ...] = ()
    hash_tokens: int = MOONCAKE_HASH_TOKENS
    prompt: str | None = None
    max_output_tokens: int | None = None
    tenant: str | None = None


_NAMES = tuple(f.name for f in fields(WorkloadRequest))
_REQUIRED = ("arrived_at_s", "num_prompt_tokens", "num_output_tokens")
SLO_FIELDS = {name.removesuffix("_s") + "_slo_s": name for name in SPANS}
"""Columns of a workload, and the fields of a promise they stand for."""


def slo_of(request: WorkloadRequest, book: SloBook) -> Slo:
    """Return the promise of *request*: its own fields over those of its class, and who pays.

    Raises:
        UserError: The class is not in *book*, or the longest pause is shorter than the gap.
    """
    named = {"slo_class": request.slo_class} if request.slo_class is not None else None
    base = book.promise(named)
    own = {field: getattr(request, column) for column, field in SLO_FIELDS.items()}
    own["weight"] = request.weight
    given = {name: value for name, value in own.items() if value is not None}
    if given and base.class_name == "none":
        base = replace(base, class_name="custom")
    slo = replace(base, **given)
    check_pause(f"the longest pause of the request {request.id!r:.60}", slo.pause_s, slo.tbt_s)
    return book.charged(slo, request.tenant or "")


def request_of(row: Mapping[str, Any], where: str, index: int = 0) -> WorkloadRequest:
    """Return the request that one parsed row describes.

    Args:
        row: Column name to value.
        where: File and line, for the error sentence.
        index: Position in the file; names a request that has no ``id``.

    Raises:
        UserError: A column is missing, unknown, or holds a bad value.
    """
    for name in _REQUIRED:
        if row.get(name) is None:
            raise UserError(f"{where}: the column {name!r} is missing.")
    unknown = sorted(set(row) - set(_NAMES))
    if unknown:
        raise UserError(
            f"{where}: unknown column {unknown[0]!r:.60}; allowed are {', '.join(_NAMES)}."
        )
    values: dict[str, Any] = {k: v for k, v in row.items() if v is not None}
    values["id"] = str(values.get("id", f"r{index}"))
    values["arrived_at_s"] = number(where, "arrived_at_s", row["arrived_at_s"], minimum=0.0)
    for name in ("num_prompt_tokens", "num_output_tokens", "max_output_tokens"):
        if name in values:
            values[name] = count(where, name, values[name], minimum=1)
    for name in (*SLO_FIELDS, "weight"):
        if name in values:
            is_endless = name == "pause_slo_s" and values[name] in (ENDLESS, math.inf)
            value = 1.0 if is_endless else values[name]
            value = number(where, name, value, minimum=0.0, above=True)
            values[name] = math.inf if is_endless else value
    for name in ("slo_class", "prefix_id", "prompt"):
        if name in values and not isinstance(values[name], str):
            raise UserError(f"{where}: {name} must be text, not {values[name]!r:.60}.")
    if "tenant" in values:
        check_tenant(where, "tenant", values["tenant"])
    values["prefix_tokens"] = count(where, "prefix_tokens", row.get("prefix_tokens") or 0)
    if values["prefix_tokens"] > values["num_prompt_tokens"]:
        raise UserError(f"{where}: prefix_tokens must not exceed num_prompt_tokens.")
    values["hash_ids"] = hashes(where, row.get("hash_ids") or ())
    values["hash_tokens"] = count(
        where, "hash_tokens", values.get("hash_tokens", MOONCAKE_HASH_TOKENS), minimum=1
    )
    if values["hash_ids"] and ("prefix_id" in values or values["prefix_tokens"]):
        raise UserError(f"{where}: give either hash_ids or prefix_id with prefix_tokens, not both.")
    return fitting(where, WorkloadRequest(**values))


def check_tenant(where: str, name: str, value: Any) -> None:
    """Raise a sentence when *value* of the column *name* is no name of a tenant.

    Raises:
        UserError: It is none.
    """
    if not can_be_class(value):
        raise UserError(f"{where}: {name} must be text of {CLASS_NAMES}, not {value!r:.60}.")


def hashes(where: str, value: Any) -> tuple[HashId, ...]:
    """Return *value* as a chain of block ids."""
    if not isinstance(value, list | tuple) or any(
        isinstance(one, bool) or not isinstance(one, HashId) for one in value
    ):
        raise UserError(f"{where}: hash_ids must be a list of numbers or texts, not {value!s:.60}.")
    return tuple(value)


def fitting(where: str, request: WorkloadRequest) -> WorkloadRequest:
    """Return *request*, once its prompt is known to be long enough for its chain.

    Without a chain ``hash_tokens`` says nothing and becomes the default, as it is not written.

    Raises:
        UserError: The chain has an id that no token of the prompt is left for.
    """
    if not request.hash_ids:
        return replace(request, hash_tokens=MOONCAKE_HASH_TOKENS)
    needed = blocks_for(request.num_prompt_tokens, request.hash_tokens)
    if len(request.hash_ids) > needed:
        raise UserError(
            f"{where}: {len(request.hash_ids)} hash_ids of {request.hash_tokens} tokens each are"
            f" too many for a prompt of {request.num_prompt_tokens} tokens, which has {needed}."
        )
    return request


def number(where: str, name: str, value: Any, *, minimum: float, above: bool = False) -> float:
    """Return *value* as a finite float of at least *minimum* (or *above* it)."""
    try:
        result = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        result = math.nan
    if not math.isfinite(result) or result < minimum or (above and result == minimum):
        bound = f"greater than {minimum:g}" if above else f"at least {minimum:g}"
        raise UserError(f"{where}: {name} must be a number {bound}, not {value!r:.60}.")
    return result


def count(where: str, name: str, value: Any, *, minimum: int = 0) -> int:
    """Return *value* as a whole number of tokens of at least *minimum*."""
    result = number(where, name, value, minimum=float(minimum))
    if result != int(result) or result > MAX_TOKENS:
        raise UserError(
            f"{where}: {name} must be a whole number of at most {MAX_TOKENS} tokens,"
            f" not {value!r:.60}."
        )
    return int(result)


def checked(requests: Iterable[tuple[str, WorkloadRequest]], source: str) -> list[WorkloadRequest]:
    """Return the requests of *source*, once their order and names are known to be sane.

    Args:
        requests: Pairs of place (for the error sentence) and request.

    Raises:
        UserError: No request at all, time going backwards, or a name used twice.
    """
    result: list[WorkloadRequest] = []
    seen: set[str] = set()
    for where, request in requests:
        if result and request.arrived_at_s < result[-1].arrived_at_s:
            raise UserError(
                f"{where}: arrived_at_s goes back from {result[-1].arrived_at_s:g} to"
                f" {request.arrived_at_s:g}; requests must be in order of arrival."
            )
        if request.id in seen:
            raise UserError(f"{where}: the id {request.id!r:.60} is used twice.")
        seen.add(request.id)
        result.append(request)
    if not result:
        raise UserError(f"{source} holds no requests.")
    return result


def fields_of(slo: Slo) -> dict[str, Any]:
    """Return the fields by which a client tells a server what it was promised, its class aside."""
    spans_s = {field_of(name): getattr(slo, name) for name in SPANS}
    fields = {name: written(s * 1000) for name, s in spans_s.items() if s is not None}
    return fields if slo.weight == 1.0 else {**fields, "slo_weight": slo.weight}


def write_jsonl(path: str | Path, requests: Sequence[WorkloadRequest]) -> None:
    """Write a workload; fields that say nothing are left out.

    Raises:
        UserError: The file cannot be written.
    """
    try:
        with Path(path).open("w", encoding="utf-8") as out:
            for request in requests:
                row = {k: v for k, v in asdict(request).items() if v is not None}
                if "pause_slo_s" in row:
                    row["pause_slo_s"] = written(row["pause_slo_s"])
                if not request.hash_ids:
                    del row["hash_ids"], row["hash_tokens"]
                out.write(json.dumps(row, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror}.") from None
