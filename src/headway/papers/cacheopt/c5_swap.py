"""C5: swap what is longer than a profiled length, else recompute (arXiv 2503.13773 §3.4)."""

from __future__ import annotations

from headway.latency.model import LatencyModel, StepShape
from headway.policy.draft import Draft, SwapChoice
from headway.policy.swap_choice import block_copy_s, copyable_blocks
from headway.policy.view import EngineView
from headway.request import Request

LONGEST_TOKENS = 1 << 20
"""No sweet spot is looked for beyond this length."""


class SweetSpot(SwapChoice):
    """Swap what is longer than a fixed length (CacheOPT, component 5).

    Args:
        length_tokens: The length; ``None`` profiles it once, when the first victim is chosen:
            where copying out and back takes as long as computing alone on an empty server.
    """

    def __init__(self, length_tokens: int | None = None) -> None:
        self._length_tokens = length_tokens

    def how(self, draft: Draft, victim: Request) -> str:
        """Return ``"swap"`` beyond the length, while the host has room."""
        if copyable_blocks(draft, victim) == 0:
            return "recompute"
        if self._length_tokens is None:
            self._length_tokens = sweet_spot_tokens(draft.given.latency, draft.given.view)
        return "swap" if victim.kv_tokens > self._length_tokens else "recompute"


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
