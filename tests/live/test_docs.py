"""The docs' blocks that need a server, against one that runs as the tutorial says."""

from __future__ import annotations

import importlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headway import __file__ as package
from headway.bench.server import LiveServer

pytestmark = pytest.mark.live

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "docs"))
docs_blocks: Any = importlib.import_module("docs_blocks")

DOCUMENTED = ("http://localhost:8000", "http://127.0.0.1:8000")
BLOCKS = [
    block for page in docs_blocks.pages() for block in docs_blocks.blocks_of(page) if block.is_live
]
BLOCKS.sort(key=lambda block: block.path != "docs/tutorial.md")  # It breaks the first promises.


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """The tutorial's server, with the classes that the clients' page names."""
    folder: Path = tmp_path_factory.mktemp("docs")
    (folder / "slo.toml").write_text("[classes.chat]\nttft_s = 60\ntbt_s = 10\n")
    args = ["smollm2", "--page", "--slo", str(folder / "slo.toml")]
    with LiveServer(args, folder / "server.log") as running:
        yield running


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_block_against_a_server(block: Any, server: LiveServer, tmp_path: Path) -> None:
    """A shell block's commands end well and say what the page says; a Python block runs."""
    text = block.text
    for url in DOCUMENTED:
        text = text.replace(url, server.url)
    if block.language == "python":
        run([sys.executable, "-c", text], tmp_path)
        return
    for command in docs_blocks.commands_in(text):
        if command[0] == "curl":
            check_answer(command, run([*command, "--silent", "--max-time", "300"], tmp_path))
        else:
            extra = [*shlex.split(block.words), "--url", server.url]
            said = run([sys.executable, "-m", *command, *extra], tmp_path)
            check_said(command[1], said)


def run(command: list[str], folder: Path) -> str:
    own = {"PYTHONPATH": str(Path(package).parents[1]), "NO_PROXY": "127.0.0.1,localhost"}
    environment = {**os.environ, **own}
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


def check_answer(command: list[str], said: str) -> None:
    if "X-Slo-Ttft-Ms: abc" in command:
        assert said.startswith("HTTP/1.1 400"), said
        assert "x-slo-ttft-ms" in said.lower()
    else:
        assert json.loads(said)["choices"], said


def check_said(command: str, said: str) -> None:
    expected = {"explain": "late by", "top": "KV cache", "bench": "requests to"}
    assert expected[command] in said, said
    print(said)
