"""Made-up requests of three workloads, and what each step of a server computes of them.

Needs nothing but Python.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

WORKLOADS = {"chat": (1020, 129), "retrieval": (3500, 40), "long answers": (160, 790)}
"""Median prompt and output tokens; both log-normal with SPREAD, cut to what a slot holds."""
SPREAD = 0.8
STEP_TOKENS = (64, 2048)
"""Least and most tokens of a step with prompts: a server that keeps promises uses both ends."""
REDRAW_EVERY = 40
"""Steps until the workload, the step's tokens and the number of requests are drawn again."""


class Part(NamedTuple):
    """What one request computes in a step: *num_tokens* behind *start* computed ones."""

    slot: int
    start: int
    num_tokens: int
    is_decode: bool


@dataclass
class Request:
    slot: int
    num_prompt_tokens: int
    num_output_tokens: int
    num_computed: int = 0


class Traffic:
    """Requests of three workloads in turn; as many run at once as was drawn, within the slots."""

    def __init__(self, num_slots: int, max_context: int, seed: int) -> None:
        self._rng = random.Random(seed)
        self._max_context = max_context
        self._free = list(range(num_slots))
        self._num_slots = num_slots
        self._running: list[Request] = []
        self._num_steps = 0
        self.workload, self.step_tokens, self._target = "", 0, 0

    def next_step(self, divisor: int) -> list[Part]:
        """Return the next step, decodes first; at most ``num_slots / divisor`` requests run."""
        if self._num_steps % REDRAW_EVERY == 0:
            self._redraw(divisor)
        self._num_steps += 1
        if len(self._running) < self._target:
            self._begin()
        decodes = [r for r in self._running if r.num_computed >= r.num_prompt_tokens]
        parts = [Part(r.slot, r.num_computed, 1, True) for r in decodes]
        left = max(self.step_tokens - len(parts), 1)
        for request in self._running:
            lacking = request.num_prompt_tokens - request.num_computed
            if lacking > 0 and left > 0:
                chunk = min(lacking, left)
                parts.append(Part(request.slot, request.num_computed, chunk, False))
                left -= chunk
        self._advance({part.slot: part.num_tokens for part in parts})
        return parts

    def _redraw(self, divisor: int) -> None:
        self.workload = self._rng.choice(list(WORKLOADS))
        self.step_tokens = self._between(*STEP_TOKENS)
        self._target = self._between(1, max(self._num_slots // divisor, 1))

    def _between(self, least: int, most: int) -> int:
        """Return a whole number, log-uniform."""
        return min(int(least * ((most + 1) / least) ** self._rng.random()), most)

    def _begin(self) -> None:
        prompt, output = (
            max(round(median * self._rng.lognormvariate(0.0, SPREAD)), 2)
            for median in WORKLOADS[self.workload]
        )
        output = min(output, self._max_context // 2)
        prompt = min(prompt, self._max_context - output)
        self._running.append(Request(self._free.pop(), prompt, output))

    def _advance(self, num_tokens: dict[int, int]) -> None:
        for request in self._running:
            request.num_computed += num_tokens.get(request.slot, 0)
            # The last token of an answer is sampled and never computed.
            if request.num_computed >= request.num_prompt_tokens + request.num_output_tokens - 1:
                self._free.append(request.slot)
        self._running = [r for r in self._running if r.slot not in self._free]


def shape_of(parts: Sequence[Part]) -> dict[str, float]:
    """Return the fields of ``headway.latency.model.StepShape``."""
    decodes = [part for part in parts if part.is_decode]
    chunks = [part for part in parts if not part.is_decode]
    return {
        "num_prefill_tokens": sum(part.num_tokens for part in chunks),
        "num_prefills": len(chunks),
        "num_decodes": len(decodes),
        "sum_context_tokens": sum(part.start for part in decodes),
        "chunk_context": sum(p.num_tokens * (p.start + p.num_tokens / 2) for p in chunks),
    }
