"""What live tests share."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def teach() -> Callable[..., None]:
    """Let a server compute a longer prompt than the tests ask for: until then it refuses nobody."""

    def ask(url: str, key: str = "") -> None:
        body = {"model": "smollm2", "prompt": "One two three. " * 60, "max_tokens": 2}
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        request = urllib.request.Request(
            f"{url}/v1/completions", json.dumps(body).encode(), headers
        )
        local = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with local.open(request, timeout=300) as answer:
            assert answer.status == 200

    return ask


@pytest.fixture(scope="session")
def run_engine() -> Callable[[Path, str], dict[str, Any]]:
    """Run a script, with one argument, in a process of its own; returns its ``RESULT`` line."""

    def run(script: Path, argument: str) -> dict[str, Any]:
        done = subprocess.run(
            [sys.executable, str(script), argument],
            capture_output=True,
            text=True,
            timeout=3600,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        line = next(x for x in done.stdout.splitlines() if x.startswith("RESULT "))
        result: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
        return result

    return run
