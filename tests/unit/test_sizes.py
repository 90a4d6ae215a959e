"""What a person takes in at a sitting: files of a few screens, functions of one."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import headway

MOST_FILE_LINES = 300
MOST_FUNCTION_LINES = 60

ROOT = Path(headway.__file__).parent


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_it_fits(path: Path) -> None:
    """Files of at most 300 lines, functions of at most 60, their decorators not counted."""
    text = path.read_text(encoding="utf-8")
    lengths = [
        (f"{node.name} in line {node.lineno}", node.end_lineno - node.lineno + 1)
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    ]
    assert text.count("\n") <= MOST_FILE_LINES
    assert [name for name, length in lengths if length > MOST_FUNCTION_LINES] == []
