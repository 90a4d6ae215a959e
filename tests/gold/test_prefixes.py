"""The cursors of a waiting prompt against a walk over all its blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest

from headway.engines.prefix import ABSENT, CACHED, HELD, Prefixes
from headway.policy.live import LiveRequests
from headway.request import Request, State
from headway.slo import Slo

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
    prefixes = Prefixes(SIZE, chain.look_up)
    for _ in range(300):
        chain.num_cached = int(rng.integers(0, 40))
        chain.num_held = int(rng.integers(0, chain.num_cached + 1))
        num_tokens = int(rng.integers(1, 500))
        assert prefixes.find("a", None, num_tokens) == walked(chain, num_tokens)


def test_where_nothing_moved_a_look_costs_four_questions() -> None:
    """However long the prompt is."""
    chain = Chain(num_cached=3000, num_held=1000)
    prefixes = Prefixes(SIZE, chain.look_up)
    prefixes.find("a", None, 60_000)
    chain.num_asked = 0
    assert prefixes.find("a", None, 60_000) == (48_000, 16_000)
    assert chain.num_asked <= 4


def test_all_who_wait_are_looked_at_in_the_end() -> None:
    """Also those far behind; each change is told once."""
    chain, live = Chain(), LiveRequests()
    prefixes = Prefixes(SIZE, chain.look_up)
    for i in range(200):
        request = Request(f"r{i}", Slo(ttft_s=1.0), 0.0, 100, 10)
        request.due_at_s = float(i)
        live.arrive(request)
    chain.num_cached = 3
    told: set[str] = set()
    for _ in range(12):
        news = prefixes.news(live, live.requests)
        assert told.isdisjoint(news)
        told.update(news)
        for name, (found, held) in news.items():
            request = live.requests[name]
            request.num_found_tokens, request.num_held_tokens = found, held
    assert told == live.requests.keys()


def test_a_preempted_request_has_something_left_to_compute() -> None:
    """Also when a token in flight came after it was preempted, and all others are cached."""
    chain, live = Chain(), LiveRequests()
    prefixes = Prefixes(SIZE, chain.look_up)
    request = Request("r", Slo(ttft_s=1.0), 0.0, 2 * SIZE, 10)
    request.move(State.RUNNING, 0.0, "started")
    request.move(State.PREEMPTED, 1.0, "preempted")
    live.arrive(request)
    request.num_output_tokens = 1
    chain.num_cached = 2
    request.num_found_tokens, request.num_held_tokens = prefixes.news(live, {"r": request})["r"]
    assert request.remaining_prefill_tokens > 0
