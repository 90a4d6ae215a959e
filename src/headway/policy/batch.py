"""Filling one step: whose prompt gets how many tokens, and who makes room for whom."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from headway.latency.model import StepShape
from headway.policy.admit import Gate
from headway.policy.chunk import Chunker
from headway.policy.draft import Draft
from headway.policy.plan import Chunk, Preempt
from headway.policy.preempt import Preemptor
from headway.policy.prices import LEAST_CHUNK_TOKENS
from headway.request import LATE_GAPS_FORGIVEN, Request, State

MAY_PASS = 8
"""Waiting requests short of KV that others may pass in one plan. With 0 a model with a state keeps
0.993 instead of 0.960 at 8/s, and 0.787 instead of 0.827 at 14/s (LOG.md, *Models with several
groups*). Larger: requests that need much KV wait longer; smaller: free KV lies idle."""


@dataclass(slots=True)
class StepFill:
    """What a batcher decided: the prompt work, whom it preempts, and the step's shape."""

    shape: StepShape
    chunks: list[Chunk] = field(default_factory=list)
    chunk_cap_tokens: int = 0
    preempt: list[Preempt] = field(default_factory=list)


class InOrder:
    """Take candidates in order until the step is full.

    Args:
        may_pass: How many waiting requests that lack KV others may pass in one plan. With 0
            the queue stops at the first that does not fit, as stock vLLM's does.
    """

    def __init__(self, may_pass: int = MAY_PASS) -> None:
        self._may_pass = may_pass

    def fill(
        self,
        draft: Draft,
        candidates: Iterable[Request],
        chunker: Chunker,
        gate: Gate,
        preemptor: Preemptor,
    ) -> StepFill:
        """Return the chunks of the step; ``draft.num_spare_blocks`` shrinks with them."""
        filled = StepFill(draft.shape)
        num_running = draft.given.live.num_running
        blocked = 0
        for request in candidates:
            if request.request_id in draft.gone:
                continue
            waits = request.state is not State.RUNNING
            no_place = num_running >= draft.given.view.max_num_running
            if waits and (no_place or blocked > self._may_pass):
                if num_running and not draft.given.live.prefilling:
                    break
                # Prompts in progress may still come. And where nobody runs, who has KV loaded for
                # it holds what the first lacks, and gives it back only when it is served.
                if no_place or num_running or not request.num_computed_tokens:
                    continue
            overdue = draft.given.is_overdue(request)
            prefix = max(request.num_ready_tokens, draft.coming_tokens(request))
            wanted = request.prefill_target_tokens - prefix
            must_go_on = overdue or (not filled.chunks and is_unconfirmed(draft))
            tokens = chunker.largest(draft, filled.shape, prefix, wanted, must_go_on)
            if tokens <= 0:
                break
            passing = draft.passing_tokens(request, filled.shape.num_prefill_tokens, tokens)
            tokens = max(passing, min(tokens, LEAST_CHUNK_TOKENS))
            if waits and not self._make_room(draft, request, tokens, gate, preemptor, filled):
                # Nobody who waits passes an overdue one, or one that came back when it was told
                # to: the next KV that comes free is its own.
                first = overdue or request.is_expected
                blocked += self._may_pass + 1 if first else 1
                continue
            if waits:
                gate.admitted(draft, request)
            draft.busy.add(request.request_id)
            num_running += waits
            filled.shape = filled.shape.with_chunk(tokens, prefix)
            if tokens == wanted and request.has_claim:
                draft.brings(request, filled.shape)
            filled.chunks.append(Chunk(request.request_id, tokens, waits, _why(draft, request)))
            if tokens < wanted:
                break
        cap_partial(draft, filled)
        return filled

    def _make_room(
        self,
        draft: Draft,
        request: Request,
        tokens: int,
        gate: Gate,
        preemptor: Preemptor,
        filled: StepFill,
    ) -> bool:
        """Return whether a waiting request gets its KV, preempting for it when allowed."""
        needed = draft.blocks_to_start(request, filled.shape.num_prefill_tokens + tokens)
        victims: list[Request] = []
        if needed > draft.num_spare_blocks:  # Cheaper to tell than what the future holds.
            victims = self._victims(draft, request, needed, preemptor)
            if not victims:
                return False
        if not gate.fits(draft, request):
            return False
        self._give_up(draft, request, victims, filled)
        draft.num_spare_blocks -= draft.lasting_blocks(request)
        return True

    def _give_up(
        self, draft: Draft, request: Request, victims: list[Request], filled: StepFill
    ) -> None:
        """Take the victims' KV for *request*."""
        for victim in victims:
            draft.num_spare_blocks += draft.given.freed_blocks(victim)
            why = f"its KV lets {request.request_id} keep its promise"
            filled.preempt.append(draft.preempt(victim, why))

    def _victims(
        self, draft: Draft, request: Request, needed: int, preemptor: Preemptor
    ) -> list[Request]:
        """Return requests whose KV together suffices, or none when that is impossible."""
        if not draft.comes_first(request):
            return []
        taken = draft.busy | draft.gone | {request.request_id}
        victims: list[Request] = []
        spare = draft.num_spare_blocks
        for victim in preemptor.for_claim(draft, request):
            if spare >= needed:
                break
            if victim.request_id not in taken:
                victims.append(victim)
                spare += draft.given.freed_blocks(victim)
        return victims if spare >= needed else []


