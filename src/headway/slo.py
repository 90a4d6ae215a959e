"""What a request was promised, and where promises come from.

A promise arrives with the request (``slo_ttft_ms`` and its siblings), or through a class of
an SLO file: the one the request names, else its API key's, its model's, or the default. A
field of the request overrides the same field of its class.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from headway.errors import UserError
from headway.slo_document import class_tables, default_in, document_in
from headway.slo_fields import asked_field, check_pause, class_fields, stamp_fields, written
from headway.slo_rules import (
    SPANS,
    UNJUDGED,
    Grant,
    Limits,
    field_of,
    grant_of,
    is_ours,
    keys_of,
    models_of,
    shown,
    truth,
)
from headway.slo_tenants import TenantBook

LEAST_PAUSE_S = 1.0
"""The longest pause of a stream that is promised a gap and no pause is not shorter: whoever reads
along notices a second of silence, and hardly anything below."""

PAUSE_GAPS = 5.0
"""Nor is it shorter than so many promised gaps: where gaps are long, a second is no pause."""

REQUEST_FIELDS = (*map(field_of, SPANS), "slo_class", "slo_weight")
"""Names a request may carry in ``vllm_xargs``; any other ``slo_*`` name is a mistake."""

EXPLAIN = "slo_explain"
"""The name in ``vllm_xargs`` that asks for the lateness in the answer; the HTTP edge reads it."""

STAMP = "slo_promised"
"""Where the HTTP edge puts a promise it has worked out, for the scheduler to take as it is:
the two read the SLO file at different times, and only the edge knows the API key. The edge
drops one that it did not write. Without the edge a client can write one where vLLM takes
sampling parameters whole (``/inference/v1/generate``), so what is in it is checked."""

EXPLAIN_IN_STAMP, START_IN_STAMP, LAST_TRY_IN_STAMP = "explain", "request_start", "last_try"
"""Keys of the stamp beside the promise: the client asked how late it was; when its request came to
a proxy, and how likely this is its last try (:mod:`headway.engines.vllm.proxy_headers`)."""


@dataclass(frozen=True, slots=True)
class Slo:
    """One request's promise. ``None`` means not promised.

    Attributes:
        ttft_s: Seconds from arrival to the first token.
        tbt_s: Seconds between two tokens; met when 99 % of the gaps keep it and none is longer
            than the longest pause allowed.
        jct_s: Seconds from arrival to the last token.
        weight: How much this request counts against others; 1 by default.
        class_name: The class it is reported under.
        tpot_s: Seconds per token after the first, on average (what vLLM's benchmark, guidellm and
            llm-d call TPOT).
        pause_s: Seconds of the longest pause allowed between two tokens; ``inf`` allows any.
            By default 1 s or five promised gaps, whichever is longer, if a gap is promised.
        target: The share of its class's promises that the operator wants kept, 0 to 1.
        tenant: Who pays; empty where nobody in particular does.
        share: What the tenant may use of the server, relative to the others. Of a request without
            a promise 0 says that it is served with what the others leave.
        tenant_target: The share of its tenant's promises that the operator wants kept.
    """

    ttft_s: float | None = None
    tbt_s: float | None = None
    jct_s: float | None = None
    weight: float = 1.0
    class_name: str = "none"
    tpot_s: float | None = None
    pause_s: float | None = None
    target: float | None = None
    tenant: str = ""
    share: float = 1.0
    tenant_target: float | None = None

    @property
    def is_promise(self) -> bool:
        """Whether anything at all was promised."""
        spans_s = (self.ttft_s, self.tbt_s, self.tpot_s, self.jct_s)
        return any(s is not None for s in spans_s) or self.longest_pause_s < math.inf

    @property
    def longest_pause_s(self) -> float:
        """The longest gap a kept promise may have.

        Of a gap alone a second or five of them, whichever is longer; ``inf`` without either.
        """
        if self.pause_s is not None or self.tbt_s is None:
            return math.inf if self.pause_s is None else self.pause_s
        return max(LEAST_PAUSE_S, PAUSE_GAPS * self.tbt_s)

    @property
    def least_late_s(self) -> float:
        """A longer gap is late: than the promised one, else than the longest pause."""
        return self.longest_pause_s if self.tbt_s is None else self.tbt_s

    def stamp(self) -> dict[str, Any]:
        """Return the promise as the value of :data:`STAMP`, plain enough for any wire.

        Who pays and what is aimed at is there only where it is not what it is without a word.
        """
        stamp = {**asdict(self), "pause_s": written(self.pause_s)}
        return {k: v for k, v in stamp.items() if k not in AIMS or v != AIMS[k]}

    @classmethod
    def stamped(cls, stamp: Any) -> Slo:
        """Return the promise that :meth:`stamp` wrote; a client may have written it instead.

        Raises:
            UserError: It is not one.
        """
        beside = {EXPLAIN_IN_STAMP, START_IN_STAMP, LAST_TRY_IN_STAMP}
        return cls(**stamp_fields(stamp, STAMP, beside | {f.name for f in fields(cls)}))


AIMS = {"target": None, "tenant": "", "share": 1.0, "tenant_target": None}
"""Who pays and what is aimed at, where nobody says a word."""

NO_PROMISE = Slo()


@dataclass(frozen=True, slots=True)
class SloBook:
    """The classes an operator named, and the one that applies when a request names none.

    Attributes:
        classes: By name.
        default: ``None`` when nothing is promised to requests that ask for nothing.
        limits: What clients may ask for themselves.
        keys: By the SHA-256 of an API key.
        models: By a model's name.
        tenants: Who pays, and what they may use.
    """

    classes: Mapping[str, Slo]
    default: str | None = None
    limits: Limits = field(default_factory=Limits)
    keys: Mapping[str, Grant] = field(default_factory=dict)
    models: Mapping[str, Grant] = field(default_factory=dict)
    tenants: TenantBook = field(default_factory=TenantBook)

    @classmethod
    def builtin(cls) -> SloBook:
        """Return the book used for workloads without a file: one class, ``chat``."""
        return cls({"chat": Slo(ttft_s=1.0, tbt_s=0.1, class_name="chat")}, "chat")

    @classmethod
    def empty(cls) -> SloBook:
        """Return the book of a server without a file: only explicit promises count."""
        return cls({}, None)

    @classmethod
    def load(cls, path: str | Path) -> SloBook:
        """Read an SLO file (TOML, seconds).

        Raises:
            UserError: The file is missing, is not TOML, or holds a bad value.
        """
        return cls.parse(document_in(path), source=str(path))

    @classmethod
    def parse(cls, document: Mapping[str, Any], source: str = "SLO file") -> SloBook:
        """Build a book from a parsed document; see :meth:`load` for errors."""
        classes = {
            name: Slo(class_name=name, **class_fields(name, table, source))
            for name, table in class_tables(document, source).items()
        }
        return cls(
            classes,
            default_in(document, classes, source),
            Limits.parse(document.get("limits", {}), classes, source),
            keys_of(document.get("keys", {}), classes, source),
            models_of(document.get("models", {}), classes, source),
            TenantBook.parse(document, source),
        )

    def resolve(self, extra_args: Mapping[str, Any] | None) -> Slo:
        """Return the promise of a request as an engine sees it (``vllm_xargs``).

        An engine sees no API keys: where the file has some, only what the HTTP edge has judged
        is believed. Other requests hold no promise then, nor the file's default class. Nobody in
        particular pays for a request that the edge has not judged.

        Raises:
            UserError: An ``slo_*`` name or value is not allowed.
        """
        asked = extra_args or {}
        stamp = asked.get(STAMP)
        if stamp is not None:
            return Slo.stamped(stamp)
        if self.keys:
            if any(is_ours(name) for name in asked):
                raise UserError(UNJUDGED)
            return self.unjudged
        if EXPLAIN in asked and truth(EXPLAIN, asked[EXPLAIN]):
            raise UserError(
                f"{EXPLAIN} is answered by Headway's middleware alone, which did not read this"
                " request; leave it out."
            )
        return self.promise({k: v for k, v in asked.items() if k != EXPLAIN})

    @property
    def unjudged(self) -> Slo:
        """What a request holds that nobody has judged: no promise, at nobody's cost."""
        return self.charged(NO_PROMISE, "")

    def promise(
        self,
        asked: Mapping[str, Any] | None,
        *,
        api_key: bytes | None = None,
        model: str | None = None,
        labels: Mapping[str, str] | None = None,
        tenant: str = "",
        is_stranger: bool = False,
        is_whole: bool = True,
    ) -> Slo:
        """Return the promise of a request that asks for *asked*.

        Args:
            asked: :data:`REQUEST_FIELDS` and their values; names that are not ours
                (:func:`is_ours`) do not count.
            api_key: What the client identified itself by.
            labels: How the client wrote a field, where that was not its name here.
            tenant: Who pays.
            is_stranger: Whether the server has keys, and the client comes in without. It is told
                no class, nor may it name one if the file has keys: it may hold one of them.
            is_whole: Whether this is all that is asked for. If not, no field is judged by another.

        Raises:
            UserError: An ``slo_*`` name or value is not allowed, or the pause is shorter than
                the gap.
        """
        given = {k: v for k, v in (asked or {}).items() if is_ours(k)}
        for name in given:
            if name not in REQUEST_FIELDS:
                allowed = ", ".join((*REQUEST_FIELDS, EXPLAIN))
                raise UserError(f"{shown(name)} is not an SLO field; allowed are {allowed}.")
        labels = labels or {}
        label = labels.get("slo_class", "slo_class")
        slo = self._base(given.pop("slo_class", None), label, api_key, model, is_stranger)
        if not given:
            return self.charged(slo, tenant)
        if not slo.is_promise and slo.class_name == "none":
            slo = replace(slo, class_name="custom")
        changes = dict(asked_field(n, labels.get(n, n), v, self.limits) for n, v in given.items())
        slo = replace(slo, **changes)  # type: ignore[arg-type]
        if is_whole:
            whose = f"the longest pause of class {shown(slo.class_name)}"
            label = labels.get("slo_pause_ms", "slo_pause_ms") if "pause_s" in changes else whose
            check_pause(label, slo.pause_s, slo.tbt_s)
        return self.charged(slo, tenant)

    def charged(self, slo: Slo, tenant: str) -> Slo:
        """Return *slo* at the cost of *tenant*."""
        if not tenant and not self.tenants.is_last:
            return slo
        return replace(slo, **self.tenants.aims(tenant, is_promise=slo.is_promise))

    def _base(
        self, named: Any, label: str, api_key: bytes | None, model: str | None, is_stranger: bool
    ) -> Slo:
        """Return the class a request is in, before its own fields."""
        grant = grant_of(self.keys, api_key)
        by_model = self.models.get(model) if model is not None else None
        base = next((g.class_name for g in (grant, by_model) if g and g.class_name), self.default)
        if named is None:
            return self.classes[base] if base is not None else NO_PROMISE
        may_name = grant.classes if grant is not None else None
        if may_name is None:
            may_name = frozenset() if is_stranger and self.keys else self.limits.classes
        allowed = set(self.classes if may_name is None else may_name)
        allowed.update(() if base is None else (base,))
        if not isinstance(named, str) or named not in allowed:
            what = f"{label} {shown(named)}"
            if is_stranger:
                raise UserError(f"{what} is not known, or not allowed without an API key.")
            names = ", ".join(sorted(allowed)) or "none"
            is_file = self.classes or self.tenants != TenantBook()
            why = "" if is_file else ", since no SLO file was given"
            raise UserError(f"{what} is not known or not allowed; the classes are: {names}{why}.")
        return self.classes[named]
