"""Check the types of every experiment, so that each can still be run.

Each folder is checked by itself: its files import each other by their bare names.

    python scripts/check_experiments.py
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from mypy import api

ROOT = Path(__file__).parent.parent
OTHERS = ("src", "tests/conformance", "scripts/docs")
"""Where experiments import from, beside their own folder."""

FLAGS = ("--config-file=", "--check-untyped-defs", "--ignore-missing-imports",
         "--follow-imports=silent", "--no-site-packages")  # fmt: skip
"""Without site-packages only our own calls are held to their types; vLLM's take minutes to read."""


def main() -> int:
    """Print what mypy finds; return 1 if that is anything."""
    os.chdir(ROOT)
    failed = 0
    folders = sorted({file.parent for file in Path("experiments").rglob("*.py")})
    for folder in folders:
        os.environ["MYPYPATH"] = ":".join((*OTHERS, str(folder)))
        files = [str(file) for file in sorted(folder.glob("*.py"))]
        found, errors, status = api.run([*FLAGS, *files])
        if status:
            print(f"{found}{errors}", end="")
            failed += 1
    print(f"{len(folders)} folders of experiments, {failed} with errors.")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
