"""vLLM's KV cache groups for kinds of attention by name, for engines under a virtual clock."""

from __future__ import annotations

import torch
from vllm.v1.kv_cache_interface import (
    ChunkedLocalAttentionSpec,
    FullAttentionSpec,
    KVCacheGroupSpec,
    KVCacheSpec,
    MambaSpec,
    SlidingWindowSpec,
)

from headway.engines.attention_kinds import parts_of


def groups_of(kinds: tuple[str, ...], block_size: int, longest: int) -> list[KVCacheGroupSpec]:
    """Return vLLM's groups, all with pages of one size, for *kinds* by name.

    Raises:
        UserError: A kind is not known.
    """
    return [
        KVCacheGroupSpec([f"layer {i}"], spec_of(kind, block_size, longest))
        for i, kind in enumerate(kinds)
    ]


def spec_of(kind: str, block_size: int, longest: int) -> KVCacheSpec:
    """Return one group's specification."""
    name, tokens = parts_of(kind)
    heads = {
        "block_size": block_size,
        "num_kv_heads": 4,
        "head_size": 16,
        "dtype": torch.float32,
    }
    plain = FullAttentionSpec(**heads)
    if name == "full":
        return plain
    if name == "sliding":
        return SlidingWindowSpec(**heads, sliding_window=tokens)
    if name == "local":
        return ChunkedLocalAttentionSpec(**heads, attention_chunk_size=tokens)
    is_aligned = name == "aligned-state"
    return MambaSpec(
        block_size=block_size if is_aligned else longest,
        shapes=((plain.page_size_bytes // 4,),),
        dtypes=(torch.float32,),
        mamba_cache_mode="align" if is_aligned else "none",
    )
