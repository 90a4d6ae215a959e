"""A step composed in one order of importance over *all* live requests, decodes included.

FastServe and xLLM do not let every running stream decode.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from headway.kit.one_walk import OneWalk
from headway.kit.parts import Part
from headway.kit.simple import FixedChunk
from headway.latency.model import StepShape
from headway.policy.batch import StepFill, cap_partial
from headway.policy.chunk import largest_chunk
from headway.policy.draft import Draft
from headway.policy.plan import Chunk, Preempt
from headway.policy.predict import Predictor
from headway.policy.preempt import Preemptor
from headway.policy.prices import LEAST_CHUNK_TOKENS
from headway.request import Request, State


class Ranking(Part, Protocol):
    """What tells one such rival from another."""

    def order(self, draft: Draft) -> list[Request]:
        """Return every live request, the most important first."""

    def limit_s(self, draft: Draft) -> float:
        """Return the seconds the step may take; ``inf`` when only tokens are counted."""

    def displaces(self, draft: Draft, newcomer: Request, resident: Request) -> bool:
        """Return whether *newcomer* may take the KV of *resident*, who ranks below it."""


@dataclass(slots=True)
class WalkOutcome:
    """One walk's outcome and the room it has left. Sizes in tokens, blocks and requests."""

    num_tokens_left: int
    num_batch_left: int
    num_slots_left: int
    num_spare_blocks: int
    limit_s: float
    shape: StepShape = field(default_factory=StepShape)
    chunks: list[Chunk] = field(default_factory=list)
    held: list[str] = field(default_factory=list)
    victims: dict[str, tuple[Request, str]] = field(default_factory=dict)
    is_full: bool = False
    is_blocked: bool = False


