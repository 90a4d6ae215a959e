"""A decoder with random weights, its KV cache, and what a step computes; needs torch alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch.nn import functional
from traffic import Part

PAGE_TOKENS = 256
"""What flash attention takes on every GPU; vLLM's 16 need a kernel of its own."""


@dataclass(frozen=True)
class Sizes:
    """A dense decoder, by the names of a Hugging Face config."""

    num_hidden_layers: int = 32
    hidden_size: int = 4096
    num_attention_heads: int = 32
    num_key_value_heads: int = 8
    head_dim: int = 128
    intermediate_size: int = 14336
    vocab_size: int = 128256

    def kv_bytes_per_token(self, value_bytes: int) -> int:
        """Return the bytes of keys and values of one token over all layers."""
        width = self.num_key_value_heads * self.head_dim
        return 2 * self.num_hidden_layers * width * value_bytes


TINY = Sizes(2, 64, 4, 2, 16, 128, 256)


@dataclass
class Batch:
    """A step as tensors: T tokens of N requests, decodes first; *chunks* and sizes on the host."""

    tokens: torch.Tensor
    positions: torch.Tensor
    rows: torch.Tensor  # Of the T tokens in the cache of a layer, its slots laid end to end.
    slots: torch.Tensor
    used: torch.Tensor  # KV tokens of each request once its tokens of this step are written.
    starts: torch.Tensor  # N + 1: where each request's tokens begin among the T.
    pages: torch.Tensor
    num_decodes: int
    chunks: list[Part]
    most_tokens: int
    longest: int  # KV tokens that decodes are padded to.

    @property
    def tensors(self) -> list[torch.Tensor]:
        names = ("tokens", "positions", "rows", "slots", "used", "starts", "pages")
        return [getattr(self, name) for name in names]


Attention = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Batch], torch.Tensor]


