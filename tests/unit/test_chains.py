"""Chains of prefix ids: two prompts share exactly the tokens of the ids they begin with alike."""

from __future__ import annotations

import random
import time
from itertools import takewhile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headway.engines.sim.blocks import PrefixPool
from headway.engines.sim.job import Job
from headway.engines.virtual import Outcome, VirtualCall
from headway.engines.vllm.made_up_tokens import own_token, prompt_tokens
from headway.slo import SloBook
from headway.study.requests import calls_of
from headway.workloads.prefixes import chain_of, found_tokens
from headway.workloads.schema import WorkloadRequest


def common_tokens(one: VirtualCall, other: VirtualCall) -> int:
    """The slow twin: id by id, as the schema says it."""
    total = 0
    for index, (a, b) in enumerate(zip(one.hash_ids, other.hash_ids, strict=False)):
        sizes = [
            min(c.hash_tokens, c.num_prompt_tokens - index * c.hash_tokens) for c in (one, other)
        ]
        if a != b or type(a) is not type(b):
            break
        total += min(sizes)
        if sizes[0] != sizes[1]:
            break
    return total


def alike(one: list[int], other: list[int]) -> int:
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def job(call: VirtualCall) -> Job:
    return Job(call, Outcome(call))


@st.composite
def calls(draw: st.DrawFn) -> list[VirtualCall]:
    """Calls whose chains part early and late, in ids of three sizes."""
    made = []
    for index in range(draw(st.integers(2, 8))):
        ids = tuple(draw(st.lists(st.sampled_from([0, 1, "1", -1, -2]), max_size=5)))
        each = draw(st.sampled_from([1, 7, 24]))
        least = max((len(ids) - 1) * each + 1, 1)
        length = draw(st.integers(least, len(ids) * each + 30))
        made.append(VirtualCall(f"r{index}", 0.0, length, 1, hash_ids=ids, hash_tokens=each))
    return made


@given(calls())
def test_prompts_share_exactly_their_common_ids(made: list[VirtualCall]) -> None:
    """Token by token, whatever the lengths; nobody's prompt holds another's answer."""
    prompts = [prompt_tokens(call) for call in made]
    for one, its in zip(made, prompts, strict=True):
        assert len(its) == one.num_prompt_tokens
        for other, theirs in zip(made, prompts, strict=True):
            if one is not other:
                assert alike(its, theirs) == common_tokens(one, other)
                assert own_token(other.request_id) not in its


@given(made=calls(), block_size=st.integers(1, 20))
def test_the_simulator_finds_what_equal_tokens_would(
    made: list[VirtualCall], block_size: int
) -> None:
    """Each in turn finds the whole blocks that the tokens of somebody before it begin with."""
    pool = PrefixPool(1000, block_size)
    seen: set[tuple[int, ...]] = set()
    for call in made:
        tokens, one = prompt_tokens(call), job(call)
        most = (len(tokens) - 1) // block_size
        known = [tuple(tokens[: (index + 1) * block_size]) in seen for index in range(most)]
        expected = len(list(takewhile(bool, known)))
        assert len(pool.find(one)) == expected
        assert pool.allocate(one, len(tokens))
        pool.note_full(one, len(tokens))
        seen |= {tuple(tokens[:end]) for end in range(1, len(tokens) + 1)}


@pytest.mark.parametrize("hash_tokens", [16, 512])
def test_a_long_chain_costs_in_proportion(hash_tokens: int) -> None:
    """Twenty times the prompt takes about twenty times as long to look up, not four hundred."""

    def seconds(num_tokens: int) -> float:
        ids = tuple(range(num_tokens // hash_tokens))
        one = VirtualCall("a", 0.0, num_tokens, 1, hash_ids=ids, hash_tokens=hash_tokens)
        best = float("inf")
        for _ in range(5):
            pool, mine = PrefixPool(num_tokens, 16), job(one)
            began = time.process_time()
            pool.allocate(mine, num_tokens)
            pool.note_full(mine, num_tokens)
            assert len(pool.find(job(one))) == (num_tokens - 1) // 16
            best = min(best, time.process_time() - began)
        return best

    assert seconds(300_000) < 150 * seconds(15_000)


def request(name: str, prompt: int, *ids: int | str, tokens: int = 10) -> WorkloadRequest:
    return WorkloadRequest(name, 0.0, prompt, 1, hash_ids=ids, hash_tokens=tokens)


def test_what_an_endless_cache_finds_by_hand() -> None:
    """Nested prefixes, an id under another parent, a last id cut short, the own tail."""
    made = [
        request("all is new", 35, 1, 2, 3),
        request("a nested prefix", 25, 1, 2),
        request("parts after one", 40, 1, 4, 3),
        request("another root", 30, 2, 3),
        request("the last cut short", 26, 1, 2, 3),
        request("to its end", 30, 1, 2, 3),
        request("a text is no number", 30, "1"),
    ]
    assert found_tokens(made) == [0, 20, 10, 0, 26, 30, 0]


@pytest.mark.parametrize("seed", range(20))
def test_an_endless_cache_against_one_that_remembers_every_prefix(seed: int) -> None:
    """Over random trees, request by request."""
    rng = random.Random(seed)
    made = []
    for index in range(60):
        ids = tuple(rng.randrange(2) for _ in range(rng.randrange(6)))
        length = 10 * len(ids) + rng.choice([1, 5]) * (-1 if ids else 1)
        made.append(request(f"r{index}", length, *ids))
    book = SloBook.builtin()
    prompts = [prompt_tokens(call) for call in calls_of(made, book)[0]]
    best = [max((alike(p, q) for q in prompts[:i]), default=0) for i, p in enumerate(prompts)]
    assert found_tokens(made) == best


def test_a_prefix_id_is_a_chain_of_one() -> None:
    """As long as it says, or as both prompts are; the engines are fed the same."""
    told = WorkloadRequest("a", 0.0, 100, 1, prefix_id="p", prefix_tokens=40)
    whole = WorkloadRequest("b", 0.0, 90, 1, prefix_id="p")
    assert chain_of(told) == (("p",), 40)
    assert chain_of(whole) == (("p",), 90)
    (one, other), _ = calls_of([told, whole], SloBook.builtin())
    assert (one.num_chain_tokens, other.num_chain_tokens) == (40, 90)
    assert alike(prompt_tokens(one), prompt_tokens(other)) == 40
    assert found_tokens([told, whole]) == [0, 40]