class RankedPlanner(OneWalk):
    """Composes steps by a :class:`Ranking`.

    Args:
        max_batch: Requests computed in one step; ``None`` leaves it to the engine.
        least_partial_tokens: A prompt is not cut to fewer tokens than this.
        walk: See :class:`~headway.kit.one_walk.OneWalk`.
    """

    def __init__(
        self,
        ranking: Ranking,
        lengths: Predictor,
        max_batch: int | None = None,
        least_partial_tokens: int = 1,
        **walk: Any,
    ) -> None:
        super().__init__(lengths, FixedChunk(), **walk)
        self.ranking = ranking
        self._max_batch = max_batch
        self._least_partial_tokens = least_partial_tokens
        self._choice: WalkOutcome | None = None

    # -- the decisions --------------------------------------------------------------------

    def forget(self, draft: Draft) -> None:
        """Forget the last plan's step."""
        self._choice = None
        self.ranking.begin(draft)

    def hold(self, draft: Draft) -> tuple[str, ...]:
        """Return the decodes the walk found no room for."""
        choice = self._choose(draft)
        draft.shape = choice.shape.decodes
        return tuple(choice.held)

    def fill(self, draft: Draft, preemptor: Preemptor) -> StepFill:
        """Return what the walk chose."""
        choice = self._choose(draft)
        filled = StepFill(choice.shape, list(choice.chunks))
        for victim, why in choice.victims.values():
            draft.gone.add(victim.request_id)
            filled.preempt.append(Preempt(victim.request_id, "recompute", why))
        cap_partial(draft, filled)
        draft.num_spare_blocks = choice.num_spare_blocks
        return filled

    def for_running(self, draft: Draft) -> Iterator[Request]:
        """Yield running requests, the least important first."""
        for request in reversed(self.ranking.order(draft)):
            if request.state is State.RUNNING:
                yield request

    # -- the walk -------------------------------------------------------------------------

    def _choose(self, draft: Draft) -> WalkOutcome:
        if self._choice is None:
            self._choice = self._walk(draft)
        return self._choice

    def _walk(self, draft: Draft) -> WalkOutcome:
        """Give the step to the most important until tokens, time, batch or KV run out."""
        view = draft.given.view
        num_running = sum(r.request_id not in draft.gone for r in draft.given.live.running())
        choice = WalkOutcome(
            num_tokens_left=view.max_step_tokens,
            num_batch_left=self._max_batch or view.max_num_running,
            num_slots_left=view.max_num_running - num_running,
            num_spare_blocks=draft.num_spare_blocks,
            limit_s=self.ranking.limit_s(draft),
        )
        gone = draft.gone.union(draft.given.live.hindered)
        order = [r for r in self.ranking.order(draft) if r.request_id not in gone]
        for rank, request in enumerate(order):
            if request.request_id in choice.victims:
                continue
            if choice.num_tokens_left <= 0 or choice.num_batch_left <= 0:
                choice.is_full = True
            if request.request_id in draft.given.live.decoding:
                self._take_decode(draft, choice, request)
            elif not choice.is_full:
                self._take_prompt(draft, choice, request, order[rank + 1 :])
        return choice

    def _take_decode(self, draft: Draft, choice: WalkOutcome, request: Request) -> None:
        shape = choice.shape.with_decode(request.num_tokens)
        is_first = not choice.shape.num_decodes and not choice.shape.num_prefills
        if not choice.is_full and not is_first and choice.limit_s < math.inf:
            choice.is_full = draft.given.latency.predict_s(shape) > choice.limit_s
        if choice.is_full:
            choice.held.append(request.request_id)
            return
        choice.shape = shape
        choice.num_tokens_left -= 1
        choice.num_batch_left -= 1

    def _take_prompt(
        self, draft: Draft, choice: WalkOutcome, request: Request, below: list[Request]
    ) -> None:
        waits = request.state is not State.RUNNING
        if waits and choice.is_blocked:
            return
        wanted = request.prefill_target_tokens - request.num_computed_tokens
        num_tokens = self._chunk_tokens(draft, choice, request, wanted)
        if num_tokens <= 0:
            choice.is_full = True
            return
        if waits and not self._make_room(draft, choice, request, below):
            choice.is_blocked = True  # Nobody who waits passes it: KV that comes free is its.
            return
        why = "its rank" if waits else "prompt in progress"
        choice.chunks.append(Chunk(request.request_id, num_tokens, waits, why))
        choice.shape = choice.shape.with_chunk(num_tokens, request.num_computed_tokens)
        choice.num_tokens_left -= num_tokens
        choice.num_batch_left -= 1
        choice.is_full = choice.is_full or num_tokens < wanted

    def _chunk_tokens(
        self, draft: Draft, choice: WalkOutcome, request: Request, wanted: int
    ) -> int:
        """Return the tokens of this prompt the step has room for; some if it would be empty."""
        most = min(wanted, choice.num_tokens_left)
        prefix, predict_s = request.num_computed_tokens, draft.given.latency.predict_s
        fits = most
        if choice.limit_s < math.inf:
            fits = largest_chunk(choice.limit_s, choice.shape, prefix, most, predict_s)
        if fits == wanted or fits >= self._least_partial_tokens:
            return fits
        is_empty = not choice.shape.num_decodes and not choice.shape.num_prefills
        return min(most, LEAST_CHUNK_TOKENS) if is_empty else 0

    def _make_room(
        self, draft: Draft, choice: WalkOutcome, request: Request, below: list[Request]
    ) -> bool:
        """Find a slot and KV for a waiting request, from those below it if need be."""
        needed = draft.new_blocks(request)
        slots, spare = choice.num_slots_left, choice.num_spare_blocks
        victims: list[Request] = []
        for resident in reversed(below):
            if slots > 0 and spare >= needed:
                break
            if (
                resident.state is State.RUNNING
                and resident.request_id not in choice.victims
                and self.ranking.displaces(draft, request, resident)
            ):
                victims.append(resident)
                slots, spare = slots + 1, spare + draft.given.freed_blocks(resident)
        if slots <= 0 or spare < needed:
            return False
        for victim in victims:
            why = f"{request.request_id} ranks above it and needs its KV"
            choice.victims[victim.request_id] = (victim, why)
        choice.num_slots_left, choice.num_spare_blocks = slots - 1, spare - needed
        return True
