"""What each KV cache group of a model keeps of a request, asked of vLLM's own managers.

vLLM sizes its pool, admits and allocates by these managers, so what they answer for a request that
does not exist is the truth about every request that does.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from itertools import takewhile
from typing import Any

from headway.engines.prefix import WholeHit
from headway.engines.vllm import compat
from headway.kv_layout import KvGroup

logger = logging.getLogger("vllm.headway")

NOBODY = "headway: a request that does not exist"


PLENTY_BLOCKS = 1 << 30
"""What an engine is shown to have where nobody is to be held back for KV."""


def kv_groups(scheduler: Any) -> tuple[KvGroup, ...] | None:
    """Return the groups of *scheduler*; none for one group that keeps every token.

    ``None`` for a model without a KV cache, or with a group whose needs do not follow from the
    tokens alone (cross-attention): there the stock loop alone rations it.
    """
    longest = int(scheduler.max_model_len)
    if scheduler.is_encoder_decoder:
        return None
    try:
        managers = scheduler.kv_cache_manager.coordinator.single_type_managers
        groups = tuple(_group(manager, longest) for manager in managers)
    except (AttributeError, TypeError, AssertionError, ValueError) as error:
        logger.warning("This KV cache is beyond Headway (%r): vLLM alone rations it.", error)
        return None
    if not groups:
        return None
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


def view_of(scheduler: Any, groups: tuple[KvGroup, ...] | None) -> dict[str, Any]:
    """Return what :class:`~headway.policy.view.EngineView` tells of the KV cache before any plan.

    A block is shown as large as where requests grow; vLLM's own size is common to all groups.
    """
    sizes = [group.block_size_tokens for group in groups or () if group.grows]
    return {
        "block_size_tokens": min(sizes, default=int(scheduler.block_size)),
        "kv_groups": groups or (),
        "may_preempt": not scheduler.defer_block_free,
    }


def room_of(scheduler: Any, groups: tuple[KvGroup, ...] | None) -> dict[str, Any]:
    """Return what the view tells of the blocks now."""
    if groups is None:
        return {"num_total_blocks": PLENTY_BLOCKS, "num_free_blocks": PLENTY_BLOCKS}
    return {
        "num_total_blocks": compat.total_blocks(scheduler),
        "num_free_blocks": compat.free_blocks(scheduler),
    }


def whole_hits(
    scheduler: Any, groups: tuple[KvGroup, ...] | None
) -> Callable[[Any], WholeHit] | None:
    """Return what tells the tokens of a request found and held, ``None`` where nothing is cached.

    With several groups a hit has to be one in all of them: only vLLM's own walk over them tells.
    Blocks that others hold cost nothing, in the groups that keep every token.
    """
    cache = scheduler.kv_cache_manager
    if not cache.enable_caching or not groups:
        return None
    growing = [(i, group.block_size_tokens) for i, group in enumerate(groups) if group.grows]

    def is_held(block: Any) -> bool:
        return bool(block.ref_cnt > 0)

    def find(request: Any) -> WholeHit:
        found, num_tokens, _ = cache.get_computed_blocks(request)
        if not num_tokens or not growing:
            return WholeHit(num_tokens, 0)
        # The same tokens may lie in several blocks, of which a group finds any.
        held = min(sum(1 for _ in takewhile(is_held, found.blocks[i])) * n for i, n in growing)
        held = min(held, num_tokens)
        ends = [found.blocks[i][held // n - 1] for i, n in growing if held >= n]
        hashes = [block.block_hash for block in ends]
        return WholeHit(
            num_tokens,
            held,
            lambda: all(map(is_held, ends)) and [block.block_hash for block in ends] == hashes,
        )

    return find
