"""What commands share: how values are read from options, and how results leave."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, overload

import click
from click.core import ParameterSource
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from headway.errors import UserError
from headway.workloads.schema import number

MOST = 1_000_000_000


def is_given(option: str) -> bool:
    """Return whether the user of the command that runs said *option*, its default or not."""
    source = click.get_current_context().get_parameter_source(option)
    return source not in (ParameterSource.DEFAULT, None)


@overload
def whole(flag: str, text: str) -> int: ...
@overload
def whole(flag: str, text: None) -> None: ...
def whole(flag: str, text: str | None) -> int | None:
    """Read a whole number from 1 on; ``None`` stays ``None``."""
    if text is None:
        return None
    if not text.isdecimal() or not 0 < int(text) <= MOST:
        raise UserError(f"{flag} must be a whole number from 1 to {MOST}, not {text!r:.60}.")
    return int(text)


@overload
def rate(text: str) -> float: ...
@overload
def rate(text: None) -> None: ...
def rate(text: str | None) -> float | None:
    """Read ``--rate``, requests per second; ``None`` stays ``None``."""
    return None if text is None else number("--rate", "the rate", text, minimum=0.0, above=True)


def writable(*paths: str | Path | None) -> None:
    """Check that the folders of files to be written exist.

    Raises:
        UserError: One does not.
    """
    for path in paths:
        if path is not None and not Path(path).absolute().parent.is_dir():
            raise UserError(f"The folder of {path} does not exist.")


def write(path: Path, text: str) -> None:
    """Write a text file.

    Raises:
        UserError: It cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror}.") from None


def save(path: Path | None, document: Any) -> None:
    """Write a JSON document; without a path, nothing.

    Raises:
        UserError: The file cannot be written.
    """
    if path is not None:
        write(path, json.dumps(document, indent=1) + "\n")


def say(console: Console, sentences: Iterable[str]) -> None:
    """Print sentences as they are, however long."""
    for sentence in sentences:
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)


def table(title: str, left: Iterable[str], right: Iterable[str]) -> Table:
    """Return a table without rows: columns of words, then columns of figures."""
    made = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for name in left:
        made.add_column(name)
    for name in right:
        made.add_column(name, justify="right")
    return made


@contextmanager
def progress(console: Console, what: str, total: int) -> Iterator[Callable[[], None]]:
    """Show a bar on a terminal and a line now and then elsewhere; yields what a run's end calls."""
    if not console.is_terminal:
        done = 0

        def tell() -> None:
            nonlocal done
            done += 1
            if done == total or done % max(total // 10, 1) == 0:
                click.echo(f"{what}: {done}/{total} runs", err=True)

        yield tell
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)
