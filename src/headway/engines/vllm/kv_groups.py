"""What each KV cache group of a model keeps of a request, asked of vLLM's own managers.

vLLM sizes its pool, admits and allocates by these managers, so what they answer for a request that
does not exist is the truth about every request that does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import takewhile
from typing import Any

from headway.policy.kv.layout import KvGroup

logger = logging.getLogger("vllm.headway")

NOBODY = "headway: a request that does not exist"


def kv_groups(scheduler: Any) -> tuple[KvGroup, ...]:
    """Return the groups of *scheduler*; none for one group that keeps every token.

    A model without a KV cache, or with a group whose needs do not follow from the tokens alone
    (cross-attention), is shown as one group of which a request takes at most a block: the core
    then holds nobody back for KV, and the stock loop alone decides.
    """
    longest = int(scheduler.max_model_len)
    if scheduler.is_encoder_decoder:
        return (KvGroup(longest, 1, 1),)
    try:
        managers = scheduler.kv_cache_manager.coordinator.single_type_managers
        groups = tuple(_group(manager, longest) for manager in managers)
    except (AttributeError, TypeError, AssertionError, ValueError) as error:
        logger.warning("This KV cache is beyond Headway (%r): vLLM alone rations it.", error)
        groups = ()
    if not groups:
        return (KvGroup(longest, 1, 1),)
    if groups == (KvGroup(int(scheduler.block_size)),):
        return ()
    return groups


def _group(manager: Any, longest: int) -> KvGroup:
    """Return what one manager says of the longest request; a bound it never meets is none."""
    size = int(manager.block_size)
    all_blocks = -(-longest // size)
    most = int(
        manager.get_num_blocks_to_allocate(
            NOBODY, longest, [], 0, 0, longest, apply_admission_cap=True
        )
    )
    manager.req_to_blocks.pop(NOBODY, None)  # Some managers open an entry when they are asked.
    window = max(n - int(manager.get_num_skipped_tokens(n)) for n in range(size, longest + 1, size))
    kept = -(-window // size) + 1  # A window rarely begins where a block does.
    if all_blocks > 1 and kept >= all_blocks and most >= all_blocks:
        return KvGroup(size)
    kept = min(kept, all_blocks)
    return KvGroup(size, max(min(most, all_blocks), kept), kept)


def block_size_tokens(scheduler: Any, groups: tuple[KvGroup, ...]) -> int:
    """Return the tokens of a block where requests grow; vLLM's own is common to all groups."""
    sizes = [group.block_size_tokens for group in groups if group.grows]
    return min(sizes, default=int(scheduler.block_size))


def whole_hits(
    scheduler: Any, groups: tuple[KvGroup, ...]
) -> Callable[[Any], tuple[int, int]] | None:
    """Return what tells the tokens of a request found and held, ``None`` where nothing is cached.

    With several groups a hit has to be one in all of them: only vLLM's own walk over them tells.
    Blocks that others hold cost nothing, in the groups that keep every token.
    """
    manager = scheduler.kv_cache_manager
    if not manager.enable_caching or not groups:
        return None
    growing = [(i, group.block_size_tokens) for i, group in enumerate(groups) if group.grows]

    def find(request: Any) -> tuple[int, int]:
        found, num_tokens, _ = manager.get_computed_blocks(request)
        if not num_tokens or not growing:
            return num_tokens, 0
        index, size = growing[0]
        held = sum(1 for _ in takewhile(lambda block: block.ref_cnt > 0, found.blocks[index]))
        return num_tokens, min(held * size, num_tokens)

    return find
