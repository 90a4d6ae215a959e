"""The KV cache as people are shown it: held, reserved, lent and free."""

from __future__ import annotations

from headway.policy.live_requests import LiveRequests
from headway.policy.view import EngineView


def wanted_tokens(live: LiveRequests) -> int:
    """Return the tokens that running requests are predicted to emit yet: KV they will need."""
    return sum(
        r.predicted_output_tokens - r.num_output_tokens
        for r in live.running()
        if r.predicted_output_tokens > r.num_output_tokens
    )


def kv_split(live: LiveRequests, view: EngineView | None) -> dict[str, int]:
    """Return tokens of KV cache ``held``, ``reserved``, ``lent`` and ``free`` as of the last plan.

    Held, reserved and free make up the cache. Reserved is free room that running requests are
    predicted to need; lent is what they will need beyond it, in somebody else's use now.
    """
    if view is None:
        return {"held": 0, "reserved": 0, "lent": 0, "free": 0}
    free = view.layout.tokens(view.num_free_blocks)
    held = view.layout.tokens(view.num_total_blocks) - free
    wanted = wanted_tokens(live)
    reserved = min(wanted, free)
    return {"held": held, "reserved": reserved, "lent": wanted - reserved, "free": free - reserved}
