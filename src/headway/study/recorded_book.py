"""The SLO file of a recorded run: what its requests say of classes, tenants and targets.

Each request carries its own promise and who pays. What a file says besides is read off the
requests: of two that differ, because the file changed while the server ran, the later one counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from headway.slo import Slo
from headway.slo_tenants import UNPROMISED


def document_of(slos: Iterable[Slo]) -> dict[str, Any]:
    """Return the document of an SLO file under which requests with *slos* are what they were.

    Its classes have names and targets alone.
    """
    classes: dict[str, dict[str, Any]] = {}
    tenants: dict[str, dict[str, Any]] = {}
    is_last = False
    for slo in slos:
        classes[slo.class_name] = _said(target=slo.target)
        if not slo.is_promise:
            is_last = slo.share == 0.0
        if slo.tenant:
            known = tenants.get(slo.tenant, {}).get("share")
            tenants[slo.tenant] = _said(share=slo.share or known, target=slo.tenant_target)
    return {
        "unpromised": UNPROMISED[is_last],
        "classes": dict(sorted(classes.items())),
        "tenants": dict(sorted(tenants.items())),
    }


def toml_of(document: Mapping[str, Any]) -> str:
    """Return the text of an SLO file with *document*, of texts, numbers and tables of tables."""
    lines = [f"{key} = {_quoted(v)}" for key, v in document.items() if isinstance(v, str)]
    for kind, tables in document.items():
        for name, table in tables.items() if isinstance(tables, Mapping) else ():
            lines.append(f"[{kind}.{_quoted(name)}]")
            lines += [f"{key} = {value!r}" for key, value in table.items()]
    return "\n".join(lines) + "\n"


def _said(**fields: float | None) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _quoted(text: str) -> str:
    """Return *text* as a TOML string; names are printable, so JSON writes the same."""
    return json.dumps(text, ensure_ascii=False)
