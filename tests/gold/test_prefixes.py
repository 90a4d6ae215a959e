"""What a waiting prompt will find, and who computes it, against walks over all its blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from headway.engines.prefix import ABSENT, CACHED, HELD, Prefixes
from headway.policy.live_requests import LiveRequests
from headway.request import Request, State
from headway.slo import NO_PROMISE, Slo

SIZE = 16


@dataclass
class Chain:
    """A cache that holds the first blocks of one chain, the first of them by somebody."""

    num_cached: int = 0
    num_held: int = 0
    num_asked: int = 0

    def look_up(self, request: object, index: int) -> int:
        self.num_asked += 1
        if index >= self.num_cached:
            return ABSENT
        return HELD if index < self.num_held else CACHED


def nameless(request: object, index: int) -> None:
    """Nobody's blocks are anybody else's."""


def walked(chain: Chain, num_tokens: int) -> tuple[int, int]:
    """The slow twin: every block from the start."""
    found = held = 0
    for index in range((num_tokens - 1) // SIZE):
        if index < chain.num_cached:
            found += 1
            held += index < chain.num_held
    return found * SIZE, held * SIZE


@pytest.mark.parametrize("seed", range(5))
def test_cursors_equal_a_walk(seed: int) -> None:
    """Whatever was cached, evicted, taken and let go since the last look."""
    rng = np.random.default_rng(seed)
    chain = Chain()
    prefixes = Prefixes(SIZE, chain.look_up, nameless)
    for _ in range(300):
        chain.num_cached = int(rng.integers(0, 40))
        chain.num_held = int(rng.integers(0, chain.num_cached + 1))
        num_tokens = int(rng.integers(1, 500))
        assert prefixes.find("a", None, num_tokens) == walked(chain, num_tokens)


def test_where_nothing_moved_a_look_costs_four_questions() -> None:
    """However long the prompt is."""
    chain = Chain(num_cached=3000, num_held=1000)
    prefixes = Prefixes(SIZE, chain.look_up, nameless)
    prefixes.find("a", None, 60_000)
    chain.num_asked = 0
    assert prefixes.find("a", None, 60_000) == (48_000, 16_000)
    assert chain.num_asked <= 4


def test_all_who_wait_are_looked_at_in_the_end() -> None:
    """Also those far behind; each change is told once."""
    chain, live = Chain(), LiveRequests()
    prefixes = Prefixes(SIZE, chain.look_up, nameless)
    for i in range(200):
        request = Request(f"r{i}", Slo(ttft_s=1.0), 0.0, 100, 10)
        request.due_at_s = float(i)
        live.arrive(request)
    chain.num_cached = 3
    told: set[str] = set()
    for _ in range(12):
        news = prefixes.news(0.0, live, live.requests)
        tokens = news.tokens if news is not None else {}
        assert told.isdisjoint(tokens)
        told.update(tokens)
        for name, (found, held) in tokens.items():
            request = live.requests[name]
            request.num_found_tokens, request.num_held_tokens = found, held
    assert told == live.requests.keys()


def test_a_preempted_request_has_something_left_to_compute() -> None:
    """Also when a token in flight came after it was preempted, and all others are cached."""
    chain, live = Chain(), LiveRequests()
    prefixes = Prefixes(SIZE, chain.look_up, nameless)
    request = Request("r", Slo(ttft_s=1.0), 0.0, 2 * SIZE, 10)
    request.move(State.RUNNING, 0.0, "started")
    request.move(State.PREEMPTED, 1.0, "preempted")
    live.arrive(request)
    request.num_output_tokens = 1
    chain.num_cached = 2
    news = prefixes.news(0.0, live, {"r": request})
    assert news is not None
    request.num_found_tokens, request.num_held_tokens = news.tokens["r"]
    assert request.remaining_prefill_tokens > 0


@dataclass
class Prompt:
    """A request of an engine: what its tokens are."""

    tokens: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        return len(self.tokens)


def named(prompt: Prompt, index: int) -> tuple[int, ...] | None:
    """Call a block by all tokens up to its end."""
    end = (index + 1) * SIZE
    return prompt.tokens[:end] if end <= prompt.num_tokens else None


def alike(one: Prompt, other: Prompt) -> int:
    """The slow twin: the tokens of whole blocks that both begin with, never all of *one*'s."""
    same = 0
    while same < min(one.num_tokens, other.num_tokens) and one.tokens[same] == other.tokens[same]:
        same += 1
    return min(same, one.num_tokens - 1) // SIZE * SIZE


def num_told(seed: int) -> int:
    """Compare what is told of random prompts with walks; return how many were told."""
    rng = np.random.default_rng(seed)
    live = LiveRequests()
    prompts: dict[str, Prompt] = {}

    def arrive(name: str, slo: Slo) -> Request:
        tokens = np.repeat(rng.integers(0, 2, 6), 2 * SIZE + 1)[: rng.integers(2, 190)]
        prompts[name] = Prompt(tuple(int(token) for token in tokens))
        request = Request(name, slo, 0.0, len(tokens), 10)
        live.arrive(request)
        return request

    cached: set[tuple[int, ...] | None] = set()
    for i in range(6):
        request = arrive(f"p{i}", NO_PROMISE)
        live.unqueue(request)
        request.num_computed_tokens = int(rng.integers(1, request.num_prompt_tokens))
        live.start_prefill(request)
        full = request.num_computed_tokens // SIZE
        cached.update(named(prompts[f"p{i}"], index) for index in range(full))
    waiting = [arrive(f"w{i}", Slo(ttft_s=1.0)) for i in range(40)]
    prefixes = Prefixes(SIZE, lambda one, i: CACHED if named(one, i) in cached else ABSENT, named)
    news = prefixes.news(0.0, live, prompts)
    assert news is not None
    for request in waiting:
        mine = prompts[request.request_id]
        found = news.tokens.get(request.request_id, (0, 0))[0]
        computing: dict[str, int] = {}
        for name, other in live.prefilling.items():
            num_common = alike(mine, prompts[name])
            if other.num_computed_tokens // SIZE * SIZE == found < num_common:
                computing[name] = num_common
        told = news.coming.get(request.request_id)
        assert told in computing.items() if computing else told is None
    return len(news.coming)


def test_who_computes_what_others_lack() -> None:
    """A prompt in progress is named to those who begin as it does beyond what is cached."""
    assert sum(num_told(seed) for seed in range(20)) > 100


def test_each_is_told_once_who_computes_for_it() -> None:
    """A recording stays small: nothing is said while nothing changes."""
    live = LiveRequests()
    prompts = {name: Prompt((0,) * 100) for name in ("doc", "ask")}
    for name in prompts:
        live.arrive(Request(name, Slo(ttft_s=1.0), 0.0, 100, 10))
    doc, ask = live.requests["doc"], live.requests["ask"]
    live.unqueue(doc)
    live.start_prefill(doc)
    prefixes = Prefixes(SIZE, lambda one, i: ABSENT, named)
    news = prefixes.news(0.0, live, prompts)
    assert news is not None
    assert news.coming == {"ask": ("doc", 96)}
    ask.computed_by = "doc"
    assert prefixes.news(0.0, live, prompts) is None
