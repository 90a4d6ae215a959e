"""The pages of the docs that repeat the code are up to date, and whole."""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from typing import Any

import click

from headway.cli.replay import SAID_BY_THE_RECORDING
from headway.slo_document import FILE_TABLES

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "docs"))
docs_commands: Any = importlib.import_module("docs_commands")
docs_reference: Any = importlib.import_module("docs_reference")

BY_PATH: dict[str, click.Command] = dict(docs_commands.all_commands())


def test_generated_pages_are_up_to_date() -> None:
    """python scripts/docs/docs_reference.py writes them."""
    stale = [
        path.relative_to(ROOT).as_posix()
        for path, text in docs_reference.pages().items()
        if not path.is_file() or path.read_text(encoding="utf-8") != text
    ]
    assert not stale, f"run python scripts/docs/docs_reference.py: {stale}"


def test_the_reference_is_complete() -> None:
    """Every command, table of the SLO file and environment variable is in it."""
    text = {path.stem: page for path, page in docs_reference.pages().items()}
    for path in BY_PATH:
        assert f"\n## {path}\n" in text["commands"]
    for name in FILE_TABLES:
        assert re.search(rf"`\[?{name}[`.\]]", text["settings"])
    sources = (path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    used = {name for source in sources for name in re.findall(r"\"(HEADWAY_[A-Z_]+)\"", source)}
    assert used == set(re.findall(r"`(HEADWAY_[A-Z_]+)`", text["settings"]))


def test_every_option_of_a_command_is_in_its_section() -> None:
    """In its own table, or in that of all virtual runs, which the section then names; no other."""
    page = docs_reference.pages()[ROOT / "docs" / "reference" / "commands.md"]
    shared = page.partition("\n## Options of every virtual run\n")[2]
    for path, command in BY_PATH.items():
        section = page.partition(f"\n## {path}\n")[2].partition("\n## ")[0]
        told = section + (shared if docs_commands.LINK in section else "")
        for option in command.params:
            if isinstance(option, click.Option) and not option.hidden:
                assert f"| `{option.opts[0]}" in told, f"{path} {option.opts[0]}"
    for name in SAID_BY_THE_RECORDING:
        assert (
            f"`--{name.replace('_', '-')}`"
            in page.partition("\n## headway replay\n")[2].partition("\n## ")[0]
        )
