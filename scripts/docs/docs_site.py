"""Hooks of MkDocs: pages outside ``docs/`` that the docs link to become part of the site.

Markdown in the repository is written to be read there: a page links to
``../experiments/live/README.md`` as a file. In the site the same file is a page, or a download
when it is no Markdown; a folder is its ``README.md`` or ``results.md``. Links that lead nowhere
are left for MkDocs to complain about.
"""

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[2]
DOCS = "docs/"
LINK = re.compile(r"(?<=\]\()([^)#\s]+)(?=[)#])")
INDEXES = ("README.md", "results.md")


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Add what the pages link to outside of ``docs/``, and what those pages link to."""
    waiting = [DOCS + f.src_uri for f in files.documentation_pages()]
    while waiting:
        for target in list(targets_of(waiting.pop())):
            if target.startswith(DOCS) or files.get_file_from_path(target) is not None:
                continue
            files.append(File.generated(config, target, abs_src_path=str(ROOT / target)))
            if target.endswith(".md"):
                waiting.append(target)
    return files


def on_page_markdown(markdown: str, page: Page, files: Files, **_: Any) -> str:
    """Turn links between files of the repository into links between pages of the site."""
    here = repository_path(page.file)

    def linked(match: re.Match[str]) -> str:
        target = resolved(here, match[1])
        if target is None:
            return match[1]
        inside = target.removeprefix(DOCS)
        if files.get_file_from_path(inside) is None:
            return match[1]
        return posixpath.relpath(inside, posixpath.dirname(page.file.src_uri) or ".")

    return LINK.sub(linked, markdown)


def repository_path(file: File) -> str:
    """Return where a page of the site is in the repository."""
    if file.abs_src_path is None:
        return DOCS + file.src_uri
    return Path(file.abs_src_path).resolve().relative_to(ROOT).as_posix()


def targets_of(path: str) -> Iterator[str]:
    """Yield the files of the repository that the page at *path* links to."""
    for match in LINK.finditer((ROOT / path).read_text(encoding="utf-8")):
        target = resolved(path, match[1])
        if target is not None:
            yield target


def resolved(path: str, link: str) -> str | None:
    """Return the file of the repository that *link* in *path* leads to, if there is one."""
    if re.match(r"[a-z]+:|/", link):
        return None
    target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
    if target.startswith(".."):
        return None
    if (ROOT / target).is_dir():
        found = [posixpath.join(target, name) for name in INDEXES]
        return next((name for name in found if os.path.isfile(ROOT / name)), None)
    return target if (ROOT / target).is_file() else None
