"""What people leave on, on a real engine: nobody is lost, and no token differs from stock's."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import features
import pytest

pytestmark = pytest.mark.live

SCRIPT = Path(features.__file__)

Run = Callable[[Path, str], dict[str, Any]]

UNPRESSED = ("states alone", *features.EMBEDDINGS)
"""Where blocks never run short once a request has started."""


@pytest.mark.parametrize("name", [*features.FEATURES, *features.EMBEDDINGS])
def test_same_as_stock(name: str, run_engine: Run) -> None:
    """Under KV pressure, with promises that press and some that do not."""
    result = run_engine(SCRIPT, name)
    stock, ours = result["stock"], result["headway"]
    assert ours["answers"] == stock["answers"]
    assert ours["asides"] == 0
    assert ours["left"] == 0
    assert bool(ours["preemptions"]) == (name not in UNPRESSED)
    tried = features.FEATURES.get(name, features.Feature())
    assert bool(ours["accepted"]) == ("speculative_config" in tried.engine)
    if tried.has_grammars:
        plates, sizes = ours["answers"][1::4], ours["answers"][3::4]
        assert all(re.fullmatch(features.PLATE, text) for text in plates)
        assert all(set(json.loads(text)) == {"size", "is_new"} for text in sizes)
