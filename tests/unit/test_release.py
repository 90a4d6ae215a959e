"""What a release consists of names the same version, and files that exist."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from headway import __version__
from headway.cli.main import COMMANDS
from headway.engines.vllm.vllm_names import TRIED

ROOT = Path(__file__).parents[2]


def test_the_changelog_begins_with_this_version() -> None:
    """And the package takes its version from the one place where it stands."""
    newest, *_ = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    assert newest == __version__
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"]["attr"] == "headway.__version__"


def test_the_image_is_made_of_what_is_here() -> None:
    """The files it copies, a release of vLLM that was tried, a command there is."""
    text = (ROOT / "Containerfile").read_text("utf-8")
    copied = [
        name for line in re.findall(r"^COPY (.*) \S+$", text, re.MULTILINE) for name in line.split()
    ]
    assert copied
    assert all((ROOT / name).exists() for name in copied)
    assert re.findall(r"^ARG VLLM=v(\S+)$", text, re.MULTILINE)[0] in TRIED
    assert re.findall(r'^ENTRYPOINT \["headway", "(\w+)"\]$', text, re.MULTILINE)[0] in COMMANDS


def test_the_tests_that_enforce_decisions_exist() -> None:
    """Every decision names a file of tests that is there, and a function only if it is in it."""
    pages = sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md"))
    assert len(pages) > 15
    for page in pages:
        text = page.read_text("utf-8")
        named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)
        assert "**Enforced by**" in text, page.name
        assert named, page.name
        for file, function in named:
            assert (ROOT / file).is_file(), f"{page.name}: {file}"
            assert f"def {function}" in (ROOT / file).read_text("utf-8"), f"{page.name}: {function}"
