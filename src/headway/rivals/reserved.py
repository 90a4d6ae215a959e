"""Reserving a request's whole future when it starts, and prompts that are not cut."""

from __future__ import annotations

from headway.latency.model import StepShape
from headway.policy.admit import Gate
from headway.policy.chunk import FixedChunk
from headway.policy.context import PlanContext
from headway.request import Request


class Reserved(Gate):
    """Start a request only if everybody's reservation fits the cache.

    A reservation is the prompt and the *predicted* output, in whole blocks; with
    :class:`~headway.policy.predict.MaxTokens` that is the worst case, so nobody ever has to
    be evicted. A request whose own reservation exceeds the cache starts when it is alone:
    refusing it would answer less than the engine can.
    """

    def __init__(self) -> None:
        self._ctx: PlanContext | None = None
        self._blocks = 0
        self._num_residents = 0

    def fits(self, ctx: PlanContext, request: Request) -> bool:
        """Return whether *request* fits; who did is counted for the rest of this plan.

        Counting on a yes may overcount when the scheduler then finds too few free blocks;
        it never undercounts.
        """
        if ctx is not self._ctx:
            running = [r for r in ctx.live.running() if r.request_id not in ctx.gone]
            self._ctx, self._num_residents = ctx, len(running)
            self._blocks = sum(reserved_blocks(ctx, r) for r in running)
        blocks = self._blocks + reserved_blocks(ctx, request)
        if self._num_residents and blocks > ctx.view.num_total_blocks:
            return False
        self._blocks, self._num_residents = blocks, self._num_residents + 1
        return True


def reserved_blocks(ctx: PlanContext, request: Request) -> int:
    """Return the blocks of the prompt and the predicted output together."""
    output = max(request.predicted_output_tokens, request.num_output_tokens + 1)
    return ctx.blocks(request.num_prompt_tokens + output)


class WholePrompts(FixedChunk):
    """A prompt is computed in one step or not at all, as before chunked prefill.

    A prompt longer than the step has room for goes alone beside the decodes and is cut,
    because the engine cannot do otherwise.
    """

    def largest(
        self,
        ctx: PlanContext,
        shape: StepShape,
        prefix: int,
        most: int,
        must_go_on: bool = False,
    ) -> int:
        """Return *most*, or 0 when it does not fit beside prompts already in the step."""
        fits = super().largest(ctx, shape, prefix, most, must_go_on)
        return fits if fits == most or not shape.num_prefill_tokens else 0
