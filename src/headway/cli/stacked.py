"""Several options as one decorator, for commands that share them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

Command = TypeVar("Command", bound=Callable[..., Any])


def stacked(options: Sequence[Callable[[Any], Any]], command: Command) -> Command:
    """Return *command* with *options*, which its help lists in this order."""
    for option in reversed(options):
        command = option(command)
    return command
