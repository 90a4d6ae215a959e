"""Which column of a trace is what: as its format says, and as the user does."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from headway.errors import UserError
from headway.workloads.trace_formats import KNOWN, ROLES, Format, shown
from headway.workloads.trace_rows import Rows

NONE = "none"
"""Given as a column: the file has none of that kind, whatever a column is named."""

_TIME_LIKE = ("time", "stamp", "arriv", "start")

_MOST_NAMES = 12
"""Columns that an error sentence names."""


def columns_in(
    rows: Rows, known: Format | None, given: Iterable[tuple[str, str]]
) -> dict[str, str]:
    """Return the columns to read, by role.

    Args:
        known: The format that was recognised.
        given: Role and name, or ``none``: what the user says otherwise.

    Raises:
        UserError: A column is not there, or what a column means is not known.
    """
    columns = known.columns() if known else {}
    roles = {role for role, _ in given}
    for role, name in given:
        if name == NONE:
            columns.pop(role, None)
        elif name in rows.columns:
            columns[role] = name
        else:
            raise UserError(
                f"{rows.top}: there is no column {name!r:.60}; there are {_names(rows)}."
            )
    if not {"prompt", "output"} <= columns.keys():
        raise UserError(
            f"{rows.top}: no known format with the columns {_names(rows)}; known are {KNOWN}."
            " For any other say --column prompt=… --column output=… --column arrived=…"
        )
    if "arrived" not in columns and "arrived" not in roles:
        _check_no_times(rows, columns)
    if rows.is_json:  # A column may be absent from the first row and present in others.
        return columns
    optional = {"hashes", "class", "tenant"} - roles
    return {r: c for r, c in columns.items() if r not in optional or c in rows.columns}


def _check_no_times(rows: Rows, columns: Mapping[str, str]) -> None:
    others = set(rows.columns) - set(columns.values())
    found = sorted(c for c in others if any(part in c.lower() for part in _TIME_LIKE))
    if found:
        raise UserError(
            f"{rows.top}: {found[0]!r:.60} may be when requests arrived: say --column"
            f" arrived={shown(found[0]):.60}, or --column arrived={NONE} for lengths alone."
        )


def _names(rows: Rows) -> str:
    names = [shown(name) for name in rows.columns if name and "." not in name]
    return f"{', '.join(names[:_MOST_NAMES]):.300}{', …' * (len(names) > _MOST_NAMES)}" or "(none)"


def columns_of(given: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Read ``--column ROLE=NAME``.

    Raises:
        UserError: A role is not known or given twice.
    """
    pairs: list[tuple[str, str]] = []
    for text in given:
        role, equals, name = text.partition("=")
        if role not in ROLES or not equals or not name or role in dict(pairs):
            raise UserError(
                f"--column must be ROLE=NAME, each role once, with {', '.join(ROLES)} for ROLE;"
                f" not {text!r:.60}."
            )
        pairs.append((role, name))
    return tuple(pairs)
