"""The page of the default policy's numbers: read from the source, so that none is missed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from docs_text import escaped, markdown, table

SOURCE = Path(__file__).resolve().parents[2] / "src" / "headway"

LEARNED = ("conformal.py", "model.py", "online.py", "roofline.py")
"""Of ``latency/``: the learned step time. The rest makes profiles of GPUs."""


class Constant(NamedTuple):
    """A number with a name: its source, and the string below it (empty when there is none)."""

    name: str
    value: str
    meaning: str


def constants_page() -> Iterator[str]:
    """Every number of the default policy, by file."""
    by_path = {path: constants_in(path.read_text(encoding="utf-8")) for path in policy_files()}
    count = sum(map(len, by_path.values()))
    unmeasured = sum("no run" in c.meaning.lower() for found in by_path.values() for c in found)
    yield from [
        "# Constants of the default policy",
        "",
        f"**{count} numbers**, none of them a setting. Each row gives the meaning and unit, the"
        " reason for the value, the run that shows it, and the effect of a larger or smaller value."
        f" No run tried other values of {unmeasured} of them, and their rows say so. *LOG.md* is"
        " the [log of experiments](../../experiments/LOG.md); its sections are named by the"
        " beginnings of their titles. The default description of an unknown machine"
        " (`latency/laptop.py`) is not counted. [Where everything"
        " is](../structure.md#the-core-in-reading-order) has the files in reading order.",
    ]
    for path, found in by_path.items():
        rows = [(f"`{c.name}`", f"`{c.value}`", escaped(markdown(c.meaning))) for c in found]
        if rows:
            yield from ["", f"## {path.relative_to(SOURCE).as_posix()}", ""]
            yield from table(("name", "value", "meaning"), rows)


def policy_files() -> list[Path]:
    """Return the files of the default policy; ``log.py`` decides nothing."""
    core = [path for path in sorted((SOURCE / "policy").rglob("*.py")) if path.name != "log.py"]
    return [*core, *(SOURCE / "latency" / name for name in LEARNED)]


def constants_in(text: str) -> list[Constant]:
    """Return the numbers that a module's source names at its top level."""
    body = ast.parse(text).body
    found: list[Constant] = []
    for node, after in zip_longest(body, body[1:]):
        if not isinstance(node, ast.Assign) or not _numbers(node.value):
            continue
        is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
        meaning = after.value.value if is_text and isinstance(after.value.value, str) else ""
        names = ast.unparse(node.targets[0]).strip("()")
        found.append(Constant(names, ast.get_source_segment(text, node.value) or "", meaning))
    return found


def unnamed_in(text: str) -> list[tuple[int, float]]:
    """Return line and value of the numbers that have no name at a module's top level."""
    loose = [node for node in ast.parse(text).body if not isinstance(node, ast.Assign)]
    return [(n.lineno, n.value) for node in loose for n in _numbers(node)]


def _numbers(tree: ast.AST) -> list[ast.Constant]:
    """Return the numbers in a piece of source."""
    nodes = [node for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return [node for node in nodes if type(node.value) in (int, float)]
