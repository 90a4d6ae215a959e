"""Texts made up for a trace have in common what the trace says they have."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, takewhile
from typing import Any

from headway.bench.calls import CallOptions, body_of
from headway.slo import NO_PROMISE
from headway.workloads import named, realtext
from headway.workloads.schema import WorkloadRequest


def same(first: Sequence[Any], second: Sequence[Any]) -> int:
    """Return how many items two sequences begin with alike."""
    pairs = zip(first, second, strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def in_common(first: WorkloadRequest, second: WorkloadRequest) -> float:
    """Return the tokens with which both texts begin."""
    texts = (realtext.text_for(first, 0), realtext.text_for(second, 1))
    return same(*texts) / realtext.CHARS_PER_TOKEN


def told(first: WorkloadRequest, second: WorkloadRequest) -> int:
    """Return the tokens that two chains have in common."""
    return same(first.hash_ids, second.hash_ids) * first.hash_tokens


def test_chats_share_what_their_chains_say() -> None:
    """Turns of one chat what was said before, chats with one head the head, others nothing."""
    requests = named.make("turns", 40, 2.0, 1)
    found = set()
    for first, second in combinations(requests, 2):
        shared = told(first, second)
        # A block is cut to whole characters, and the next ones may begin alike by chance.
        assert shared * 0.98 <= in_common(first, second) <= shared * 1.02 + 16
        found.add(min(shared, 5000) // 500)
    assert len(found) > 3


def test_each_text_has_its_length() -> None:
    """What it has in common included; a last block may be cut short."""
    for seed, request in enumerate(named.make("turns", 20, 2.0, 2)):
        text = realtext.text_for(request, seed)
        assert abs(realtext.tokens_in(text) / request.num_prompt_tokens - 1) < 0.05


def test_a_prefix_by_name() -> None:
    """As long as it says, or all of the shorter prompt."""

    def request(name: str, num_tokens: int, prefix_tokens: int) -> WorkloadRequest:
        return WorkloadRequest(
            name, 0.0, num_tokens, 5, prefix_id="manual", prefix_tokens=prefix_tokens
        )

    assert 295 <= in_common(request("a", 400, 300), request("b", 500, 300)) <= 310
    assert 395 <= in_common(request("a", 400, 0), request("b", 500, 0)) <= 400


def test_without_any_texts_are_each_its_own() -> None:
    """And the same as ever for a seed; a request's own text is sent as it is."""
    first, second = (WorkloadRequest(name, 0.0, 300, 5) for name in "ab")
    assert in_common(first, second) < 16
    assert realtext.text_for(first, 7) == realtext.made_up_prompt(300, 7)
    own = WorkloadRequest("c", 0.0, 3, 5, prompt="Name three rivers.", prefix_id="manual")
    body = body_of(own, NO_PROMISE, CallOptions("m"))
    assert body["messages"][0]["content"] == "Name three rivers."
    assert "ignore_eos" not in body
