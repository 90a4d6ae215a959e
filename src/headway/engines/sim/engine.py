"""The server to simulate, in the sizes vLLM's own arguments have."""

from __future__ import annotations

from dataclasses import dataclass, fields

from headway.errors import UserError

GIB = 1024**3


@dataclass(frozen=True, slots=True)
class SimEngine:
    """One server. Sizes in blocks and tokens.

    Attributes:
        num_blocks: KV blocks requests can get; vLLM's own count is one more, its null block.
        asynchronous: Whether a step is planned while the one before still runs.
        prefix_caching: Whether full blocks are found again by later requests (LRU).
        host_blocks: Blocks of host memory for swapped KV; 0 turns every swap into a recompute.
        copy_gib_per_s: Bandwidth of the link to the host, one copy at a time.
        kv_bytes_per_token: Bytes of KV of one token over all layers; the default is that of
            an 8B model with 8 KV heads in 16 bits.

    Raises:
        UserError: A size is not positive.
    """

    num_blocks: int = 1000
    block_size: int = 16
    max_num_batched_tokens: int = 2048
    max_num_seqs: int = 256
    asynchronous: bool = False
    prefix_caching: bool = False
    host_blocks: int = 0
    copy_gib_per_s: float = 25.0
    kv_bytes_per_token: int = 131_072

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = 0 if field.name == "host_blocks" else 1e-9
            if not isinstance(value, bool) and not value >= least:
                bound = "at least 0" if least == 0 else "greater than 0"
                raise UserError(f"The engine's {field.name} must be {bound}, not {value!r}.")

    @property
    def copy_bytes_per_s(self) -> float:
        """Bandwidth of the link in bytes."""
        return self.copy_gib_per_s * GIB
