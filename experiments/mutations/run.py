"""Question: does breaking one line of the KV ledger, or of the instruments, make a test fail?

Breaks the lines one at a time in a copy of the project, and runs their tests there.

    python experiments/mutations/run.py [ledger|instruments]
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import click
from instruments import BREAKS as INSTRUMENTS

ROOT = Path(__file__).parents[2]
WITHIN_S = 900
"""A break that makes the tests hang is noticed, too."""

TESTS = ("tests/unit/test_reserve.py", "tests/unit/test_lending.py", "tests/unit/test_cacheopt.py",
         "tests/gold/test_ledger_twin.py")  # fmt: skip
LEDGER = "src/headway/kit/ledger.py"
GATE = "src/headway/papers/cacheopt/c2_lending.py"
LENDING = "src/headway/papers/cacheopt/c2_book.py"

LEDGERS = (
    (LEDGER, "            self.claims.discard(name)\n", "            pass\n"),
    (LEDGER, "        self.claims.discard(request_id)\n", ""),
    (GATE, "        self.book.leave(request_id)\n", "        pass\n"),
    (LEDGER, "self.leave(self._pencilled.pop())", "self._pencilled.pop()"),
    (LENDING, ">= self.buffer_tokens", "> self.buffer_tokens"),
    (LENDING, "self._lend(owner, lender, resident.reserved_tokens)", "pass"),
    (LENDING, "self._lend(resident.owner, lender, -resident.reserved_tokens)", "pass"),
    (LENDING, "        self._by_room.remove((resident.room, key))\n        del", "        del"),
    (LENDING, "max(self._residents[key].horizon, finish)", "finish"),
    (LENDING, "self._attach(name, guest, owner)", "self._attach(name, guest, None)"),
)

BREAKS: dict[str, list[tuple[str, str, str, tuple[str, ...], str]]] = {
    "ledger": [(*each, TESTS, each[1].strip()) for each in LEDGERS],
    "instruments": list(INSTRUMENTS),
}
"""File, line, what becomes of it, tests, name."""


@click.command()
@click.argument("which", type=click.Choice(list(BREAKS)), default="ledger")
def main(which: str) -> None:
    """Break each line and count how many breaks a test notices."""
    noticed = 0
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        for folder in ("src", "tests"):
            shutil.copytree(ROOT / folder, copy / folder)
        shutil.copy(ROOT / "pyproject.toml", copy)
        for file, line, broken, tests, what in BREAKS[which]:
            text = (ROOT / file).read_text(encoding="utf-8")
            if line not in text:
                raise click.ClickException(f"{file} has no line {line!r} any more.")
            (copy / file).write_text(text.replace(line, broken, 1), encoding="utf-8")
            word, first = outcome(copy, tests)
            (copy / file).write_text(text, encoding="utf-8")
            noticed += word == "noticed"
            click.echo(f"{word}: {Path(file).name}: {what}{first}")
    click.echo(f"{noticed} of {len(BREAKS[which])} noticed")
    sys.exit(noticed != len(BREAKS[which]))


def outcome(copy: Path, tests: tuple[str, ...]) -> tuple[str, str]:
    """Run *tests* in *copy*; return what came of it, and the test that failed."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests]
    environment = {**os.environ, "PYTHONPATH": str(copy / "src")}
    try:
        done = subprocess.run(
            command, check=False, cwd=copy, env=environment, capture_output=True, text=True,
            timeout=WITHIN_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return "noticed", " (by hanging)"
    failed = next((x for x in done.stdout.splitlines() if x.startswith("FAILED ")), "")
    first = failed.partition("::")[2].partition(" ")[0]
    word = {0: "NOT NOTICED", 1: "noticed"}.get(done.returncode, "did not run")
    return word, f" ({first})" if first else ""


if __name__ == "__main__":
    main()