def is_unconfirmed(draft: Draft) -> bool:
    """Return whether for so long no step has shown that prompts cost what is predicted.

    An estimate by which no prompt fits prevents the steps that would correct it. The step that
    tries may be late: it comes half as often as a promised gap forgives.
    """
    return draft.given.latency.num_steps_unconfirmed * LATE_GAPS_FORGIVEN >= 2


def _why(draft: Draft, request: Request) -> str:
    """Return the reason of a chunk for the plan and the story."""
    if request.state is State.RUNNING:
        return "prompt in progress"
    if request.request_id in draft.risks:
        return draft.risks[request.request_id]
    if request.has_claim and draft.given.price.is_dear(request):
        return "room left: gaps this tight cost the others more promises"
    if request.request_id in draft.set_aside:
        return "room left beside the promises"
    if request.has_claim and request.slo.tenant in draft.given.heavy:
        return "first token due, after those of tenants who had less"
    if draft.given.is_fair(request):
        return "its turn by arrival"
    if not request.has_claim:
        return "best effort"
    times = draft.given.targets.times_of(request.slo)
    return f"first token due, counts {times:.1f} for its target" if times > 1 else "first token due"


def cap_partial(draft: Draft, filled: StepFill) -> None:
    """Make a cut-short prompt in progress fit engines that have one cap for all chunks.

    vLLM gives running requests their tokens before new ones. A prompt in progress that must
    leave room for others is held to its chunk by a cap that applies to everyone, so it only
    takes part when its chunk is the largest.
    """
    if not filled.chunks:
        return
    last = filled.chunks[-1]
    partial_of = draft.given.live.prefilling.get(last.request_id)
    if partial_of is None or last.num_tokens >= partial_of.remaining_prefill_tokens:
        return
    others = max((c.num_tokens for c in filled.chunks[:-1]), default=0)
    if others == 0:
        return
    if others > last.num_tokens:
        filled.chunks.pop()
        prefix = partial_of.num_computed_tokens
        filled.shape = StepShape(
            filled.shape.num_prefill_tokens - last.num_tokens,
            filled.shape.num_prefills - 1,
            filled.shape.num_decodes,
            filled.shape.sum_context_tokens,
            filled.shape.chunk_context - last.num_tokens * (prefix + last.num_tokens / 2),
        )
    else:
        filled.chunk_cap_tokens = last.num_tokens
