"""A key that floods a server and one that asks quietly: clients, and legs of a run.

No leg is measured in seconds of the clock on the wall: what is promised is a multiple of what the
quiet key has alone on the same machine in the same minute, and who waits in vain gives up once the
server has answered so many others. A machine that stands still for ten seconds then costs one
request, in whichever leg it is.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp

from headway.bench.client import Call, RunClock, send
from headway.metrics import define
from headway.metrics.record import RequestRecord
from headway.slo import NO_PROMISE, Slo
from headway.slo_file import LOOK_EVERY_S
from headway.workloads.realtext import made_up_prompt

FLOOD_TOKENS, QUIET_TOKENS, OUTPUT_TOKENS = 100, 180, 8
"""Of a prompt of the flood and of the quiet key, and of everybody's answer. Of promises that cannot
all be kept those of long jobs are broken first: the quiet key asks what is hardest to keep. A flood
of prompts keeps the engine busy, and HTTP hardly."""

TTFT_TIMES, GAP_TIMES = 4.0, 8.0
"""What is promised, as multiples of the quiet key's medians alone: a step in flight, a step of its
own beside a dozen decodes, and a machine that is twice as slow a minute later."""

HANG_UP_TIMES = 2.0
"""After so many times the promised wait a flooding client hangs up, and asks again at once."""

PATIENCE = 10
"""The quiet client gives up when so many of the flood were answered since it asked; what it is
promised is the time of some six."""

LOOK_AGAIN_S = 0.02
"""A look at the flood costs nothing beside an answer, which takes half a second."""

NEVER_S = 600.0
"""Nobody waits so long for a server that works."""


@dataclass
class Flood:
    """Requests of a flood that ended."""

    ended: list[RequestRecord] = field(default_factory=list)
    is_over: bool = False

    @property
    def num_served(self) -> int:
        """How many were answered to the end."""
        return sum(record.finished for record in self.ended)

    async def until(self, is_so: Callable[[], bool]) -> None:
        """Wait for something that the flood brings about.

        Raises:
            TimeoutError: The server does not work.
        """
        async with asyncio.timeout(NEVER_S):
            while not is_so():
                await asyncio.sleep(LOOK_AGAIN_S)

    async def until_served(self, num_more: int) -> None:
        """Wait until so many more of the flood were answered."""
        served = self.num_served
        await self.until(lambda: self.num_served - served >= num_more)

    async def outlast(
        self, call: Coroutine[None, None, RequestRecord], patience: int = PATIENCE
    ) -> RequestRecord:
        """Return what came of a call until so many of the flood were answered."""
        asked, served = asyncio.create_task(call), self.num_served
        await self.until(lambda: asked.done() or self.num_served - served >= patience)
        asked.cancel()
        return await asked


@dataclass
class Flooded:
    """A server and its clients, on one clock.

    Attributes:
        slo_file: What the server reads; replaced as a whole.
        slo: What class ``chat`` promises now.
    """

    url: str
    session: aiohttp.ClientSession
    slo_file: Path
    slo: Slo = NO_PROMISE
    clock: RunClock = field(default_factory=RunClock)
    _seeds: itertools.count[int] = field(default_factory=itertools.count)

    async def ask(
        self, key: str, slo: Slo, num_tokens: int = QUIET_TOKENS, within_s: float = NEVER_S
    ) -> RequestRecord:
        """Return what came of one request; cancelled, it is recorded as aborted."""
        number = next(self._seeds)
        body = {
            "model": "smollm2",
            "messages": [{"role": "user", "content": made_up_prompt(num_tokens, number)}],
            "max_tokens": OUTPUT_TOKENS,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,
            "vllm_xargs": {"slo_class": "chat"} if slo.is_promise else {},
        }
        headers = {"Authorization": f"Bearer {key}"}
        at_s = self.clock.now_s()
        call = Call(f"r{number}", at_s, slo, body, num_tokens, headers)
        return (await send(self.session, self.url, call, self.clock, within_s)).record

    async def write(self, *lines: str, top: str = "") -> None:
        """Replace the SLO file; the next request is judged by it.

        Args:
            lines: What follows the promises of class ``chat``.
            top: What comes before.
        """
        chat = [top, "[classes.chat]", f"ttft_s = {self.slo.ttft_s}", f"tbt_s = {self.slo.tbt_s}"]
        new = self.slo_file.with_suffix(".new")
        new.write_text("\n".join([*chat, *lines, ""]), encoding="utf-8")
        new.rename(self.slo_file)
        await asyncio.sleep(LOOK_EVERY_S)

    async def alone(self, key: str, num_requests: int) -> list[RequestRecord]:
        """Return requests in sequence on an idle server, and promise multiples of their medians.

        They are judged by this promise too, and the flood's requests as well.
        """
        records = [await self.ask(key, self.slo) for _ in range(num_requests)]
        ttft_s = statistics.median(map(first_s, records))
        gap_s = statistics.median(g for r in records for g in define.gaps_s(r.emitted_at_s))
        self.slo = Slo(ttft_s=round(TTFT_TIMES * ttft_s, 3), tbt_s=round(GAP_TIMES * gap_s, 3))
        await self.write()
        return [replace(record, slo=self.slo) for record in records]

    async def beside(self, flood: Flood, key: str, num_requests: int) -> list[RequestRecord]:
        """Return requests in sequence beside a flood."""
        return [await flood.outlast(self.ask(key, self.slo)) for _ in range(num_requests)]

    @asynccontextmanager
    async def flood(self, key: str, num_streams: int, hang_up: bool = True) -> AsyncIterator[Flood]:
        """Ask so many streams at once, again and again; it has begun when half have ended."""
        flood = Flood()
        within_s = HANG_UP_TIMES * (self.slo.ttft_s or NEVER_S) if hang_up else NEVER_S

        async def stream() -> None:
            while not flood.is_over:
                flood.ended.append(await self.ask(key, self.slo, FLOOD_TOKENS, within_s))

        streams = [asyncio.create_task(stream()) for _ in range(num_streams)]
        try:
            await flood.until(lambda: len(flood.ended) >= num_streams / 2 and flood.num_served > 1)
            yield flood
        finally:
            flood.is_over = True
            for each in streams:
                each.cancel()  # A call that is cancelled is an answer: the loop ends by itself.
            await asyncio.gather(*streams)
            await self.ask(key, NO_PROMISE)  # Whoever hung up has left the engine by now.


def first_s(record: RequestRecord) -> float:
    """Return the seconds to the first token, ``inf`` where none came."""
    span_s = define.ttft_s(record.arrived_at_s, record.emitted_at_s)
    return float("inf") if span_s is None else span_s


def num_kept(records: Sequence[RequestRecord]) -> int:
    """Return how many kept everything they were promised."""
    return sum(record.attained for record in records)
