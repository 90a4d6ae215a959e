"""Question: does breaking one line of the KV ledger make a test fail?

Breaks the lines below one at a time in a copy of the project, and runs the ledger's tests there.

    python experiments/mutations/run.py
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import click

ROOT = Path(__file__).parents[2]
TESTS = ("tests/unit/test_reserve.py", "tests/unit/test_lending.py", "tests/unit/test_cacheopt.py",
         "tests/gold/test_ledger_twin.py")  # fmt: skip
LEDGER, LENDING = "src/headway/policy/kv/ledger.py", "src/headway/policy/kv/lending.py"

BREAKS = (
    (LEDGER, "            self.claims.discard(name)\n", "            pass\n"),
    (LEDGER, "        self.claims.discard(request_id)\n", ""),
    (LEDGER, "            self.lending.leave(request_id)\n", "            pass\n"),
    (LEDGER, "            self._outgrown.add(name)\n", "            pass\n"),
    (LEDGER, "self.leave(self._pencilled.pop())", "self._pencilled.pop()"),
    (LENDING, ">= self.buffer_tokens", "> self.buffer_tokens"),
    (LENDING, "self._lend(owner, lender, resident.reserved_tokens)", "pass"),
    (LENDING, "self._lend(resident.owner, lender, -resident.reserved_tokens)", "pass"),
    (LENDING, "        self._by_room.remove((resident.room, key))\n        del", "        del"),
    (LENDING, "max(self._residents[key].horizon, finish)", "finish"),
    (LENDING, "self._attach(name, guest, owner)", "self._attach(name, guest, None)"),
)


@click.command()
def main() -> None:
    """Break each line and count how many breaks a test notices."""
    noticed = 0
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        for folder in ("src", "tests"):
            shutil.copytree(ROOT / folder, copy / folder)
        shutil.copy(ROOT / "pyproject.toml", copy)
        for file, line, broken in BREAKS:
            text = (ROOT / file).read_text(encoding="utf-8")
            if line not in text:
                raise click.ClickException(f"{file} has no line {line!r} any more.")
            (copy / file).write_text(text.replace(line, broken, 1), encoding="utf-8")
            command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *TESTS]
            environment = {**os.environ, "PYTHONPATH": str(copy / "src")}
            done = subprocess.run(
                command, check=False, cwd=copy, env=environment, capture_output=True
            )
            (copy / file).write_text(text, encoding="utf-8")
            noticed += done.returncode == 1
            word = {0: "NOT NOTICED", 1: "noticed"}.get(done.returncode, "did not run")
            click.echo(f"{word}: {Path(file).name}: {line.strip()}")
    click.echo(f"{noticed} of {len(BREAKS)} noticed")
    sys.exit(noticed != len(BREAKS))


if __name__ == "__main__":
    main()
