"""``vllm_v0``: the vLLM that the papers of 2024 measured, prompts first and whole.

The rule of release 0.6.3.post1 with its defaults, from ``vllm/core/scheduler.py``
(``_schedule_default`` and what it calls) and ``vllm/core/block_manager.py``. A step computes whole
prompts, first come, first served, while nobody is swapped out and 1 % of the blocks stays free, and
nobody decodes in it; with no prompt to start, all decode. A decode goes on only while one block is
free, whether it needs it or not, else the request that started last loses its KV and waits before
all others. Swapped ones come back in the order they left, in a step that preempts nobody.

Differs: a prompt longer than a step, which that release would ignore, is computed alone in as many
steps as it takes, and decodes wait for it as for one long step. A prompt that leaves less than 1 %
free starts when nobody runs, and the last one running is never preempted; both would be ignored
there. A swapped request computes again what did not fill a block; one whose copy has no room on
the host is recomputed, where that release ends the server.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, count

from headway.kit.lengths import MaxTokens
from headway.kit.one_walk import OneWalk
from headway.kit.options import one_of, positive_count, positive_tokens
from headway.kit.simple import FixedChunk
from headway.latency.model import StepShape
from headway.policy.batch import StepFill, cap_partial
from headway.policy.draft import Draft, SwapChoice
from headway.policy.live_requests import LiveRequests
from headway.policy.plan import Chunk, Preempt
from headway.policy.preempt import Preemptor
from headway.policy.swap_choice import AlwaysRecompute, WhereverItFits
from headway.policy.view import EngineView
from headway.request import Request, State

WATERMARK = 0.01
"""Share of the blocks that no request may take by starting or coming back. That release's value."""

MODES: dict[str, type[SwapChoice]] = {"recompute": AlwaysRecompute, "swap": WhereverItFits}
"""What ``preemption_mode`` may be."""


