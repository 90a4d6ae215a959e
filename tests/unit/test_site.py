"""The documentation site builds from the repository, whole, and needs no network."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytest.importorskip("material", reason="the extra 'dev' brings mkdocs-material")

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site as ``make docs`` builds it: a broken link or anchor fails the build."""
    folder: Path = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_is_in_the_site(site: Path) -> None:
    """Each page of docs/ has its HTML, and what pages link to outside of docs/ is there too."""
    for page in (ROOT / "docs").rglob("*.md"):
        inside = page.relative_to(ROOT / "docs").with_suffix(".html")
        assert (site / inside).is_file(), f"{inside} is missing"
    assert (site / "experiments" / "live" / "index.html").is_file()
    assert (site / "src" / "headway" / "ops" / "grafana.json").is_file()


def test_it_needs_no_network(site: Path) -> None:
    """No page loads a script, a style, a font or a picture from elsewhere."""
    loading = re.compile(
        r"<(?:script|img|iframe|link)\b[^>]*\b(?:src|href)=\"?(?:https?:)?//[^\s\">]*"
    )
    for page in site.rglob("*.html"):
        assert not loading.findall(page.read_text(encoding="utf-8")), page.name
    for style in site.rglob("*.css"):
        assert not re.search(r"@import|url\((?:https?:)?//", style.read_text(encoding="utf-8"))


def test_links_between_pages_stay_in_the_site(site: Path) -> None:
    """Every relative link of every page leads to a file of the site."""
    for page in site.rglob("*.html"):
        if page.name == "404.html":
            continue  # Its links are absolute: it is shown at any address.
        for link in re.findall(r"href=\"([^\"#?]+)", page.read_text(encoding="utf-8")):
            if re.match(r"[a-z]+:", link):
                continue
            assert (page.parent / link).resolve().exists(), f"{page.name} links to {link}"


def test_the_menu_names_every_page() -> None:
    """Whoever adds a page adds it to the menu; decisions have a page that lists them."""
    config = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader=yaml.BaseLoader)
    named = set(re.findall(r"[\w/-]+\.md", str(config["nav"])))
    pages = {p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md")}
    assert {p for p in pages if not re.match(r"decisions/\d", p)} == named


def test_links_of_the_readme_lead_somewhere() -> None:
    """Pages that are read in the repository only link to files and folders that exist."""
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        for link in re.findall(r"\]\(([^)#\s]+)", (ROOT / name).read_text(encoding="utf-8")):
            assert re.match(r"https?:", link) or (ROOT / link).exists(), f"{name}: {link}"
