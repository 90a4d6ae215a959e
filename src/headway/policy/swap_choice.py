"""What happens to a victim's KV: copied to the host and back, or thrown away and computed again.

InferCept (arXiv 2402.01869) counts both as seconds in which nobody's tokens come; CacheOPT
(arXiv 2503.13773 §3.4) swaps beyond a profiled length. Both are here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

from headway.latency.model import LatencyModel, StepShape
from headway.request import Request

if TYPE_CHECKING:
    from headway.policy.context import PlanContext
    from headway.policy.view import EngineView

LONGEST_TOKENS = 1 << 20
"""No sweet spot is looked for beyond this length."""


class SwapChoice(Protocol):
    """Decides how one victim loses its KV."""

    def how(self, ctx: PlanContext, victim: Request) -> str:
        """Return ``"swap"`` or ``"recompute"``."""


class AlwaysRecompute(SwapChoice):
    """As vLLM V1 does, which cannot swap."""

    def how(self, ctx: PlanContext, victim: Request) -> str:
        """Return ``"recompute"``."""
        return "recompute"


class SweetSpot(SwapChoice):
    """Swap what is longer than a fixed length (CacheOPT, component 5).

    Args:
        length_tokens: The length; ``None`` profiles it once, when the first victim is chosen:
            where copying out and back takes as long as computing alone on an empty server.
    """

    def __init__(self, length_tokens: int | None = None) -> None:
        self._length_tokens = length_tokens

    def how(self, ctx: PlanContext, victim: Request) -> str:
        """Return ``"swap"`` beyond the length, while the host has room."""
        if copyable_blocks(ctx, victim) == 0:
            return "recompute"
        if self._length_tokens is None:
            self._length_tokens = sweet_spot_tokens(ctx.latency, ctx.view)
        return "swap" if victim.kv_tokens > self._length_tokens else "recompute"


class Cheaper(SwapChoice):
    """Whichever costs fewer seconds for this victim now."""

    def how(self, ctx: PlanContext, victim: Request) -> str:
        """Return the cheaper; recompute when nothing can be copied."""
        if copyable_blocks(ctx, victim) == 0:
            return "recompute"
        return "swap" if swap_s(ctx, victim) < recompute_s(ctx, victim) else "recompute"


def copyable_blocks(ctx: PlanContext, victim: Request) -> int:
    """Return the full blocks of *victim* that the host takes now: all of them or 0."""
    num_blocks = _num_existing_tokens(ctx, victim) // ctx.view.block_size_tokens
    has_link = ctx.view.copy_bytes_per_s > 0 and ctx.view.kv_bytes_per_token > 0
    room = ctx.view.swap_free_blocks - ctx.num_copied_blocks
    return num_blocks if has_link and num_blocks <= room else 0


def swap_s(ctx: PlanContext, victim: Request) -> float:
    """Return the seconds of copying *victim* out and back, behind the copies asked for before.

    What it found in the prefix cache when it started need not come back; what does not fill a
    block is computed again.
    """
    size = ctx.view.block_size_tokens
    tokens = _num_existing_tokens(ctx, victim)
    out = tokens // size
    back = max(out - _num_found_tokens(ctx, victim) // size, 0)
    queued = ctx.view.num_queued_copy_blocks + ctx.num_copied_blocks
    copy_s = (queued + out + back) * block_copy_s(ctx.view)
    return copy_s + _prefill_s(ctx, out * size, victim.num_tokens)


def recompute_s(ctx: PlanContext, victim: Request) -> float:
    """Return the seconds by which computing *victim*'s KV again lengthens the steps it is in."""
    return _prefill_s(ctx, _num_found_tokens(ctx, victim), _num_existing_tokens(ctx, victim) + 1)


def block_copy_s(view: EngineView) -> float:
    """Return the seconds of copying one block, one way."""
    return view.block_size_tokens * view.kv_bytes_per_token / view.copy_bytes_per_s


def sweet_spot_tokens(latency: LatencyModel, view: EngineView) -> int:
    """Return the least length that is copied out and back faster than computed, by bisection.

    :data:`LONGEST_TOKENS` when copying is never faster. Computing is what the tokens add to a
    step that computes prompts anyway; its seconds a token grow with the length and those of
    copying do not, so the two cross at most once.
    """
    least_s = latency.predict_s(StepShape().with_chunk(1, 0))

    def swap_is_faster(num_tokens: int) -> bool:
        copy_s = 2 * num_tokens / view.block_size_tokens * block_copy_s(view)
        return copy_s < latency.predict_s(StepShape().with_chunk(num_tokens, 0)) - least_s

    slow, fast = 0, 1
    while not swap_is_faster(fast):
        slow, fast = fast, 2 * fast
        if fast > LONGEST_TOKENS:
            return LONGEST_TOKENS
    while fast - slow > 1:
        middle = (slow + fast) // 2
        slow, fast = (slow, middle) if swap_is_faster(middle) else (middle, fast)
    return fast


def _num_existing_tokens(ctx: PlanContext, victim: Request) -> int:
    """Return the tokens whose KV exists: not the newest, not those of steps in flight."""
    in_flight = ctx.view.num_steps_in_flight
    if victim.num_computed_tokens < victim.prefill_target_tokens:
        return 0 if in_flight else victim.num_computed_tokens
    return max(victim.num_tokens - 1, 0)


def _num_found_tokens(ctx: PlanContext, victim: Request) -> int:
    return ctx.ledger.found_tokens.get(victim.request_id, 0)


def _prefill_s(ctx: PlanContext, first: int, last: int) -> float:
    """Return what computing tokens *first* to *last* adds to steps with today's decodes."""
    most = max(ctx.view.max_step_tokens - ctx.shape.num_decodes, 1)
    alone_s = ctx.latency.predict_s(ctx.shape)
    total_s, at = 0.0, first
    for _ in range(math.ceil(max(last - first, 0) / most)):
        chunk = min(most, last - at)
        total_s += ctx.latency.predict_s(ctx.shape.with_chunk(chunk, at)) - alone_s
        at += chunk
    return total_s
