"""vLLM's own command line with Headway's flags, as the docs write them, and vLLM's own load.

One server, started by vLLM's command from ``docs/how-to/adopt.md``, with the class for engines
that schedule no step ahead, as vLLM's CPU platform needs it, and the page's middleware to look in.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from headway import __file__ as package
from headway.bench.server import LiveServer
from headway.engines.vllm import embedded
from headway.engines.vllm.api_server import LIVE_VIEW
from headway.engines.vllm.channel import CHANNEL_VARIABLE
from headway.engines.vllm.embedded import EMBEDDED_CPU_ARGUMENTS, QUIET_ENVIRONMENT

pytestmark = pytest.mark.live

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts" / "docs"))
docs_blocks: Any = importlib.import_module("docs_blocks")

SERVE = """
from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
from vllm.utils.argparse_utils import FlexibleArgumentParser
cli_env_setup()
command, parser = ServeSubcommand(), FlexibleArgumentParser(prog="vllm")
command.subparser_init(parser.add_subparsers())
args = parser.parse_args()
command.validate(args)
command.cmd(args)
"""
BENCH = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser(prog="vllm bench serve")
add_cli_args(parser)
main(parser.parse_args())
"""
"""What ``vllm serve`` and ``vllm bench serve`` do. The whole of ``vllm`` imports every command, and
with one of them code that not every CPU can run; it also asks for the version of a package "vllm",
and vLLM's build for CPUs has another name."""

LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))
ENVIRONMENT = {
    **QUIET_ENVIRONMENT,
    "PYTHONPATH": str(Path(package).parents[1]),
    "NO_PROXY": "127.0.0.1,localhost",
    "VLLM_LOGGING_LEVEL": "INFO",  # Other tests in this process may have asked for silence.
    "OMP_NUM_THREADS": str(min(8, os.cpu_count() or 1)),
}


def documented(page: str, start: list[str], word: str) -> list[str]:
    """Return the one command of a page that begins with *start* and has *word* among its words."""
    blocks = docs_blocks.blocks_of(ROOT / "docs" / "how-to" / page)
    commands = (c for b in blocks if b.language == "sh" for c in docs_blocks.commands_in(b.text))
    (found,) = [c for c in commands if c[: len(start)] == start and word in c]
    return list(found[len(start) :])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    folder: Path = tmp_path_factory.mktemp("own")
    (folder / "slo.toml").write_text("[classes.chat]\nttft_s = 60\ntbt_s = 30\n")
    args = documented("adopt.md", ["vllm", "serve"], "--additional-config")
    assert args[0] == "MODEL"
    args[0] = str(embedded.ensure())
    args[args.index("headway.vllm.Scheduler")] = "headway.vllm.SyncScheduler"
    args += ["--middleware", LIVE_VIEW, "--served-model-name", embedded.NAME]
    args += ["--distributed-executor-backend", "uni"]
    args += [word for words in EMBEDDED_CPU_ARGUMENTS for word in words]
    with (
        contextlib.chdir(folder),  # Where slo.toml is.
        LiveServer(
            args,
            folder / "server.log",
            ready_within_s=900,
            env={**ENVIRONMENT, CHANNEL_VARIABLE: str(folder / "channel")},
            program=(sys.executable, "-c", SERVE, "serve"),
        ) as running,
    ):
        yield running


def ask(server: LiveServer, body: dict[str, Any]) -> tuple[int, str]:
    """Return status and text of a completion."""
    data = json.dumps({"model": "smollm2", "prompt": "Hello", "max_tokens": 4, **body}).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{server.url}/v1/completions", data, headers)
    try:
        with LOCAL.open(request, timeout=300) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def promised(server: LiveServer, slo_class: str) -> float:
    """Return how many requests of a class ended, by the server's ``/metrics``."""
    with LOCAL.open(f"{server.url}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    assert "vllm:num_requests_running" in text
    lines = [line for line in text.splitlines() if line.startswith("headway_requests_promised")]
    found = [line for line in lines if f'slo_class="{slo_class}"' in line]
    return sum(float(line.rpartition(" ")[2]) for line in found)


def test_vllms_command_with_the_flags_keeps_promises(server: LiveServer) -> None:
    """A class of the file and a promise in ``vllm_xargs`` arrive; a mistake is 400 in words."""
    assert "Headway schedules: policy headway, overload demote." in server.log_path.read_text()
    chats, customs = promised(server, "chat"), promised(server, "custom")
    assert ask(server, {"slo": {"class": "chat"}})[0] == 200
    assert ask(server, {"vllm_xargs": {"slo_ttft_ms": 60_000}})[0] == 200
    status, text = ask(server, {"slo": {"class": "gold"}})
    assert status == 400
    assert "chat" in json.loads(text)["error"]["message"]
    assert (promised(server, "chat") - chats, promised(server, "custom") - customs) == (1, 1)


def bench(server: LiveServer, args: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run ``vllm bench serve`` against the server."""
    more = ["--base-url", server.url, "--save-result", "--result-filename", "bench.json"]
    return subprocess.run(
        [sys.executable, "-c", BENCH, *args, *more],
        cwd=folder,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )


def test_vllms_own_load_generator_names_promises(server: LiveServer, tmp_path: Path) -> None:
    """The clients' page's command: class by header, spans by body, in each of its requests."""
    args = documented("clients.md", ["vllm", "bench", "serve"], "--header")
    args[args.index("MODEL")] = str(embedded.ensure())
    args += ["--served-model-name", embedded.NAME]
    before = promised(server, "chat")
    done = bench(server, args, tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    result = json.loads((tmp_path / "bench.json").read_text())
    count = int(args[args.index("--num-prompts") + 1])
    assert (result["completed"], result["failed"]) == (count, 0)
    assert promised(server, "chat") - before >= count
    args[args.index("X-Slo-Class=chat")] = "X-Slo-Class=gold"
    refused = bench(server, [*args, "--ready-check-timeout-sec", "0"], tmp_path)
    assert json.loads((tmp_path / "bench.json").read_text())["completed"] == 0, refused.stdout
