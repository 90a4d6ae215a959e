"""One name, one thing: a file is found without its folder, and a class without its module."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import headway

ROOT = Path(headway.__file__).parent

FILES_OF_A_PACKAGE = ("__init__.py", "preset.py")
"""Every package may have one; a paper's preset is found under the same name in each paper."""


def used_twice(names: Iterable[tuple[str, Path]]) -> Mapping[str, list[str]]:
    places: dict[str, list[str]] = defaultdict(list)
    for name, path in names:
        places[name].append(str(path.relative_to(ROOT)))
    return {name: found for name, found in places.items() if len(found) > 1}


def test_no_file_name_is_used_twice() -> None:
    """A file can be named without its folder, and be found."""
    files = [p for p in ROOT.rglob("*.py") if p.name not in FILES_OF_A_PACKAGE]
    assert len(files) > 100
    assert used_twice((p.name, p) for p in files) == {}


def test_no_class_name_is_used_twice() -> None:
    """A class can be named without its module, and be found; an underscore makes no other name."""
    classes = [
        (node.name.lstrip("_"), path)
        for path in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    ]
    assert len(classes) > 100
    assert used_twice(classes) == {}
