"""KV for those who run: who can never fit, who has outgrown the cache, who makes room for whom."""

from __future__ import annotations

from headway.policy.draft import Draft
from headway.policy.known import Known
from headway.policy.plan import Cap, Preempt, Reject
from headway.policy.preempt import Preemptor
from headway.policy.view import EngineView
from headway.request import State


def never_fit(known: Known, view: EngineView) -> tuple[Reject, ...]:
    """Reject new requests whose prompt alone exceeds the whole cache."""
    if not known.unchecked:
        return ()
    new, known.unchecked = known.unchecked, []
    layout, total = view.layout, view.num_total_blocks
    return tuple(
        Reject(
            r.request_id,
            f"The prompt has {r.num_prompt_tokens} tokens;"
            f" the KV cache holds {layout.room_tokens(0, total)}.",
        )
        for r in new
        if layout.blocks(r.num_prompt_tokens + 1) > total and r.state is State.WAITING
    )


def outgrown(known: Known, view: EngineView) -> tuple[Cap, ...]:
    """End a request that alone fills the whole cache: it can never take another token."""
    live, layout, total = known.live, view.layout, view.num_total_blocks
    if live.sum_decode_context_tokens < layout.tokens(total):
        return ()
    return tuple(
        Cap(r.request_id, "its tokens fill the whole KV cache")
        for r in live.decoding.values()
        if layout.kept_blocks(r.num_tokens + 1) > total
    )


def fund_running(draft: Draft, preemptor: Preemptor) -> tuple[Preempt, ...]:
    """Set aside the blocks running requests need now; preempt when there are too few.

    Returns:
        The victims; ``draft.num_spare_blocks`` is left with what newcomers may take.
    """
    given = draft.given
    live, view, layout = given.live, given.view, given.layout
    free = view.num_free_blocks
    prompts = given.prompt_blocks()
    most = prompts + layout.most_growth * len(live.decoding)
    if free >= most and not live.num_waiting:
        draft.num_spare_blocks = free - most
        return ()
    growing = given.growth_blocks()
    needed = sum(growing.values())
    victims: list[Preempt] = []
    if needed > free:
        for victim in preemptor.for_running(draft):
            if needed <= free or live.num_running - len(victims) <= 1:
                break
            if victim.request_id in draft.gone:
                continue
            victims.append(draft.preempt(victim, "running requests need its KV"))
            free += given.freed_blocks(victim)
            needed -= growing.get(victim.request_id, 0)
            if victim.request_id in live.prefilling:
                prompts -= given.missing_blocks(victim)
    draft.num_spare_blocks = max(free - needed - draft.draft_blocks() - prompts, 0)
    return tuple(victims)
