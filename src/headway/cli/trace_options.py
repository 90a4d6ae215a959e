"""The options of every command that reads a trace: what the file itself leaves open."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click
from rich.console import Console

from headway.cli.stacked import Command, stacked
from headway.cli.values import say
from headway.errors import UserError
from headway.workloads.reading import Reading, ReadOptions
from headway.workloads.schema import count
from headway.workloads.trace_columns import columns_of
from headway.workloads.trace_times import UNITS_S

OPTION_NAMES = ("time_unit", "hash_tokens", "sort", "column", "any_rate")

_OPTIONS = [
    click.option("--time-unit", type=click.Choice(list(UNITS_S)), help="Unit of the times."),
    click.option("--hash-tokens", help="Tokens per hash in the trace."),
    click.option("--sort", is_flag=True, help="Allow rows out of order."),
    click.option("--column", multiple=True, metavar="ROLE=NAME",
                 help="E.g. arrived=sent_at; also prompt, output, hashes, class, tenant."),
    click.option("--any-rate", is_flag=True, help="Accept any rate of the trace."),
]  # fmt: skip


def trace_options(command: Command) -> Command:
    """Add the options to a command; it receives them as the keywords of ``OPTION_NAMES``."""
    return stacked(_OPTIONS, command)


def read_options(given: Mapping[str, Any], is_file: bool) -> ReadOptions:
    """Return what was said about the trace.

    Args:
        is_file: Whether there is one; else nothing may be said about it.

    Raises:
        UserError: A value is not allowed, or there is no file.
    """
    size = given["hash_tokens"]
    options = ReadOptions(
        time_unit=given["time_unit"],
        hash_tokens=None if size is None else count("--hash-tokens", "the size", size, minimum=1),
        sort=given["sort"],
        columns=columns_of(given["column"]),
        any_rate=given["any_rate"],
    )
    if not is_file and options != ReadOptions():
        name = next(name for name in OPTION_NAMES if given[name])
        raise UserError(f"--{name.replace('_', '-')} is about a trace file, and none is read here.")
    return options


def tell(console: Console, reading: Reading | None) -> None:
    """Print how a trace was read, unless it says everything itself."""
    if reading is not None and not reading.is_plain:
        say(console, [reading.sentence()])
