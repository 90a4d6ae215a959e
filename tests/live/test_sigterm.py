"""SIGTERM to a server under load: what a retry could save is told so, the rest ends or is told."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from headway.bench.server import LiveServer
from headway.study.recorded import verify
from headway.workloads.record_files import rows, run_of

pytestmark = pytest.mark.live

GRACE_S = 8
SHORT_TOKENS, LONG_TOKENS = 8, 4000
"""Well within the grace, also at 300 ms a token, as on two cores that others use; minutes."""

NUM_CLIENTS = 3
"""Who ask again and again, until there is no server."""

EXITS_WITHIN_S = GRACE_S + 12.0
"""The grace, and seconds of slack on a slow machine for what takes one."""

SLO_FILE = "[classes.chat]\nttft_s = 60\ntarget = 0.9\n"


@dataclass
class Left:
    """What clients saw of the end of a server, and what it left."""

    statuses: list[tuple[int, str, str | None]] = field(default_factory=list)
    """Of requests that came again and again: status, text, ``Connection``."""
    short: str = ""
    long: str = ""
    plain: tuple[int, str] = (0, "")
    health: tuple[int, str | None] = (0, None)
    new: tuple[int, dict[str, str], str] = (0, {}, "")
    signalled_unix_s: float = 0.0
    exit_code: int | None = None
    took_s: float = 0.0
    children: list[str] = field(default_factory=list)
    port: int = 0


def body(num_tokens: int, *, stream: bool) -> dict[str, Any]:
    question = [{"role": "user", "content": "Count to one thousand."}]
    return {"model": "smollm2", "messages": question, "max_tokens": num_tokens,
            "ignore_eos": True, "stream": stream, "slo": {"class": "chat"}}  # fmt: skip


class Clients:
    """All who talk to one server while it leaves."""

    def __init__(self, server: LiveServer, session: aiohttp.ClientSession) -> None:
        self.url = f"{server.url}/v1/chat/completions"
        self.health = f"{server.url}/health"
        self.session = session
        self.left = Left()

    async def read(self, num_tokens: int, begun: asyncio.Event) -> str:
        """Return a whole stream; *begun* is set at its first token."""
        async with self.session.post(self.url, json=body(num_tokens, stream=True)) as answer:
            assert answer.status == 200
            text = ""
            async for line in answer.content:
                text += line.decode()
                if '"content":"' in text:
                    begun.set()
            return text

    async def ask(self, num_tokens: int, *, stream: bool) -> tuple[int, dict[str, str], str]:
        request = body(num_tokens, stream=stream)
        async with self.session.post(self.url, json=request) as answer:
            return answer.status, dict(answer.headers), await answer.text()

    async def ask_for_ever(self, *, stream: bool) -> None:
        """A client that retries; ends when nobody listens any more."""
        while True:
            try:
                status, headers, text = await self.ask(4, stream=stream)
            except aiohttp.ServerDisconnectedError:
                continue  # Before a byte of an answer: a retry saves it.
            except aiohttp.ClientConnectionError:
                return
            self.left.statuses.append((status, text, headers.get("Connection")))
            await asyncio.sleep(0.05)

    async def see_it_leave(self, process: subprocess.Popen[bytes]) -> Left:
        """Have everything run, send the signal, and see."""
        begun = [asyncio.Event(), asyncio.Event()]
        long = asyncio.create_task(self.read(LONG_TOKENS, begun[0]))
        await begun[0].wait()
        plain = asyncio.create_task(self.ask(LONG_TOKENS, stream=False))
        crowd = [
            asyncio.create_task(self.ask_for_ever(stream=n % 2 == 0)) for n in range(NUM_CLIENTS)
        ]
        short = asyncio.create_task(self.read(SHORT_TOKENS, begun[1]))
        await begun[1].wait()
        self.left.signalled_unix_s, began_s = time.time(), time.monotonic()
        process.send_signal(signal.SIGTERM)
        while self.left.health[0] != 503:
            async with self.session.get(self.health) as health:
                self.left.health = health.status, health.headers.get("Connection")
        self.left.new = await self.ask(4, stream=True)
        self.left.short, self.left.long = await short, await long
        status, _, text = await plain
        self.left.plain = status, text
        self.left.exit_code = await asyncio.to_thread(process.wait, EXITS_WITHIN_S)
        self.left.took_s = time.monotonic() - began_s
        await asyncio.gather(*crowd)
        return self.left


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("sigterm")
    (folder / "slo.toml").write_text(SLO_FILE)
    return folder


@pytest.fixture(scope="module")
def left(root: Path) -> Left:
    """One server under load, ended by SIGTERM to it alone, as an orchestrator does."""
    args = ["smollm2", "--grace", str(GRACE_S), "--slo", str(root / "slo.toml"),
            "--record", str(root / "rec"), "--budgets", str(root / "budgets.json")]  # fmt: skip

    async def talk(server: LiveServer) -> Left:
        timeout = aiohttp.ClientTimeout(total=120)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            assert server._process is not None
            return await Clients(server, session).see_it_leave(server._process)

    with LiveServer(args, root / "server.log") as server:
        seen = asyncio.run(talk(server))
        listed = subprocess.run(
            ["ps", "-o", "stat=,args=", "--sid", str(server.pid)],
            capture_output=True, text=True, check=False,
        ).stdout.splitlines()  # fmt: skip
        seen.children = [line for line in listed if not line.startswith("Z")]
        seen.port = server.port
    return seen


def test_new_work_is_told_to_go_elsewhere(left: Left) -> None:
    """At once, while answers run: readiness too."""
    assert left.health == (503, "close")
    status, headers, text = left.new
    assert (status, headers["Connection"], headers["Retry-After"]) == (503, "close", "1")
    assert json.loads(text)["error"]["type"] == "ServiceUnavailableError"


def test_a_stream_that_ends_within_the_grace_is_whole(left: Left) -> None:
    """All of its tokens, its reason to finish, and the mark of its end."""
    assert left.short.rstrip().endswith("data: [DONE]")
    assert '"finish_reason":"length"' in left.short
    assert "error" not in left.short


def test_what_runs_beyond_the_grace_is_told(left: Left) -> None:
    """A stream by an error event, an answer that has not begun by 503."""
    *_, event, done = [line for line in left.long.splitlines() if line]
    assert json.loads(event.removeprefix("data: "))["error"]["code"] == 503
    assert done == "data: [DONE]"
    assert left.plain[0] == 503
    assert "shut down" in left.plain[1]


def test_no_request_is_lost_that_a_retry_could_save(left: Left) -> None:
    """Of those who ask again and again: whole answers, then 503, and nothing else."""
    assert {status for status, _, _ in left.statuses} == {200, 503}
    for status, text, connection in left.statuses:
        if status == 200:
            assert '"finish_reason":"length"' in text
        else:
            assert connection == "close"


def test_it_ends_in_time_with_nothing_left(left: Left) -> None:
    """Exit code 0, no process behind it, and the port is free for the next server."""
    assert left.exit_code == 0
    assert GRACE_S <= left.took_s < EXITS_WITHIN_S
    assert left.children == []
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # As any server does.
        probe.bind(("127.0.0.1", left.port))


def test_the_recording_is_whole(left: Left, root: Path) -> None:
    """Every request that came has its end in it, and a fresh core plans the same."""
    found = [row for _, row in rows(run_of(root / "rec"))]
    arrived = {row["request_id"] for row in found if row.get("event") == "Arrived"}
    finished = {row["request_id"] for row in found if row.get("event") == "Finished"}
    assert arrived == finished
    assert len(arrived) >= 3
    assert verify(run_of(root / "rec")) > 0


def test_the_budgets_are_kept(left: Left, root: Path) -> None:
    """Written when it ended, not only when it ran."""
    assert (root / "budgets.json").stat().st_mtime >= left.signalled_unix_s + GRACE_S - 1
