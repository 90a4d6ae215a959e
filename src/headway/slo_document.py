"""An SLO file as a document: reading it, and what it may say at its top."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from headway.errors import UserError
from headway.slo_rules import shown
from headway.slo_tenants import TENANT_TABLES

FILE_TABLES = ("default", "classes", "keys", "models", "limits", *TENANT_TABLES)
"""What an SLO file may say at its top."""


def document_in(path: str | Path) -> dict[str, Any]:
    """Return the TOML document in a file.

    Raises:
        UserError: The file is missing, or is not TOML.
    """
    try:
        return tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"Cannot read the SLO file {path}: {error.strerror}.") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"The SLO file {path} is not valid TOML: {error}.") from None


def class_tables(document: Mapping[str, Any], source: str) -> Mapping[str, Any]:
    """Return the tables of the classes by name; none where the file speaks of tenants alone.

    Raises:
        UserError: The document has an unknown key, or says nothing of anybody.
    """
    unknown = sorted(set(document) - set(FILE_TABLES))
    if unknown:
        raise UserError(
            f"{source}: unknown key {unknown[0]!r}; allowed are {', '.join(FILE_TABLES)}."
        )
    tables = document.get("classes", {})
    if not isinstance(tables, Mapping) or not (tables or set(TENANT_TABLES) & set(document)):
        raise UserError(f"{source}: name at least one class, as in [classes.chat].")
    return tables


def default_in(document: Mapping[str, Any], known: Collection[str], source: str) -> str | None:
    """Return the class of requests that ask for nothing; *known* are the file's classes.

    Raises:
        UserError: It is none of them.
    """
    default = document.get("default")
    if default is None or (isinstance(default, str) and default in known):
        return default
    raise UserError(
        f"{source}: default = {shown(default)} is not one of the classes {sorted(known)}."
    )
