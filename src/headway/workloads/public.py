"""Where the public traces are that experiments and some tests read; none comes with Headway."""

from __future__ import annotations

import os
from pathlib import Path

TRACES_VARIABLE = "HEADWAY_TRACES"
"""Environment variable that names the folder. ``experiments/README.md`` says what is in it."""


def traces() -> Path:
    """Return the named folder, else ``shared/traces`` beside the checkout; it may not be there."""
    named = os.environ.get(TRACES_VARIABLE)
    return Path(named) if named else Path(__file__).parents[4] / "shared" / "traces"
