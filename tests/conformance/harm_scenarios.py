"""Small loads of every kind for the no-harm test: plain data, drawn by hypothesis.

A scenario prints as the code that makes it, so one that failed is kept by pasting it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple

from hypothesis import strategies as st

from headway.engines.virtual import VirtualCall
from headway.latency import profile
from headway.latency.model import StepShape

H100 = profile.load("llama-3.1-8b@h100")
BLOCK = 16

LONGEST_CHAT = 1_000_000
"""Tokens that the turns of a chat may share: all that they have."""

NUM_WARM_UP = 34
"""Requests of the traffic before: enough that the server has measured at which rate it works."""


class Ask(NamedTuple):
    """One request. Spans in milliseconds of a machine of scale 1; ``None`` is not promised.

    ``gap_ms`` counts from the arrival before; ``chat`` names the conversation whose earlier turns
    the prompt begins with; ``limit`` is the client's bound on the output.
    """

    gap_ms: float
    prompt: int
    output: int
    ttft_ms: float | None = None
    tbt_ms: float | None = None
    jct_ms: float | None = None
    weight: float = 1.0
    chat: int | None = None
    limit: int | None = None
    leaves_after_ms: float | None = None

    def __repr__(self) -> str:
        """Show what is not usual only: scenarios are long."""
        usual = self._field_defaults
        shown = [f"{k}={v!r}" for k, v in self._asdict().items() if k in usual and v != usual[k]]
        return f"Ask({', '.join([*map(repr, self[:3]), *shown])})"


@dataclass(frozen=True)
class Features:
    """What people leave on. Which request uses it follows from ``seed``.

    Attributes:
        groups: Groups of layers, as :mod:`headway.engines.vllm.kv_cache_specs` names them.
        num_slots: Adapters a step may use; 0 serves none.
        grammars: Whether some requests wait for a grammar.
        connector: Whether some prompts' KV lies elsewhere.
        num_drafts: Draft tokens that a stream may have verified in a step.
        whole: Prompts are computed at once.
    """

    seed: int = 0
    groups: tuple[str, ...] = ("full",)
    num_slots: int = 0
    grammars: bool = False
    connector: bool = False
    num_drafts: int = 0
    whole: bool = False


@dataclass(frozen=True)
class Scenario:
    """A load and the server it meets.

    Attributes:
        num_blocks: Blocks of the KV cache that requests can use.
        scale: Multiplies every step and every span, so that the model's first guess is wrong by
            much, in either direction.
        warm: Whether other traffic was served before.
        max_wait_ms: The bound on a wait; ``None`` is the default's five minutes.
        on_sim: Headway runs on our own engine; stock always on vLLM's.
        features: What the server and its clients use beside; ``None`` is nothing.
    """

    asks: tuple[Ask, ...]
    num_blocks: int
    overload: str = "demote"
    caching: bool = True
    warm: bool = False
    max_num_seqs: int = 256
    budget: int = 2048
    asynchronous: bool = False
    scale: float = 1.0
    max_wait_ms: float | None = None
    on_sim: bool = False
    features: Features | None = None

    def headway(self) -> dict[str, Any]:
        """Return Headway's settings."""
        settings: dict[str, Any] = {"policy": "headway", "overload": self.overload}
        if self.max_wait_ms is not None:
            settings["options"] = {"max_wait_s": self.max_wait_ms * self.scale / 1000}
        return settings

    def calls(self) -> list[VirtualCall]:
        """Return the requests under their names, in order of arrival."""
        at_s = 0.0
        calls: list[VirtualCall] = []
        if self.warm:
            longest = max(ask.prompt for ask in self.asks)
            calls = [call_of(f"w{i:02d}", 0.0, Ask(0, 20, 2), 1.0) for i in range(NUM_WARM_UP - 2)]
            calls += [
                call_of("w-stream", 0.0, Ask(0, 20, 80), 1.0),
                call_of("w-long", 0.0, Ask(0, longest, 1), 1.0),
            ]
            at_s = self.scale * (5.0 + sum(prompt_ms(c.num_prompt_tokens) for c in calls) / 1000)
        for i, ask in enumerate(self.asks):
            at_s += ask.gap_ms * self.scale / 1000
            calls.append(call_of(f"r{i:02d}", at_s, ask, self.scale))
        return calls


def call_of(name: str, at_s: float, ask: Ask, scale: float) -> VirtualCall:
    """Return the call of *ask*: the only place that knows how calls share a prefix."""
    spans = {"slo_ttft_ms": ask.ttft_ms, "slo_tbt_ms": ask.tbt_ms, "slo_jct_ms": ask.jct_ms}
    xargs = {key: span * scale for key, span in spans.items() if span is not None}
    if xargs and ask.weight != 1.0:
        xargs["slo_weight"] = ask.weight
    leaves_ms = ask.leaves_after_ms
    return VirtualCall(
        name,
        at_s,
        ask.prompt,
        ask.output,
        xargs,
        ask.limit,
        abort_at_s=None if leaves_ms is None else at_s + leaves_ms * scale / 1000,
        hash_ids=() if ask.chat is None else (f"chat {ask.chat}",),
        hash_tokens=LONGEST_CHAT,
    )


def prompt_ms(num_tokens: int) -> float:
    """Return what a prompt alone takes in one step on a machine of scale 1."""
    return 1000 * H100.step_s(StepShape().with_chunk(num_tokens, 0))


