"""What happens to a victim's KV: copied to the host and back, or thrown away and computed again.

Both are counted as seconds in which nobody's tokens come (after InferCept, arXiv 2402.01869).
"""

from __future__ import annotations

import math

from headway.policy.draft import Draft, SwapChoice
from headway.policy.view import EngineView
from headway.request import Request


class AlwaysRecompute(SwapChoice):
    """As vLLM V1 does, which cannot swap."""

    def how(self, draft: Draft, victim: Request) -> str:
        """Return ``"recompute"``."""
        return "recompute"


class Cheaper(SwapChoice):
    """Whichever costs fewer seconds for this victim now."""

    def how(self, draft: Draft, victim: Request) -> str:
        """Return the cheaper; recompute when nothing can be copied."""
        if copyable_blocks(draft, victim) == 0:
            return "recompute"
        return "swap" if swap_s(draft, victim) < recompute_s(draft, victim) else "recompute"


class WhereverItFits(SwapChoice):
    """Whatever it costs; rivals do so, and it tries out that a copy loses nothing."""

    def how(self, draft: Draft, victim: Request) -> str:
        """Return ``"swap"`` where the host has room for the victim's KV."""
        return "swap" if copyable_blocks(draft, victim) else "recompute"


SWAPS: dict[str, type[SwapChoice]] = {
    "cheaper": Cheaper,
    "recompute": AlwaysRecompute,
    "always": WhereverItFits,
}
"""What a preset's option ``swap`` may be."""


def copyable_blocks(draft: Draft, victim: Request) -> int:
    """Return the full blocks of *victim* that the host takes now: all of them or 0."""
    num_blocks = _num_existing_tokens(draft, victim) // draft.given.view.block_size_tokens
    has_link = draft.given.view.copy_bytes_per_s > 0 and draft.given.view.kv_bytes_per_token > 0
    room = draft.given.view.swap_free_blocks - draft.num_copied_blocks
    return num_blocks if has_link and num_blocks <= room else 0


def swap_s(draft: Draft, victim: Request) -> float:
    """Return the seconds of copying *victim* out and back, behind the copies asked for before.

    What it found in the prefix cache when it started need not come back; what does not fill a
    block is computed again.
    """
    size = draft.given.view.block_size_tokens
    tokens = _num_existing_tokens(draft, victim)
    out = tokens // size
    back = max(out - victim.num_cached_tokens // size, 0)
    queued = draft.given.view.num_queued_copy_blocks + draft.num_copied_blocks
    copy_s = (queued + out + back) * block_copy_s(draft.given.view)
    return copy_s + _prefill_s(draft, out * size, victim.num_tokens)


def recompute_s(draft: Draft, victim: Request) -> float:
    """Return the seconds by which computing *victim*'s KV again lengthens the steps it is in."""
    return _prefill_s(draft, victim.num_cached_tokens, _num_existing_tokens(draft, victim) + 1)


def block_copy_s(view: EngineView) -> float:
    """Return the seconds of copying one block, one way."""
    return view.block_size_tokens * view.kv_bytes_per_token / view.copy_bytes_per_s


def _num_existing_tokens(draft: Draft, victim: Request) -> int:
    """Return the tokens whose KV exists: not the newest, not those of steps in flight."""
    in_flight = draft.given.view.num_steps_in_flight
    if victim.num_computed_tokens < victim.prefill_target_tokens:
        return 0 if in_flight else victim.num_computed_tokens
    return max(victim.num_tokens - 1, 0)


def _prefill_s(draft: Draft, first: int, last: int) -> float:
    """Return what computing tokens *first* to *last* adds to steps with today's decodes."""
    most = max(draft.given.view.max_step_tokens - draft.shape.num_decodes, 1)
    alone_s = draft.given.latency.predict_s(draft.shape)
    total_s, at = 0.0, first
    for _ in range(math.ceil(max(last - first, 0) / most)):
        chunk = min(most, last - at)
        total_s += draft.given.latency.predict_s(draft.shape.with_chunk(chunk, at)) - alone_s
        at += chunk
    return total_s
