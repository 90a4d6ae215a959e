"""Every number of the default policy has a name, and a reason that docs/reference shows."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "docs"))
docs_constants: Any = importlib.import_module("docs_constants")

FILES = docs_constants.policy_files()

ARITHMETIC = {0, 1, 2}
"""What needs no name in a formula: nothing, one more, a half or twice."""

ROUNDING = 1e-6
"""Guards against a division by nothing are at most so large."""

GUARDS = {
    "policy/prices.py": {700.0, 1.01},  # exp() stays finite; a grid has two ends.
    "policy/weigh.py": {32},  # 2 ** n stays finite.
}


def name_of(path: Path) -> str:
    """Return a file's path as the page has it."""
    return path.relative_to(docs_constants.SOURCE).as_posix()


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_number_is_named(path: Path) -> None:
    """What is no plain arithmetic and no guard stands at the top of its file, under a name."""
    allowed = ARITHMETIC | GUARDS.get(name_of(path), set())
    unnamed = [
        (line, value)
        for line, value in docs_constants.unnamed_in(path.read_text(encoding="utf-8"))
        if value not in allowed and not value <= ROUNDING
    ]
    assert not unnamed, f"{name_of(path)}: give these a name, a reason and a run: {unnamed}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_every_named_number_says_which_way_it_errs(path: Path) -> None:
    """Below it stands what it is, and what goes wrong when it is another."""
    for constant in docs_constants.constants_in(path.read_text(encoding="utf-8")):
        says = re.search(
            r"Larger|More:|Finer|Wider|nothing to choose|Any (number|span)", constant.meaning
        )
        assert says, f"{name_of(path)}: {constant.name} has no docstring that says how it errs"


def test_a_new_number_is_noticed() -> None:
    """At the top of a file, in a function, as a default and as a field."""
    named = "A = 3.0\nB = (1, 4)\n'''Why.'''\n"
    text = named + "def f(x=5):\n    return 0.07 * x\nclass C:\n    d: int = 6\n"
    found = docs_constants.constants_in(text)
    assert [(c.name, c.value, c.meaning) for c in found] == [
        ("A", "3.0", ""),
        ("B", "(1, 4)", "Why."),
    ]
    assert [value for _, value in docs_constants.unnamed_in(text)] == [5, 0.07, 6]


def test_the_page_names_every_run() -> None:
    """Files that the reasons point to exist, and so do the sections of the log."""
    page = "\n".join(docs_constants.constants_page())
    for place in re.findall(r"\b(?:experiments|docs|tests)/[\w/]+", page):
        found = ROOT / place
        assert found.exists() or list(found.parent.glob(f"{found.name}*")), place
    headings = re.findall(r"(?m)^## (.*)", (ROOT / "experiments/LOG.md").read_text("utf-8"))
    for title in re.findall(r"LOG\.md, \*([^*]+)\*", page):
        assert any(heading.startswith(title) for heading in headings), title
