"""Who pays for a request, and what that tenant may use: the tables of an SLO file on tenants.

The nouns behind ``[tenants]``, ``tenant_header``, ``gateway_keys`` and ``unpromised``; how the
file is read as a whole is in :mod:`headway.slo`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from headway.errors import UserError
from headway.slo_digests import listed_digest, sent_digests
from headway.slo_fields import share_of, target_of
from headway.slo_rules import CLASS_NAMES, can_be_class, check_keys, shown, tables_in

TENANT_TABLES = ("tenants", "tenant_header", "gateway_keys", "unpromised")
"""What an SLO file may say on tenants at its top."""

TENANT_FIELDS = ("share", "target", "keys")

UNPROMISED = ("fair", "last")
"""How requests without a promise are served: in turn, as first come, first served would, or with
what the others leave."""

KEY_TENANT_DIGITS = 12
"""Hexadecimal digits of a key's digest that name a tenant nobody named: 48 bits, so that two of a
million keys share a name with a chance below 1 in 500, and nobody can tell the key from them."""

SECRET_HEADERS = ("authorization", "proxy-authorization", "x-api-key", "cookie")
"""Never a tenant's name: names are in metrics, recordings and logs."""

OWN_PREFIX = "x-slo-"
"""A header that begins so is answered with 400 unless it is one of ours."""

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")


@dataclass(frozen=True, slots=True)
class TenantTerms:
    """What the operator says of one tenant.

    Attributes:
        share: What it may use of the server, relative to the others; above 0.
        target: The share of its promises that the operator wants kept; ``None`` without a word.
    """

    share: float = 1.0
    target: float | None = None


UNNAMED = TenantTerms()
"""Of a tenant without a table."""


@dataclass(frozen=True, slots=True)
class TenantBook:
    """The tenants an operator named, and how others are told apart.

    Attributes:
        terms: By the tenant's name.
        keys: Names by the SHA-256 of an API key.
        header: In lower case; ``None`` where no header says who pays.
        gateway_keys: Digests of API keys whose bearer speaks for others.
        is_last: Whether requests without a promise have no turn, and are served with what the
            others leave.
    """

    terms: Mapping[str, TenantTerms] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    header: str | None = None
    gateway_keys: frozenset[str] = frozenset()
    is_last: bool = False

    @classmethod
    def parse(cls, document: Mapping[str, Any], source: str) -> TenantBook:
        """Read :data:`TENANT_TABLES` of an SLO file.

        Raises:
            UserError: A name or value is not allowed. No sentence repeats a key.
        """
        terms: dict[str, TenantTerms] = {}
        owners: dict[str, str] = {}
        for name, table in tables_in(f"{source}: [tenants]", document.get("tenants", {})):
            if not can_be_class(name):
                raise UserError(f"{source}: a tenant is named by {CLASS_NAMES}, not {shown(name)}.")
            where = f"{source}: [tenants.{name}]"
            check_keys(where, table, TENANT_FIELDS)
            terms[name] = _terms_in(where, table)
            for digest in _digests_in(where, "keys", table.get("keys", [])):
                if owners.setdefault(digest, name) != name:
                    raise UserError(
                        f"{where}: keys has one that [tenants.{owners[digest]}] has too;"
                        " a key belongs to one tenant."
                    )
        named = document.get("tenant_header")
        header = None if named is None else header_name(f"{source}: tenant_header", named)
        gateways = _digests_in(source, "gateway_keys", document.get("gateway_keys", []))
        if gateways and header is None:
            raise UserError(
                f"{source}: gateway_keys needs tenant_header, the header in which a gateway says"
                " who pays."
            )
        if both := [owners[digest] for digest in gateways if digest in owners]:
            raise UserError(
                f"{source}: [tenants.{both[0]}] has a key that is in gateway_keys too; a gateway"
                " speaks for others, so leave it out of one."
            )
        return cls(terms, owners, header, frozenset(gateways), _is_last(source, document))

    def is_gateway(self, api_key: bytes | None) -> bool:
        """Return whether the bearer of *api_key*, bytes of a header, speaks for others."""
        if not api_key or not self.gateway_keys:
            return False
        return not self.gateway_keys.isdisjoint(sent_digests(api_key))

    def tenant_of_key(self, api_key: bytes | None, *, is_checked: bool) -> str | None:
        """Return who pays by an API key alone, ``None`` where a header may say.

        A key that nobody checks says nothing: a client could send another with every request.

        Args:
            api_key: The bytes of the client's header.
            is_checked: Whether somebody checked it: the server accepts it, or the file grants it
                something.
        """
        if not api_key or self.is_gateway(api_key):
            return None
        sent, plain = sent_digests(api_key)
        if named := self.keys.get(sent) or self.keys.get(plain):
            return named
        return f"key-{plain[:KEY_TENANT_DIGITS]}" if is_checked else None

    def aims(self, tenant: str, *, is_promise: bool) -> dict[str, Any]:
        """Return the fields of an ``Slo`` that say who pays, and what that tenant may use."""
        terms = self.terms.get(tenant, UNNAMED)
        share = terms.share if is_promise or not self.is_last else 0.0
        return {"tenant": tenant, "share": share, "tenant_target": terms.target}


def _terms_in(where: str, table: Mapping[str, Any]) -> TenantTerms:
    share, target = table.get("share", 1.0), table.get("target")
    return TenantTerms(
        share_of(f"{where} share", share),
        None if target is None else target_of(f"{where} target", target),
    )


def _digests_in(where: str, name: str, listed: Any) -> list[str]:
    what = f"{where}: {name}" if name == "gateway_keys" else f"{where} {name}"
    if not isinstance(listed, list) or not all(isinstance(key, str) and key for key in listed):
        raise UserError(f"{what} must be a list of API keys, each a text or 'sha256:' and digits.")
    return [
        listed_digest(f"{what}: key {number}", key) for number, key in enumerate(listed, start=1)
    ]


def header_name(what: str, name: Any) -> str:
    """Return *name*, a header that says who pays, in lower case.

    Raises:
        UserError: It is no header's name, or one that cannot say so.
    """
    if not isinstance(name, str) or not _HEADER_NAME.fullmatch(name):
        raise UserError(f"{what} must be the name of a header, as in x-tenant, not {shown(name)}.")
    lowered = name.lower()
    if lowered in SECRET_HEADERS or lowered.startswith(OWN_PREFIX):
        raise UserError(
            f"{what} cannot be {name}: a tenant's name is shown, and headers that"
            " begin with X-Slo- are promises; name another, as in x-tenant."
        )
    return lowered


def _is_last(source: str, document: Mapping[str, Any]) -> bool:
    way = document.get("unpromised", UNPROMISED[0])
    if way not in UNPROMISED:
        raise UserError(
            f"{source}: unpromised must be one of {', '.join(UNPROMISED)}, not {shown(way)}."
        )
    return bool(way == UNPROMISED[1])
