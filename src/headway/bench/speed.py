"""How fast this machine serves, so that a load means the same on every machine.

A fixed number of requests a second is a stroll for one laptop and a collapse for another. The
demo therefore asks for a *load*: the share of the engine's time its requests need. Likewise a gap
that one laptop keeps with ease is on another shorter than a step, and no scheduler keeps it: there
the demo promises less.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import aiohttp

from headway.bench.access import Access
from headway.errors import HeadwayError
from headway.slo import SloBook
from headway.workloads.realtext import SLO_FILE
from headway.workloads.schema import WorkloadRequest

PROMPT_TOKENS = 1000
STREAMS = 8
NUM_IDS = 30_000
"""Token ids that prompts are made of; the smallest vocabularies of today's models have 32,000."""
STREAM_TOKENS = 40
TIMEOUT_S = 300.0

STEPS_A_GAP = 3.0
"""Steps of eight streams that the shortest promised gap should have room for; as in
:func:`headway.bench.verify_rounds.promises`. With 1.4 to 1.8 of them, measured on a shared machine
(experiments/LOG.md, *Live, on a slow machine*), a step has no room for a prompt, and neither stock
vLLM nor Headway kept one chat in ten."""


@dataclass(frozen=True, slots=True)
class Speed:
    """Seconds of the engine a prompt token and an output token cost, the latter of 8 streams."""

    prompt_token_s: float
    output_token_s: float

    def rate_rps(self, workload: Sequence[WorkloadRequest], load: float) -> float:
        """Return the requests a second at which *workload* takes *load* of the engine's time.

        Outputs are counted at their bound, so the true load is somewhat lower.
        """
        work_s = sum(
            r.num_prompt_tokens * self.prompt_token_s + r.num_output_tokens * self.output_token_s
            for r in workload
        )
        return round(load * len(workload) / work_s, 2)

    def slowness(self) -> float:
        """Return how many times as long the demo's promises must be on this machine; at least 1.

        A chat's first token should leave time for a prompt of a thousand tokens, and its gaps for
        :data:`STEPS_A_GAP` steps.
        """
        chat = SloBook.load(SLO_FILE).classes["chat"]
        assert chat.ttft_s is not None
        assert chat.tbt_s is not None
        too_slow = max(
            PROMPT_TOKENS * self.prompt_token_s / chat.ttft_s,
            STEPS_A_GAP * STREAMS * self.output_token_s / chat.tbt_s,
        )
        return max(1.0, math.ceil(10 * too_slow) / 10)


def demo_book(slowness: float) -> SloBook:
    """Return the demo's promises, *slowness* times as long."""
    book = SloBook.load(SLO_FILE)

    def longer(span_s: float | None) -> float | None:
        return None if span_s is None else round(span_s * slowness, 3)

    classes = {
        name: replace(
            slo, ttft_s=longer(slo.ttft_s), tbt_s=longer(slo.tbt_s), jct_s=longer(slo.jct_s)
        )
        for name, slo in book.classes.items()
    }
    return replace(book, classes=classes)


async def measure_speed(url: str, model: str, access: Access | None = None) -> Speed:
    """Time one long prompt and eight short streams on an idle vLLM server.

    Raises:
        HeadwayError: The server does not answer.
    """
    try:
        async with (access or Access()).session(TIMEOUT_S) as session:

            async def complete(first_id: int, num_prompt: int, num_output: int) -> None:
                body = {
                    "model": model,
                    "prompt": [100 + (first_id + 7 * i) % NUM_IDS for i in range(num_prompt)],
                    "max_tokens": num_output,
                    "ignore_eos": True,
                }
                async with session.post(f"{url}/v1/completions", json=body) as response:
                    response.raise_for_status()
                    await response.read()

            prompts_s, streams_s = [], []
            for attempt in range(2):  # The first also warms up.
                begun_s = time.perf_counter()
                await complete(attempt, PROMPT_TOKENS, 1)
                prompts_s.append(time.perf_counter() - begun_s)
                begun_s = time.perf_counter()
                await asyncio.gather(
                    *(complete(1000 * i + attempt, 16, STREAM_TOKENS) for i in range(STREAMS))
                )
                streams_s.append(time.perf_counter() - begun_s)
    except (aiohttp.ClientError, TimeoutError) as error:
        raise HeadwayError(f"Cannot measure the speed of {url}: {error}.") from None
    return Speed(min(prompts_s) / PROMPT_TOKENS, min(streams_s) / (STREAM_TOKENS * STREAMS))
