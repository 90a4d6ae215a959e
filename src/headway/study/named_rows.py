"""Rows of an experiment by name, in a file that grows as they are measured.

A name is what was varied, joined by ``|``: its kind first, its seed last.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

Rows = Mapping[str, Any]

Task = tuple[str, Callable[..., Any], tuple[Any, ...]]
"""The name of a row, what measures it, and with which arguments."""


def measure_missing(
    path: Path, tasks: Iterable[Task], tell: Callable[[str], None], only: str = "", *, is_kept: bool
) -> None:
    """Measure the rows that *path* lacks; each is told, and written as soon as it is there.

    Args:
        path: A JSON object of rows by name.
        only: Rows whose name holds this.
        is_kept: If not, all are measured and nothing is read or written.
    """
    rows = json.loads(path.read_text("utf-8")) if is_kept and path.exists() else {}
    for name, measure, args in tasks:
        if only not in name or name in rows:
            continue
        rows[name] = measure(*args)
        tell(f"{name} {json.dumps(rows[name])}")
        if is_kept:
            path.write_text(json.dumps(rows, indent=0) + "\n", "utf-8")


def by_case(rows: Rows, kind: str) -> dict[tuple[str, ...], dict[str, Any]]:
    """Return the rows of one kind by the rest of their names, and there by seed."""
    found: dict[tuple[str, ...], dict[str, Any]] = defaultdict(dict)
    for name, row in rows.items():
        first, *case, seed = name.split("|")
        if first == kind:
            found[tuple(case)][seed] = row
    return dict(found)
