"""Each break of ``experiments/mutations`` still finds the line it breaks."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_each_break_finds_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run stops at the first line that is gone; so all are looked for here."""
    folder = ROOT / "experiments/mutations"
    monkeypatch.syspath_prepend(folder)
    breaks = runpy.run_path(str(folder / "run.py"))["BREAKS"]
    named = [(file, line) for each in breaks.values() for file, line, *_ in each]
    gone = [(f, line) for f, line in named if line not in (ROOT / f).read_text(encoding="utf-8")]
    assert named
    assert not gone
