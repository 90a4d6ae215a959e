"""Parts without a thought: what servers without promises do."""

from __future__ import annotations

import math
from collections.abc import Iterator

from headway.kit.lengths import MaxTokens
from headway.kit.parts import Feasibility, Parts, Prioritizer
from headway.latency.model import StepShape
from headway.policy.admit import Gate
from headway.policy.batch import InOrder
from headway.policy.chunk import Chunker
from headway.policy.draft import Draft
from headway.policy.preempt import Preemptor
from headway.request import Request


class AllFeasible(Feasibility):
    """Hope for everybody, as servers without promises do."""

    def set_aside(self, draft: Draft, chunker: Chunker) -> tuple[set[str], float]:
        """Return nobody."""
        return set(), 0.0


class ByArrival(Prioritizer):
    """First come, first served; prompts in progress before new ones."""

    def candidates(self, draft: Draft) -> Iterator[Request]:
        """Yield prompts in progress in the order they began, then waiting by arrival.

        Presets that use this order heed no promise, so nobody waits among the claims.
        """
        yield from list(draft.given.live.prefilling.values())
        yield from draft.given.live.others


class FixedChunk(Chunker):
    """A constant token budget a step, whatever the step costs."""

    def __init__(self, budget_tokens: int | None = None) -> None:
        self._budget_tokens = budget_tokens

    def step_limit_s(self, draft: Draft) -> float:
        """A token budget knows no time."""
        return math.inf

    def largest(
        self,
        draft: Draft,
        shape: StepShape,
        prefix: int,
        most: int,
        must_go_on: bool = False,
    ) -> int:
        """Return what the budget leaves."""
        engine = draft.given.view.max_step_tokens
        return max(min(most, min(self._budget_tokens or engine, engine) - shape.num_tokens), 0)


class WholePrompts(FixedChunk):
    """A prompt is computed in one step or not at all, as before chunked prefill.

    A prompt longer than the step has room for goes alone beside the decodes and is cut,
    because the engine cannot do otherwise.
    """

    def largest(
        self,
        draft: Draft,
        shape: StepShape,
        prefix: int,
        most: int,
        must_go_on: bool = False,
    ) -> int:
        """Return *most*, or 0 when it does not fit beside prompts already in the step."""
        fits = super().largest(draft, shape, prefix, most, must_go_on)
        return fits if fits == most or not shape.num_prefill_tokens else 0


class FreeBlocks(Gate):
    """Whoever fits the free blocks may start, as stock vLLM does."""

    def fits(self, draft: Draft, request: Request) -> bool:
        """Always: free blocks are checked for every gate."""
        return True


class Youngest(Preemptor):
    """The request that started last, as stock vLLM does; nobody yields to a newcomer."""

    def for_running(self, draft: Draft) -> Iterator[Request]:
        """Yield running requests, last started first."""
        yield from reversed(list(draft.given.live.prefilling.values()))
        yield from reversed(list(draft.given.live.decoding.values()))


def plain_parts(chunk_tokens: int | None = None) -> Parts:
    """Return what stock vLLM does by default, with *chunk_tokens* a step, else the engine's."""
    return Parts(
        predictor=MaxTokens(),
        feasibility=AllFeasible(),
        prioritizer=ByArrival(),
        chunker=FixedChunk(chunk_tokens),
        gate=FreeBlocks(),
        batcher=InOrder(may_pass=0),
        preemptor=Youngest(),
        heeds_promises=False,
    )
