"""What a driver shows the core when it asks for a plan."""

from __future__ import annotations

from dataclasses import dataclass

from headway.kv_layout import KvGroup, KvLayout, layout_of


@dataclass(frozen=True, slots=True)
class EngineView:
    """The engine's resources at this instant.

    Attributes:
        num_total_blocks: KV blocks a request could ever get.
        num_free_blocks: KV blocks free now, blocks of evictable prefix cache included.
        block_size_tokens: Tokens a block holds.
        max_num_running: Requests the engine can run at once.
        max_step_tokens: Tokens the engine can compute in one step.
        num_steps_in_flight: Steps scheduled whose output has not come back
            (0 for a synchronous engine, 1 or more under async scheduling).
        swap_free_blocks: KV blocks the host has room for now; 0 where nothing can be swapped.
        copy_bytes_per_s: Measured bandwidth of the link to the host, one way at a time.
        kv_bytes_per_token: Bytes of KV of one token over all layers, as the link sees them.
        num_queued_copy_blocks: Blocks whose copies, either way, have not been made yet.
        num_drafts: Draft tokens that a stream may have verified in a step.
        may_preempt: Whether the KV of who runs can be taken; not where a step in flight keeps it.
        loads: Waiting requests that would start with a transfer of KV that lies elsewhere.
        num_kept_blocks: Free blocks that no such transfer may take: the engine keeps them for
            prompts in progress, those whose KV is on its way included.
        kv_groups: What each group of layers keeps of a request; empty for one that keeps all.
    """

    num_total_blocks: int
    num_free_blocks: int
    block_size_tokens: int
    max_num_running: int
    max_step_tokens: int
    num_steps_in_flight: int = 0
    swap_free_blocks: int = 0
    copy_bytes_per_s: float = 0.0
    kv_bytes_per_token: int = 0
    num_queued_copy_blocks: int = 0
    num_drafts: int = 0
    may_preempt: bool = True
    kv_groups: tuple[KvGroup, ...] = ()
    loads: tuple[str, ...] = ()
    num_kept_blocks: int = 0

    @property
    def layout(self) -> KvLayout:
        """How tokens turn into blocks; a recording's groups are plain lists."""
        groups = tuple(KvGroup(*group) for group in self.kv_groups)
        return layout_of(self.block_size_tokens, groups)