def paged(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Attend by torch's kernel for paged KV (torch 2.12 and later, CUDA)."""
    from torch.nn.attention.varlen import varlen_attn

    pool = (-1, PAGE_TOKENS, *keys.shape[2:])
    out = varlen_attn(
        q, keys.view(pool), values.view(pool), batch.starts, None,
        batch.most_tokens, keys.shape[1], window_size=(-1, 0), enable_gqa=True,
        seqused_k=batch.used, block_table=batch.pages,
    )  # fmt: skip
    return cast(torch.Tensor, out)


def padded(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Attend by torch's usual call: decodes padded to the longest of them, prompts one by one."""
    out, at, length = [], batch.num_decodes, batch.longest
    if at:
        mask = torch.arange(length, device=q.device) < batch.used[:at, None]
        k, v = (cache[batch.slots[:at], :length] for cache in (keys, values))
        out.append(_attend(q[:at, None], k, v, mask[:, None]))
    for part in batch.chunks:
        end = part.start + part.num_tokens
        places = torch.arange(end, device=q.device)
        k, v = (cache[part.slot : part.slot + 1, :end] for cache in (keys, values))
        mask = places <= places[part.start :, None]
        out.append(_attend(q[None, at : at + part.num_tokens], k, v, mask[None]))
        at += part.num_tokens
    return torch.cat(out)


def _attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Attend B x n queries to B x length keys; heads that share keys become rows beside them."""
    size, n, heads, width = q.shape
    groups, shared = k.shape[2], heads // k.shape[2]
    rows = q.view(size, n, groups, shared, width).permute(0, 2, 3, 1, 4)
    mask = mask[:, None, None].expand(size, 1, shared, n, k.shape[1])
    out = functional.scaled_dot_product_attention(
        rows.reshape(size, groups, shared * n, width), k.transpose(1, 2), v.transpose(1, 2),
        attn_mask=mask.reshape(size, 1, shared * n, k.shape[1]),
    )  # fmt: skip
    return out.view(size, groups, shared, n, width).permute(0, 3, 1, 2, 4).reshape(-1, heads, width)


class Decoder:
    """Random weights, a KV cache of *num_slots* slots (and one for padding), captured graphs."""

    def __init__(
        self, sizes: Sizes, device: torch.device, dtype: torch.dtype, max_context: int
    ) -> None:
        self.sizes, self.device, self.dtype, self.max_context = sizes, device, dtype, max_context
        self.attention: Attention = padded
        self.num_slots = 0
        hidden, width = sizes.hidden_size, sizes.head_dim
        heads = sizes.num_attention_heads + 2 * sizes.num_key_value_heads

        def weights(rows: int, columns: int) -> torch.Tensor:
            return torch.empty(rows, columns, device=device, dtype=dtype).normal_(0.0, 0.02)

        self.embedding = weights(sizes.vocab_size, hidden)
        self.output = weights(sizes.vocab_size, hidden)
        self.layers = [
            (
                weights(heads * width, hidden),
                weights(hidden, sizes.num_attention_heads * width),
                weights(2 * sizes.intermediate_size, hidden),
                weights(hidden, sizes.intermediate_size),
            )
            for _ in range(sizes.num_hidden_layers)
        ]
        halves = torch.arange(width // 2, device=device) / (width // 2)
        angles = torch.arange(max_context, device=device)[:, None] * 5e5**-halves
        self.cos, self.sin = (f(angles)[:, None].to(dtype) for f in (torch.cos, torch.sin))

    def allocate(self, num_slots: int) -> None:
        """Make the KV cache."""
        sizes = self.sizes
        shape = (num_slots + 1, self.max_context, sizes.num_key_value_heads, sizes.head_dim)
        self.num_slots = num_slots
        self.cache = [
            tuple(torch.zeros(shape, device=self.device, dtype=self.dtype) for _ in range(2))
            for _ in self.layers
        ]

    def batch_of(self, parts: Sequence[Part], num_rows: int = 0, longest: int = 0) -> Batch:
        """Return the step's tensors, on the host; decodes are filled up to *num_rows*."""
        filling = [Part(self.num_slots, 0, 1, True)] * (num_rows - len(parts))
        parts = [*parts, *filling]
        counts = torch.tensor([part.num_tokens for part in parts])
        slots = torch.tensor([part.slot for part in parts])
        begun = torch.tensor([part.start for part in parts])
        starts = functional.pad(counts.cumsum(0), (1, 0))
        positions = torch.arange(int(starts[-1])) + torch.repeat_interleave(
            begun - starts[:-1], counts
        )
        rows = torch.repeat_interleave(slots * self.max_context, counts) + positions
        per_slot = self.max_context // PAGE_TOKENS
        pages = slots[:, None] * per_slot + torch.arange(per_slot)
        num_decodes = sum(part.is_decode for part in parts)
        used = begun + counts
        return Batch(
            rows * 7919 % self.sizes.vocab_size, positions, rows, slots, used.int(), starts.int(),
            pages.int(), num_decodes, list(parts[num_decodes:]), int(counts.max()),
            longest or int(used[: max(num_decodes, 1)].max()),
        )  # fmt: skip

    def to_device(self, batch: Batch) -> Batch:
        """Move the tensors of *batch*."""
        for name, tensor in vars(batch).items():
            if isinstance(tensor, torch.Tensor):
                setattr(batch, name, tensor.to(self.device, non_blocking=True))
        return batch

    def forward(self, batch: Batch, slow: bool) -> torch.Tensor:
        """Return each request's next token; half of the layers run twice when *slow*."""
        sizes, width = self.sizes, self.sizes.head_dim
        heads, groups = sizes.num_attention_heads, sizes.num_key_value_heads
        x = self.embedding[batch.tokens]
        cos, sin = self.cos[batch.positions], self.sin[batch.positions]
        num_layers = len(self.layers)
        for number in range(num_layers + (num_layers // 2 if slow else 0)):
            into, out_of, up, down = self.layers[number % num_layers]
            keys, values = self.cache[number % num_layers]
            normed = functional.rms_norm(x, x.shape[-1:])
            q, k, v = (
                (normed @ into.T)
                .view(-1, heads + 2 * groups, width)
                .split((heads, groups, groups), dim=1)
            )
            q, k = _rotated(q, cos, sin), _rotated(k, cos, sin)
            for cache, new in ((keys, k), (values, v)):
                cache.view(-1, groups, width).index_copy_(0, batch.rows, new)
            x = x + self.attention(q, keys, values, batch).reshape(len(x), -1) @ out_of.T
            gate, rise = (functional.rms_norm(x, x.shape[-1:]) @ up.T).chunk(2, dim=-1)
            x = x + (functional.silu(gate) * rise) @ down.T
        last = functional.rms_norm(x[(batch.starts[1:] - 1).long()], x.shape[-1:])
        return (last @ self.output.T).argmax(dim=-1)


def _rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
