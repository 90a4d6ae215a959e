"""The options that say how a live server is reached."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from headway.bench.access import Access, access_of
from headway.cli.stacked import Command, stacked
from headway.errors import UserError

_FILE = click.Path(path_type=Path)
_OPTIONS = [
    click.option("--url", default="http://127.0.0.1:8000", show_default=True,
                 help="Base of the API, without /v1."),
    click.option("--api-key", envvar=["VLLM_API_KEY", "OPENAI_API_KEY"],
                 help="Sent as a bearer token [VLLM_API_KEY, else OPENAI_API_KEY]."),
    click.option("--header", "headers", multiple=True, metavar="'NAME: VALUE'",
                 help="One more header of every request; may be repeated."),
    click.option("--ca", type=_FILE, help="PEM file of trusted certificates [the public ones]."),
    click.option("--insecure", is_flag=True, help="Trust any certificate."),
    click.option("--unix-socket", type=_FILE, help="Socket in place of the URL's host and port."),
]  # fmt: skip


def access_options(command: Command) -> Command:
    """Add the options of reaching a server; the command receives them as keywords."""
    return stacked(_OPTIONS, command)


def access_in(url: str, given: Mapping[str, Any]) -> Access:
    """Return what the options beside *url* say.

    Raises:
        UserError: One is wrong.
    """
    if not url.startswith(("http://", "https://")):
        raise UserError(f"--url must start with http:// or https://, not {url!r:.60}.")
    names = ("api_key", "headers", "ca", "insecure", "unix_socket")
    return access_of(url, **{name: given[name] for name in names})
