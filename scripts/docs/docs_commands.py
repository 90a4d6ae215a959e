"""The page of the commands, read from click."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence

import click
from docs_text import Row, escaped, table

from headway.cli.main import COMMANDS, cli

VIRTUAL = ("simulate", "capacity", "replay")
"""Commands of virtual runs; what they share is told once."""

LINK = "#options-of-every-virtual-run"


def commands_page() -> Iterator[str]:
    """Every command: usage, what it does, arguments and options."""
    shared = shared_options()
    yield from [
        "# Commands",
        "",
        "`headway COMMAND --help` prints the same. Exit codes: 0 on success, 1 on failure, 2 on a"
        " mistake in the command (one sentence on standard error).",
        "",
        *table(
            ("command", "what it does"),
            [(f"[`headway {n}`](#headway-{n})", line) for n, (_, line) in COMMANDS.items()],
        ),
    ]
    for path, command in all_commands():
        yield from _section(path, command, shared)
    yield from ["", "## Options of every virtual run", ""]
    yield f"Of {', '.join(f'`headway {name}`' for name in VIRTUAL)}."
    yield from ["", *table(("option", "default", "meaning"), shared)]


def all_commands() -> Iterator[tuple[str, click.Command]]:
    """Yield every command and subcommand with the words that call it."""
    context = click.Context(cli)
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        yield f"headway {name}", command
        if isinstance(command, click.Group):
            for sub in command.list_commands(context):
                inner = command.get_command(context, sub)
                assert inner is not None
                yield f"headway {name} {sub}", inner


def shared_options() -> list[Row]:
    """Return the options that all commands of virtual runs have, word for word."""
    by_command = []
    for path, command in all_commands():
        if path.removeprefix("headway ") in VIRTUAL:
            options = (p for p in command.params if isinstance(p, click.Option))
            by_command.append([option_row(p) for p in options])
    return [row for row in by_command[0] if all(row in rows for rows in by_command[1:])]


def _section(path: str, command: click.Command, shared: Sequence[Row]) -> Iterator[str]:
    yield from ["", f"## {path}", ""]
    with click.Context(command, info_name=path) as context:
        usage = " ".join([path, *command.collect_usage_pieces(context)])
    yield from ["```text", usage, "```", ""]
    yield inspect.cleandoc(command.help or "")
    own = [option_row(p) for p in command.params if _is_option(p)]
    is_virtual = path.removeprefix("headway ") in VIRTUAL
    if is_virtual:
        own = [row for row in own if row not in shared]
    if own:
        yield from ["", *table(("option", "default", "meaning"), own)]
    if is_virtual:
        hidden = [f"`{p.opts[0]}`" for p in command.params if getattr(p, "hidden", False)]
        but = f", except {', '.join(hidden)}, which the recording sets" if hidden else ""
        yield from ["", f"The [options of every virtual run]({LINK}) apply too{but}."]


def option_row(option: click.Parameter) -> Row:
    """Return one line of a table: how it is written, its default, its help."""
    assert isinstance(option, click.Option)
    names = "/".join([*option.opts, *option.secondary_opts])
    value = ""
    if isinstance(option.type, click.Choice):
        value = " " + "|".join(str(choice) for choice in option.type.choices)
    elif not option.is_flag:
        metavar = option.metavar or option.type.name.upper().removesuffix(" RANGE")
        value = f" {metavar}"
    shown = option.default if option.show_default and option.default is not None else ""
    if option.is_flag and option.secondary_opts:
        shown = (option.opts if option.default else option.secondary_opts)[0]
    default = f"`{shown}`" if shown != "" else ""
    return (f"`{names}{value}`".replace("|", "\\|"), default, escaped(option.help or ""))


def _is_option(parameter: click.Parameter) -> bool:
    return isinstance(parameter, click.Option) and not parameter.hidden
