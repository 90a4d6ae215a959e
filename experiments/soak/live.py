"""Question: after a quarter of an hour of careless clients, is anything lost, kept or grown?

``headway serve smollm2 --page`` under bursts of chats and documents. Of every ten clients two hang
up (before the answer or in the middle of it), two read slower than the model writes, one asks for
what it cannot get, and the rest behave. Memory of every process of the server is sampled every two
seconds. Bounds: every request is answered to its end, or refused in words; the server is empty
afterwards, by vLLM's metrics and by ``/headway/state``; memory is flat within 3 % between the first
quarter of the time and the last. Writes live.json and live.md; exit code 1 when a bound is missed.
``--control`` asks the same of plain vLLM, which shows what of the growth is the engine's, and
writes control.json and control.md.

    python experiments/soak/live.py [--control] [--minutes 15] [--out FOLDER]
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import sys
import time
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import aiohttp
import click
import psutil

from headway.bench.client import chunks
from headway.bench.probe import scrape
from headway.bench.provenance import commit, machine
from headway.bench.server import LiveServer, stop_on_signals
from headway.bench.words import message_of
from headway.workloads.realtext import made_up_prompt

HERE = Path(__file__).parent
SERVER = ("smollm2", "--block-size", "32", "--num-gpu-blocks-override", "160",
          "--max-model-len", "2048")  # fmt: skip
WHO = {"live": ("--page",), "control": ("--policy", "stock")}
WARM_UP_S = 30.0
"""Buffers and caches of a new server grow for a while; the first quarter begins after it."""

BURST_EVERY_S = 20.0
BURST = 16
MOST_CLIENTS = 40
"""At once. A machine slower than expected is sent fewer requests, so that none waits for ever."""

SAMPLE_EVERY_S = 2.0
ANSWER_WITHIN_S = 300.0
FLAT_WITHIN = 0.03
MANNERS = ("good",) * 5 + ("hangs up", "hangs up at once", "slow", "slow", "mistaken")
PROMISES: tuple[dict[str, Any], ...] = (
    {},
    {"slo": {"ttft_ms": 2000, "tbt_ms": 400}},
    {"slo": {"ttft_ms": 20}},
    {"slo": {"jct_ms": 60_000}},
)


class Clients:
    """Everybody who asks, and how it ended for them."""

    def __init__(self, url: str, seed: int) -> None:
        self.url = url
        self.ends: Counter[str] = Counter()
        self.lost: list[str] = []
        self._rng = Random(seed)
        self._num = 0
        self._num_open = 0

    async def go_on(self, session: aiohttp.ClientSession, until_s: float) -> None:
        """Send a burst now and then, and single requests in between; wait for all."""
        async with asyncio.TaskGroup() as group:
            next_burst_s = time.monotonic()
            while time.monotonic() < until_s:
                if time.monotonic() >= next_burst_s and self._num_open <= MOST_CLIENTS - BURST:
                    next_burst_s = time.monotonic() + BURST_EVERY_S
                    for _ in range(BURST):
                        group.create_task(self._one(session))
                if self._num_open < MOST_CLIENTS - BURST:
                    group.create_task(self._one(session))
                await asyncio.sleep(self._rng.expovariate(0.5))

    async def _one(self, session: aiohttp.ClientSession) -> None:
        """Be one client, with the manners its number gives it."""
        number, rng = self._num, Random(self._num)
        self._num += 1
        manners = MANNERS[number % len(MANNERS)]
        prompt = made_up_prompt(rng.choice((20, 60, 600)), number)
        if manners == "mistaken":
            prompt = made_up_prompt(4000, number)  # More than the model can read.
        body = {
            "model": "smollm2",
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": rng.randrange(8, 96),
            "stream": True,
            "temperature": 0,
            **rng.choice(PROMISES),
        }
        self._num_open += 1
        try:
            async with asyncio.timeout(ANSWER_WITHIN_S):
                end = await self._ask(session, body, manners, rng)
        except (TimeoutError, aiohttp.ClientError) as error:
            end = f"lost: {type(error).__name__} {error}"
        finally:
            self._num_open -= 1
        if end.startswith("lost"):
            self.lost.append(f"request {number} ({manners}): {end}")
            end = "lost"
        self.ends[end] += 1

    async def _ask(
        self, session: aiohttp.ClientSession, body: dict[str, Any], manners: str, rng: Random
    ) -> str:
        url = f"{self.url}/v1/chat/completions"
        if manners == "hangs up at once":
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(rng.uniform(0.0, 1.0)):
                    async with session.post(url, json=body) as answer:
                        await answer.read()
            return "hung up"
        async with session.post(url, json=body) as answer:
            if answer.status in (400, 429):
                sentence = message_of(await answer.text())
                expected = manners == "mistaken" or answer.status == 429
                return f"answered {answer.status}" if expected else f"lost: 400 {sentence}"
            if answer.status != 200:
                return f"lost: {answer.status} {await answer.text()}"
            return await self._read(answer, manners, rng)

    @staticmethod
    async def _read(answer: aiohttp.ClientResponse, manners: str, rng: Random) -> str:
        """Read the stream as this client does; return how it ended."""
        leaves_after, reason = rng.randrange(1, 30), None
        number = 0
        async for chunk in chunks(answer.content):
            number += 1
            if chunk.error:
                return f"lost: {chunk.error}"
            for choice in chunk.choices or ():
                reason = choice.finish_reason or reason
            if manners == "hangs up" and number >= leaves_after:
                return "hung up"
            if manners == "slow":
                await asyncio.sleep(0.3)
        if reason in ("stop", "length"):
            return "served slowly" if manners == "slow" else "served"
        return f"lost: the stream ended with {reason}"


class Memory:
    """Resident memory of a server's processes over time, in bytes."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self.samples: list[dict[str, int]] = []

    def sample(self) -> None:
        """Note what every process holds now, by the place it has in the server."""
        family = [self._root, *self._root.children(recursive=True)]
        row = {}
        for number, process in enumerate(family):
            with contextlib.suppress(psutil.NoSuchProcess):
                row[f"{number} {process.name()}"] = process.memory_info().rss
        self.samples.append(row)

    async def keep_sampling(self) -> None:
        """Sample until cancelled."""
        while True:
            self.sample()
            await asyncio.sleep(SAMPLE_EVERY_S)

    def quarters(self) -> list[dict[str, float]]:
        """Return the medians of each quarter of the samples, the sum of all processes included."""
        size = max(len(self.samples) // 4, 1)
        found = []
        for number in range(4):
            rows = self.samples[number * size : (number + 1) * size] or self.samples[-1:]
            sums = {"all": statistics.median(sum(row.values()) for row in rows)}
            for name in rows[-1]:
                sums[name] = statistics.median(row.get(name, 0) for row in rows)
            found.append(sums)
        return found


async def left(url: str, session: aiohttp.ClientSession, who: str) -> dict[str, Any]:
    """Return what the server still holds, once it has had half a minute to tell."""
    for _ in range(60):
        metrics = await scrape(url)
        held = {
            "vllm_running": metrics["vllm:num_requests_running"],
            "vllm_waiting": metrics["vllm:num_requests_waiting"],
            "vllm_kv_cache_usage": metrics["vllm:kv_cache_usage_perc"],
        }
        told: dict[str, Any] = {}
        if who == "live":
            async with session.get(f"{url}/headway/state") as answer:
                state = await answer.json()
            held |= {f"headway_{name}": state["now"][name] for name in ("running", "waiting")}
            told = {"dropped_messages": state["dropped"]}
        if not any(held.values()):
            break
        await asyncio.sleep(0.5)
    return held | told


async def soak(server: LiveServer, minutes: float, who: str) -> dict[str, Any]:
    """Load *server* for *minutes* and return what was seen."""
    assert server.pid is not None
    memory = Memory(server.pid)
    clients = Clients(server.url, seed=1)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        await clients.go_on(session, time.monotonic() + min(WARM_UP_S, 10 * minutes))
        sampling = asyncio.create_task(memory.keep_sampling())
        await clients.go_on(session, time.monotonic() + minutes * 60)
        sampling.cancel()
        server.check_alive()
        held = await left(server.url, session, who)
    return {
        "minutes": minutes,
        "ends": dict(sorted(clients.ends.items())),
        "offered": sum(clients.ends.values()),
        "lost": clients.lost,
        "held": held,
        "rss_bytes": memory.quarters(),
        "num_samples": len(memory.samples),
    }


def misses(seen: dict[str, Any]) -> list[str]:
    """Return the bounds that were missed, in words."""
    found = list(seen["lost"])
    found += [
        f"at the end {name} is {value}"
        for name, value in seen["held"].items()
        if value and name != "dropped_messages"
    ]
    first, last = seen["rss_bytes"][0]["all"], seen["rss_bytes"][-1]["all"]
    if last > first * (1 + FLAT_WITHIN):
        found.append(f"memory grew by {last / first - 1:.1%}")
    return found


def markdown(seen: dict[str, Any]) -> str:
    """Return the tables."""
    ends = ", ".join(f"{count} {what}" for what, count in seen["ends"].items())
    names = list(seen["rss_bytes"][0])
    lines = [
        f"{seen['minutes']:g} minutes, {seen['offered']} requests: {ends}.",
        "",
        f"RSS in MB; medians of {seen['num_samples'] // 4} samples a quarter.",
        "",
        "| process | quarter 1 | 2 | 3 | 4 | 4 over 1 |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name in names:
        values = [row.get(name, 0.0) for row in seen["rss_bytes"]]
        cells = " | ".join(f"{value / 1e6:.1f}" for value in values)
        lines.append(f"| {name} | {cells} | {values[-1] / values[0] - 1:+.2%} |")
    held = ", ".join(f"{name} {value:g}" for name, value in seen["held"].items())
    lines += ["", f"At the end: {held}.", ""]
    lines += [f"Bounds missed: {'; '.join(seen['misses']) or 'none'}.", ""]
    return "\n".join(lines)


@click.command()
@click.option("--control", "who", flag_value="control", help="Soak plain vLLM instead.")
@click.option("--minutes", default=15.0, show_default=True, type=click.FloatRange(0.1))
@click.option("--out", default=HERE, type=click.Path(path_type=Path, file_okay=False))
def main(who: str | None, minutes: float, out: Path) -> None:
    """Soak a server and write what was seen."""
    stop_on_signals()
    out.mkdir(parents=True, exist_ok=True)
    who = who or "live"
    with LiveServer([*SERVER, *WHO[who]], out / f"{who}.log", ready_within_s=900) as server:
        seen = asyncio.run(soak(server, minutes, who))
    seen["misses"] = misses(seen)
    document = {"schema": 1, "commit": commit(HERE.parent.parent), "machine": machine(), **seen}
    (out / f"{who}.json").write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    (out / f"{who}.md").write_text(markdown(seen), encoding="utf-8")
    click.echo(markdown(seen))
    sys.exit(1 if seen["misses"] else 0)


if __name__ == "__main__":
    main()
