"""What prompts have in common: the chain a prompt begins with, and what a cache could find of it.

A chain is a row of ids that stand for the same number of tokens each; the prompt may cut the last
one short. What an id stands for is known only together with all ids before it.
"""

from __future__ import annotations

from collections.abc import Iterable

from headway.workloads.schema import HashId, WorkloadRequest


def chain_of(request: WorkloadRequest) -> tuple[tuple[HashId, ...], int]:
    """Return the ids *request*'s prompt begins with, and the tokens each stands for.

    A prefix id is a chain of one, as long as the whole prompt when its tokens are not told.
    """
    if request.prefix_id is None:
        return request.hash_ids, request.hash_tokens
    return (request.prefix_id,), request.prefix_tokens or request.num_prompt_tokens


def found_tokens(requests: Iterable[WorkloadRequest]) -> list[int]:
    """Return the prompt tokens of each request that an endless cache has seen before it.

    Answers are not found: what a later prompt repeats of one counts as new.
    """
    longest: dict[tuple[int, HashId], int] = {}
    nodes: dict[tuple[int, HashId, int], int] = {}
    found: list[int] = []
    for request in requests:
        ids, each_tokens = chain_of(request)
        node = known = 0
        for index, one in enumerate(ids):
            mine = min(each_tokens, request.num_prompt_tokens - index * each_tokens)
            seen = longest.get((node, one), 0)
            known += min(mine, seen)
            longest[node, one] = max(mine, seen)
            # Only whoever had all of this id's tokens has gone on from here.
            node = nodes.setdefault((node, one, each_tokens), len(nodes) + 1)
        found.append(known)
    return found
