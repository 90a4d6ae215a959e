"""Reserving a request's whole future when it starts, and prompts that are not cut."""

from __future__ import annotations

from headway.policy.admit import Gate
from headway.policy.draft import Draft
from headway.request import Request


class Reserved(Gate):
    """Start a request only if everybody's reservation fits the cache.

    A reservation is the prompt and the *predicted* output, in whole blocks; with
    :class:`~headway.kit.lengths.MaxTokens` that is the worst case, so nobody ever has to
    be evicted. A request whose own reservation exceeds the cache starts when it is alone:
    refusing it would answer less than the engine can.
    """

    def __init__(self) -> None:
        self._is_new = True
        self._blocks = 0
        self._num_residents = 0

    def begin(self, draft: Draft) -> None:
        """Forget the last plan."""
        self._is_new = True

    def fits(self, draft: Draft, request: Request) -> bool:
        """Return whether *request* fits; who did is counted for the rest of this plan.

        Counting on a yes may overcount when the scheduler then finds too few free blocks;
        it never undercounts.
        """
        if self._is_new:
            running = [r for r in draft.given.live.running() if r.request_id not in draft.gone]
            self._is_new, self._num_residents = False, len(running)
            self._blocks = sum(reserved_blocks(draft, r) for r in running)
        blocks = self._blocks + reserved_blocks(draft, request)
        if self._num_residents and blocks > draft.given.view.num_total_blocks:
            return False
        self._blocks, self._num_residents = blocks, self._num_residents + 1
        return True


def reserved_blocks(draft: Draft, request: Request) -> int:
    """Return the blocks of the prompt and the predicted output together."""
    output = max(request.predicted_output_tokens, request.num_output_tokens + 1)
    return draft.given.layout.blocks(request.num_prompt_tokens + output)
