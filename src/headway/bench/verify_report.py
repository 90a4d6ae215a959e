"""What a run of ``headway verify`` leaves: a document, and a table for a terminal."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

import headway
from headway.bench.provenance import machine
from headway.bench.verify_rows import ROWS, VerifyRow

SCHEMA = 1
SECRET = ("--api-key", "--hf-token")
"""Options of vLLM's whose value nobody else may see."""

COLOURS = {"ok": "green", "look": "yellow", "not measured": "dim"}


def document_of(
    rows: Sequence[VerifyRow],
    model: str,
    arguments: Sequence[str],
    took_s: float,
    stopped: str | None,
) -> dict[str, Any]:
    """Return what ``verify.json`` holds: no text of a prompt or an answer, no path, no key.

    Args:
        model: As it was named on the command line, or by the servers.
        arguments: Of vLLM, of both servers.
        stopped: Why the run ended early, if it did.
    """
    return {
        "schema": SCHEMA,
        "headway": headway.__version__,
        "machine": machine(),
        "model": bare(model),
        "arguments": shareable(arguments),
        "took_s": round(took_s, 1),
        "stopped": stopped,
        "verdicts": {row.key: row.verdict for row in rows},
        "rows": [row.document() for row in rows],
    }


def without_places(text: str, folder: Path) -> str:
    """Return *text* without the addresses of servers and the *folder* of their logs."""
    return re.sub(r"https?://\S*[^\s:;,.)]", "a server", text).replace(f"{folder}/", "")


def bare(word: str) -> str:
    """Return *word*, of a path its last part alone."""
    return Path(word).name if word.startswith(("/", "~", ".")) else word


def shareable(arguments: Sequence[str]) -> list[str]:
    """Return *arguments* without the values of keys, and without folders."""
    shown: list[str] = []
    is_secret = False
    for word in arguments:
        name, equals, value = word.partition("=")
        if is_secret and not word.startswith("--"):
            shown.append("…")
            continue
        is_secret = name.replace("_", "-") in SECRET and not equals
        hidden = "…" if name.replace("_", "-") in SECRET else bare(value)
        shown.append(f"{name}={hidden}" if equals and name.startswith("-") else bare(word))
    return shown


def verify_table(rows: Sequence[VerifyRow]) -> Table:
    """Return the rows for a terminal."""
    table = Table(title="headway verify", title_justify="left", show_lines=True)
    table.add_column("", no_wrap=False, ratio=2)
    table.add_column("verdict", no_wrap=True)
    table.add_column("what was seen", ratio=5)
    for row in rows:
        verdict = Text(row.verdict, style=COLOURS[row.verdict])
        table.add_row(row.title, verdict, Text(row.found))
    return table


def conclusion(rows: Sequence[VerifyRow]) -> str:
    """Return the verdicts in one sentence."""
    verdicts = [row.verdict for row in rows]
    looks, missing = verdicts.count("look"), verdicts.count("not measured")
    if looks == missing == 0:
        return f"All {len(ROWS)} rows are ok."
    parts = [f"{verdicts.count('ok')} of {len(ROWS)} rows are ok"]
    parts += [f"{looks} should be looked at"] if looks else []
    parts += [f"{missing} could not be measured"] if missing else []
    return f"{', '.join(parts)}."