def decode_ms(num_tokens: int) -> float:
    """Return what a stream's step alone takes on a machine of scale 1."""
    return 1000 * H100.step_s(StepShape(0, 0, 1, num_tokens))


def blocks_of(ask: Ask) -> int:
    """Return the blocks that a request holds at its end."""
    return -(-(ask.prompt + ask.output + 1) // BLOCK)


# -- drawing ----------------------------------------------------------------------------------

PROMPTS = ((1, 200), (100, 2_000), (1_000, 6_000))
OUTPUTS = ((1, 10), (1, 10), (8, 60))
KINDS = ("", "", "t", "t", "tg", "tg", "g", "e", "te", "tge")
TIGHT = (0.01, 0.1, 0.25, 0.5, 0.8, 1.05, 1.3, 2.0, 5.0, 100.0)
"""Promises in units of what the request alone takes when nothing is cached."""

PACES = (0.0, 0.3, 1.0, 2.5, 3.5, 6.0)
"""Time between arrivals in units of a prompt: none is a burst, three and more are light load."""

LIGHT_PACES = (2.5, 3.5, 6.0)


def asks(rng: Random, num: int, promised: bool, pace: float, chatty: bool) -> list[Ask]:
    """Return requests; turns of a chat grow by the answer before and a new question."""
    chats: dict[int, int] = {}
    made: list[Ask] = []
    before_ms = 0.0
    for _ in range(num):
        chat = rng.choice((None, 0, 0, 1, 2)) if chatty else None
        prompt, output = rng.randint(*rng.choice(PROMPTS)), rng.randint(*rng.choice(OUTPUTS))
        if chat is not None:
            if chat in chats:
                prompt = chats[chat] + min(prompt, rng.randint(1, 120))
            chats[chat] = prompt + output
        kind = rng.choice(KINDS) if promised else ""
        alone_ms, step_ms = prompt_ms(prompt), decode_ms(prompt)
        whole_ms = alone_ms + output * step_ms
        gap_ms = pace * before_ms * rng.choice((0.6, 1.0, 1.0, 2.0, 10.0))
        before_ms = alone_ms
        made.append(
            Ask(
                round(gap_ms, 1),
                prompt,
                output,
                round(alone_ms * rng.choice(TIGHT), 2) if "t" in kind else None,
                round(step_ms * rng.choice(TIGHT), 2) if "g" in kind else None,
                round(whole_ms * rng.choice(TIGHT), 2) if "e" in kind else None,
                rng.choice((1.0, 1.0, 1.0, 3.0)) if kind else 1.0,
                chat,
                rng.choice((None, None, None, 3)),
                round(whole_ms * rng.choice((0.1, 1.0)), 1) if rng.random() < 0.08 else None,
            )
        )
    return made


def questions(rng: Random, num: int, light: bool) -> list[Ask]:
    """Return questions about one document, promised what only a cached prompt can keep.

    A stream without a promise runs beside them, so that the server is never idle.
    """
    document = rng.randint(2_000, 6_000)
    read_ms = prompt_ms(document)
    made = [Ask(0.0, document, 1, chat=0)]
    for i in range(num - 1):
        own = rng.randint(1, 120)
        prompt, answer = document + own, rng.randint(1, 10)
        seldom_ms = rng.choice((20.0, 40.0)) if light else rng.choice((0.0, 2.0, 10.0))
        gap_ms = seldom_ms if i or not light else 2.0 * read_ms
        if i == 0:
            made.append(Ask(gap_ms, 20, 20 * num))
        ttft_ms = rng.choice((0.3, 0.5, 0.8)) * read_ms
        made.append(Ask(gap_ms, prompt, answer, ttft_ms=round(ttft_ms, 2), chat=0))
    return made


@st.composite
def scenarios(draw: st.DrawFn, light: bool = False) -> Scenario:
    """Return any load that this test knows, or one that is light more often than not.

    The requests come from one seed: drawn one by one they would be the same few simple ones most
    of the time.
    """
    rng = Random(draw(st.integers(0, 2**32 - 1)))
    num = draw(st.integers(3, 14 if light else 25))
    pace = rng.choice(LIGHT_PACES if light else PACES)
    if is_about_one := rng.random() < 0.25:
        made = questions(rng, num, light)
    else:
        made = asks(rng, num, light or rng.random() < 0.6, pace, rng.random() < 0.5)
    largest = max(map(blocks_of, made))
    together = sum(map(blocks_of, made))
    room = rng.choice((0.4, 1.5, 1.5) if light else (0.0, 0.1, 0.4, 1.5, 1.5, 1.5))
    work_ms = sum(prompt_ms(ask.prompt) for ask in made)
    max_wait = rng.choice((None, None, 0.3, 0.6, 2.0))
    scale = rng.choice((1.0, 1.0, 0.05, 20.0))
    return Scenario(
        tuple(made),
        math.ceil(largest + room * (together - largest)) + 1,
        rng.choice(("demote", "refuse")),
        caching=is_about_one or rng.random() < 0.7,
        warm=rng.random() < 0.5,
        max_num_seqs=rng.choice((256, 16) if light else (256, 256, 16, 3, 1)),
        budget=rng.choice((2048, 8192, 512)),
        asynchronous=rng.random() < 0.5,
        scale=scale,
        max_wait_ms=None if max_wait is None else round(max_wait * work_ms, 1),
        on_sim=rng.random() < 0.2,
    )
