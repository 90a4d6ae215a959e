"""What starts servers ends like Ctrl-C whatever ends it: no traceback, no server left."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
from asyncio.subprocess import PIPE
from pathlib import Path

import pytest
from wire import Exchange, chunk, serving

VERIFY = "import sys; from headway.cli.main import main; main(['verify', *sys.argv[1:]])"
BACKGROUND = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); "
"""What a shell does to a command it runs with ``&`` in a script."""

HANGING = """
import http.server, json, os, subprocess, sys, time
child = subprocess.Popen(["sleep", "600"])
open("child", "w").write(str(child.pid))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"data": [{"id": "m", "owned_by": "vllm"}]}).encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body)))
        self.end_headers(); self.wfile.write(body)
    def do_POST(self):
        open("hangs", "w").close(); time.sleep(600)
    def log_message(self, *args): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler)\
.serve_forever()
"""

HEADWAY_SERVE = (sys.executable, "-c", HANGING)


class Hanging:
    """A vLLM without a model that answers some generations, and the others never.

    Args:
        completions: How many on ``/v1/completions``.
        chats: How many on ``/v1/chat/completions``.
    """

    def __init__(self, completions: int, chats: int) -> None:
        self.left = {"/v1/completions": completions, "/v1/chat/completions": chats}
        self.hangs = asyncio.Event()

    async def __call__(self, exchange: Exchange) -> None:
        if exchange.path == "/v1/models":
            await exchange.answer(200, {"data": [{"id": "m", "owned_by": "vllm"}]})
        elif exchange.path not in self.left:
            await exchange.answer(404, {})
        elif not self.left[exchange.path]:
            self.hangs.set()
            await asyncio.sleep(600)
        else:
            self.left[exchange.path] -= 1
            await self._generate(exchange)

    async def _generate(self, exchange: Exchange) -> None:
        if exchange.path == "/v1/completions":
            await exchange.answer(200, {"choices": [{"token_ids": [1, 1]}]})
            return
        first, last = chunk("a"), chunk("b", "length")
        first["choices"][0]["token_ids"], last["choices"][0]["token_ids"] = [1], [2]
        await exchange.stream(first, last)


@pytest.mark.parametrize(
    ("number", "before"),
    [
        (signal.SIGINT, ""),
        (signal.SIGTERM, ""),
        (signal.SIGTERM, BACKGROUND),
        (signal.SIGHUP, ""),
    ],
    ids=["Ctrl-C", "SIGTERM", "SIGTERM in the background", "closed terminal"],
)
@pytest.mark.parametrize(
    ("completions", "chats"), [(4, 0), (18, 3), (18, 680)], ids=["speed", "round", "answers"]
)
def test_a_stopped_verify_says_so(
    completions: int, chats: int, number: signal.Signals, before: str, tmp_path: Path
) -> None:
    """While the speed is measured, a round runs or answers are compared: one sentence, code 130."""

    async def stopped() -> tuple[int | None, str, str]:
        stock = Hanging(completions, chats)
        async with serving(stock) as url, serving(Hanging(0, 0)) as other:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", before + VERIFY, "--url", url, "--url", other,
                cwd=tmp_path, stdout=PIPE, stderr=PIPE,
            )  # fmt: skip
            await asyncio.wait_for(stock.hangs.wait(), 60)
            process.send_signal(number)
            out, err = await asyncio.wait_for(process.communicate(), 60)
        return process.returncode, out.decode(), err.decode()

    code, out, err = asyncio.run(stopped())
    assert (code, err) == (130, "")
    assert "Stopped; no server that was started here is left." in out


def test_nohup_is_respected(tmp_path: Path) -> None:
    """A closed terminal ends nothing that was told to outlive it."""
    script = (
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN);"
        "from headway.bench.server import stop_on_signals; stop_on_signals();"
        "signal.raise_signal(signal.SIGHUP); print('goes on')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout) == (0, "goes on\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_servers_it_started_end_with_it(number: signal.Signals, tmp_path: Path) -> None:
    """With all that they started."""
    program = (
        f"import headway.bench.verify_servers as s, sys; s.HEADWAY_SERVE = {HEADWAY_SERVE!r}; "
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program + VERIFY, "smollm2"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    while not (tmp_path / "hangs").exists():
        assert process.poll() is None
        select.select([], [], [], 0.1)
    child = os.pidfd_open(int((tmp_path / "child").read_text()))
    process.send_signal(number)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130, out
    assert "Traceback" not in out
    assert select.select([child], [], [], 30.0)[0]
