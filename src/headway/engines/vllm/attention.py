"""KV cache groups by name (``full``, ``sliding:1024``), for engines under a virtual clock."""

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

from headway.errors import UserError

KINDS = "full, sliding:TOKENS, local:TOKENS, state, aligned-state"
"""What a group may be; ``aligned-state`` keeps recurrent states in the prefix cache."""


def groups_of(kinds: tuple[str, ...], block_size: int, longest: int) -> list[KVCacheGroupSpec]:
    """Return vLLM's groups, all with pages of one size, for *kinds* by name.

    Raises:
        UserError: A kind is none of :data:`KINDS`.
    """
    return [
        KVCacheGroupSpec([f"layer {i}"], spec_of(kind, block_size, longest))
        for i, kind in enumerate(kinds)
    ]


def spec_of(kind: str, block_size: int, longest: int) -> KVCacheSpec:
    """Return one group's specification."""
    name, _, tokens = kind.partition(":")
    heads = {
        "block_size": block_size,
        "num_kv_heads": 4,
        "head_size": 16,
        "dtype": torch.float32,
    }
    plain = FullAttentionSpec(**heads)
    if kind == "full":
        return plain
    if name == "sliding" and tokens.isdecimal():
        return SlidingWindowSpec(**heads, sliding_window=int(tokens))
    if name == "local" and tokens.isdecimal():
        return ChunkedLocalAttentionSpec(**heads, attention_chunk_size=int(tokens))
    if name in ("state", "aligned-state") and not tokens:
        is_aligned = name == "aligned-state"
        return MambaSpec(
            block_size=block_size if is_aligned else longest,
            shapes=((plain.page_size_bytes // 4,),),
            dtypes=(torch.float32,),
            mamba_cache_mode="align" if is_aligned else "none",
        )
    raise UserError(f"{kind!r} is no kind of attention; allowed are {KINDS}.")
