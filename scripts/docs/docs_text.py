"""Small pieces of Markdown that the generated pages are made of."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence

from docstring_parser import DocstringStyle, parse

Row = tuple[str, ...]


def table(head: Sequence[str], rows: Sequence[Row]) -> list[str]:
    """Return a Markdown table's lines."""
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows)]


def escaped(text: str) -> str:
    """Return *text* as a cell: one line, its bars escaped."""
    return " ".join(text.split()).replace("|", "\\|")


def attributes_of(thing: type) -> Mapping[str, str]:
    """Return the *Attributes* of a class's docstring, in Markdown."""
    text = parse(inspect.getdoc(thing) or "", DocstringStyle.GOOGLE)
    return {p.arg_name: " ".join(markdown(p.description or "").split()) for p in text.params}


def markdown(text: str) -> str:
    """Return a docstring's text as Markdown: roles and double backquotes become single ones."""
    text = re.sub(r":\w+:`~?([\w.()]+)`", r"`\1`", text)
    return text.replace("``", "`")