class PromptsFirst(OneWalk):
    """A step of whole prompts, or of all decodes; see the module's docstring."""

    def __init__(self, max_step_tokens: int | None, max_num_seqs: int, swap: SwapChoice) -> None:
        super().__init__(MaxTokens(), FixedChunk(), heeds_promises=False, swap=swap)
        self._max_step_tokens = max_step_tokens
        self._max_num_seqs = max_num_seqs
        self._filled = StepFill(StepShape())
        self._is_prompts = False
        self._ranks = count(1)
        self._started: dict[str, int] = {}
        """Ranks of starting; may hold requests that have ended."""
        self._lost: dict[str, int] = {}
        """Who waits since a preemption, in that order, and the tokens of KV kept on the host."""

    def forget(self, draft: Draft) -> None:
        """Forget the last plan's step, and who has started again."""
        requests = draft.given.live.requests
        if self._lost:
            self._lost = {
                request_id: kept
                for request_id, kept in self._lost.items()
                if request_id in requests and requests[request_id].state is State.PREEMPTED
            }
        if len(self._started) > 2 * len(requests) + 64:
            self._started = {i: rank for i, rank in self._started.items() if i in requests}

    def decides_decodes(self, draft: Draft) -> bool:
        """Return false: with no prompt and nobody swapped out, all decode."""
        return False

    def fund(self, draft: Draft, preemptor: Preemptor) -> tuple[Preempt, ...]:
        """Decide the step; only where all decode somebody may have to make room."""
        given = draft.given
        self._filled = StepFill(StepShape())
        draft.num_spare_blocks = max(given.view.num_free_blocks - given.prompt_blocks(), 0)
        swapped = self._swapped(given.live)
        if given.live.prefilling:
            self._go_on(draft)
        elif not swapped:
            self._start_prompts(draft)
        self._is_prompts = bool(self._filled.chunks)
        if self._is_prompts:
            return ()
        self._filled.shape = draft.shape
        preempted = self._make_room(draft, preemptor)
        if swapped and not preempted:
            self._bring_back(draft, swapped)
        return preempted

    def hold(self, draft: Draft) -> tuple[str, ...]:
        """Return every decode where the step is of prompts, else nobody."""
        if not self._is_prompts:
            return ()
        draft.shape = StepShape()
        return tuple(draft.given.live.decoding)

    def fill(self, draft: Draft, preemptor: Preemptor) -> StepFill:
        """Return what was decided."""
        cap_partial(draft, self._filled)
        return self._filled

    def for_running(self, draft: Draft) -> Iterator[Request]:
        """Yield running requests, last started first."""
        yield from sorted(draft.given.live.running(), key=self._rank, reverse=True)

    # -- a step of prompts -----------------------------------------------------------------

    def _go_on(self, draft: Draft) -> None:
        """Compute a prompt that was longer than a step, alone."""
        for request in draft.given.live.prefilling.values():
            wanted = request.prefill_target_tokens - request.num_computed_tokens
            tokens = min(wanted, self._tokens_left(draft))
            if tokens > 0:
                self._take(draft, request, tokens, request.num_computed_tokens)

    def _start_prompts(self, draft: Draft) -> None:
        """Start who waits, in order, until the first that does not fit."""
        given, chunks = draft.given, self._filled.chunks
        seats = self._seats(given.view) - given.live.num_running
        is_blocked = False
        for request in self._waiting(given.live):
            if request.request_id in draft.gone:
                continue
            if is_blocked and not request.num_computed_tokens:
                continue
            if len(chunks) >= seats:
                break
            is_alone = not (given.live.num_running or chunks)
            prefix = max(request.num_ready_tokens, draft.coming_tokens(request))
            wanted = request.prefill_target_tokens - prefix
            tokens = min(wanted, self._tokens_left(draft))
            if tokens < wanted and chunks:
                break
            needed = draft.blocks_to_start(request, self._filled.shape.num_prefill_tokens + tokens)
            if not self._fits(draft, needed, is_alone):
                if not is_alone:
                    break
                is_blocked = True  # By who has KV loaded for it, if it is not too long for all.
                continue
            draft.num_spare_blocks -= draft.lasting_blocks(request)
            self._take(draft, request, tokens, prefix)
            if tokens < wanted:
                break

    def _waiting(self, live: LiveRequests) -> Iterator[Request]:
        """Yield who was recomputed last, then the others by arrival."""
        lost = self._lost
        again = (live.requests[i] for i in reversed(lost) if not lost[i])
        fresh = (r for r in live.others if r.request_id not in lost)
        return (r for r in chain(again, fresh) if not r.hindrance)

    # -- a step of decodes -----------------------------------------------------------------

    def _make_room(self, draft: Draft, preemptor: Preemptor) -> tuple[Preempt, ...]:
        """Preempt from the last started until each decode finds a free block when it is asked.

        The first that started is never preempted: alone it can have what there is.
        """
        given = draft.given
        decodes = [r for i, r in given.live.decoding.items() if i not in draft.gone]
        free = given.view.num_free_blocks
        most = given.layout.most_growth * len(decodes)
        if free >= most and not self._lost:
            draft.num_spare_blocks = free - most
            return ()
        growing = given.growth_blocks()
        youngest = preemptor.for_running(draft)
        preempted: list[Preempt] = []
        for request in sorted(decodes, key=self._rank):
            needed = growing.get(request.request_id, 0)
            while request.request_id not in draft.gone and free < max(needed, 1):
                victim = next((r for r in youngest if r.request_id not in draft.gone), None)
                if victim is None or len(preempted) + 1 >= len(decodes):
                    break
                preempted.append(draft.preempt(victim, "a decode finds no free block"))
                free += given.freed_blocks(victim)
                size = given.view.block_size_tokens
                kept = (victim.num_tokens - 1) // size * size
                self._lost[victim.request_id] = kept if preempted[-1].how == "swap" else 0
            if request.request_id not in draft.gone:
                free -= needed
        draft.num_spare_blocks = max(free - draft.draft_blocks(), 0)
        return tuple(preempted)

    def _swapped(self, live: LiveRequests) -> list[Request]:
        """Return who is swapped out and could come back, in the order they left."""
        left = (live.requests[i] for i, kept in self._lost.items() if kept)
        return [request for request in left if not request.hindrance]

    def _bring_back(self, draft: Draft, swapped: list[Request]) -> None:
        """Bring the swapped back, in order, until the first that does not fit."""
        live = draft.given.live
        for request in swapped:
            ready = max(self._lost[request.request_id], request.num_ready_tokens)
            wanted = max(request.prefill_target_tokens - ready, 1)
            num_running = live.num_running + len(self._filled.chunks)
            if num_running >= self._seats(draft.given.view) or wanted > self._tokens_left(draft):
                break
            if not self._fits(draft, draft.new_blocks(request), num_running == 0):
                break
            draft.num_spare_blocks -= draft.lasting_blocks(request)
            self._take(draft, request, wanted, ready)

    # -- both ------------------------------------------------------------------------------

    def _take(self, draft: Draft, request: Request, num_tokens: int, prefix: int) -> None:
        """Give a request its tokens in this step, *prefix* being there."""
        starts = request.state is not State.RUNNING
        if starts:
            self._started[request.request_id] = next(self._ranks)
        kept = self._lost.get(request.request_id)
        why = "back from the host" if kept else "its turn" if starts else "prompt in progress"
        draft.busy.add(request.request_id)
        self._filled.shape = self._filled.shape.with_chunk(num_tokens, prefix)
        self._filled.chunks.append(Chunk(request.request_id, num_tokens, starts, why))

    def _tokens_left(self, draft: Draft) -> int:
        engine = draft.given.view.max_step_tokens
        return min(self._max_step_tokens or engine, engine) - self._filled.shape.num_tokens

    def _fits(self, draft: Draft, num_blocks: int, is_alone: bool) -> bool:
        """Return whether so many blocks leave the watermark, which nobody heeds alone."""
        kept_free = 0 if is_alone else int(WATERMARK * draft.given.view.num_total_blocks)
        return draft.num_spare_blocks - num_blocks >= kept_free

    def _seats(self, view: EngineView) -> int:
        return min(self._max_num_seqs, view.max_num_running)

    def _rank(self, request: Request) -> tuple[int, int]:
        """Return when a request started, among others; what the engine itself started is oldest."""
        return self._started.get(request.request_id, 0), request.order


def planner(
    max_num_batched_tokens: int | None = None,
    max_num_seqs: int = 256,
    preemption_mode: str = "recompute",
) -> PromptsFirst:
    """Prompts first and whole, then all decodes; promises decide nothing.

    Args:
        max_num_batched_tokens: Prompt tokens of a step, at most the engine's, which ``None`` takes.
            That release had the model's length, and at least 2,048.
        max_num_seqs: Requests that run together, at most the engine's.
        preemption_mode: ``"recompute"``, or ``"swap"`` where the host has room.
    """
    if max_num_batched_tokens is not None:
        positive_tokens("max_num_batched_tokens", max_num_batched_tokens)
    return PromptsFirst(
        max_num_batched_tokens,
        positive_count("max_num_seqs", max_num_seqs),
        MODES[one_of("preemption_mode", preemption_mode, MODES)](),
    )
