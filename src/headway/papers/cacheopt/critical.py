"""Who is critical: a live promise whose slack is shorter than the longest recent step.

CacheOPT (arXiv 2503.13773 §3.3, as third parties cite it): only such requests draw on the
global reserve, and they get their minimum KV before the rest. One more step without them may
already be the one that breaks the promise.
"""

from __future__ import annotations

import math

from headway.kit.parts import Part
from headway.policy.draft import Draft
from headway.request import Request, State

PROBE_TOKENS = 512
"""Size of the chunk that tells what a prompt token costs now."""


WINDOW = 128
"""Waiting claims compared with each other, by due time; who is due later competes later."""

MINIMUM_TOKENS = 16
"""B of §3.3, one block: what a critical request is given beyond what it holds."""


class Reserve(Part):
    """What is left, in one plan, of the blocks that only critical requests may draw on."""

    def __init__(self) -> None:
        self.num_blocks_left = 0

    def begin(self, draft: Draft) -> None:
        """Nothing is left until somebody says what is."""
        self.num_blocks_left = 0


class Critical(Part):
    """Tells slack and who is critical; what a step and a prompt token cost is asked once a plan.

    Args:
        counts_queue: Whether a slack counts the prompts due before the request's own, and every
            step that all of them take. Otherwise its own prompt is taken to need one step: then
            requests that become critical together, and prompts longer than a step, begin too late.
        budget_tokens: Of a step; the engine's when ``None``.
    """

    def __init__(self, counts_queue: bool = False, budget_tokens: int | None = None) -> None:
        self._counts_queue = counts_queue
        self._budget_tokens = budget_tokens
        self._known_costs_s: tuple[float, float] | None = None
        self._known_ahead: dict[str, int] | None = None

    def begin(self, draft: Draft) -> None:
        """Forget what steps and tokens cost in the last plan, and who was before whom."""
        self._known_costs_s = None
        self._known_ahead = None

    def slack_s(self, draft: Draft, request: Request, even_if_lost: bool = False) -> float:
        """Return seconds from the step being planned to when *request* must have begun.

        Due time less the predicted time still needed: the decodes of the step its token comes
        out of, and its prompt; with the queue counted, also the prompts due before it and the
        decodes of every step that all of them take. ``inf`` without a live promise, or, where a
        lost promise still counts, without any.
        """
        if not (request.has_claim or (even_if_lost and request.slo.is_promise)):
            return math.inf
        due_s = request.due_at_s
        if request.state is State.RUNNING and request.first_token_at_s is not None:
            due_s = self._next_due_s(draft, request)
        tokens = request.prefill_target_tokens - request.num_computed_tokens
        if request.state is not State.RUNNING:
            tokens = request.num_tokens
        step_s, token_s = self._costs_s(draft)
        num_steps, tokens = 1, max(tokens, 0)
        if tokens and self._counts_queue:
            tokens += self._ahead_tokens(draft, request)
            num_steps = math.ceil(tokens / self._room_tokens(draft))
        return due_s - draft.given.ref_s - num_steps * step_s - tokens * token_s

    def holds(self, draft: Draft, request: Request) -> bool:
        """Return whether *request* is critical."""
        return self.slack_s(draft, request) < draft.given.max_step_s

    @staticmethod
    def _next_due_s(draft: Draft, request: Request) -> float:
        """Return when a stream's next token is due, by its gap or by its last token's due time."""
        slo, due_s = request.slo, math.inf
        if slo.tbt_s is not None and request.last_token_at_s is not None:
            due_s = request.last_token_at_s + slo.tbt_s
        if slo.jct_s is not None:
            due_s = min(
                due_s, request.arrived_at_s + slo.jct_s - request.steps_left * draft.given.step_s
            )
        return due_s

    def _room_tokens(self, draft: Draft) -> int:
        """Return the prompt tokens that a step has room for beside its decodes."""
        engine = draft.given.view.max_step_tokens
        return max(min(self._budget_tokens or engine, engine) - draft.shape.num_decodes, 1)

    def _ahead_tokens(self, draft: Draft, request: Request) -> int:
        """Return the prompt tokens of live promises that are due before *request*."""
        if self._known_ahead is None:
            live, ahead = draft.given.live, 0
            prompts = [
                *((r, r.remaining_prefill_tokens) for r in live.prefilling.values() if r.has_claim),
                *((r, r.num_tokens) for r in live.claims.islice(0, WINDOW)),
            ]
            self._known_ahead = {}
            for r, num_tokens in sorted(prompts, key=lambda p: (p[0].due_at_s, p[0].order)):
                self._known_ahead[r.request_id] = ahead
                ahead += num_tokens
        return self._known_ahead.get(request.request_id, 0)

    def _costs_s(self, draft: Draft) -> tuple[float, float]:
        """Return the seconds of a step with the decodes alone, and of one prompt token more."""
        if self._known_costs_s is None:
            predict_s = draft.given.latency.predict_s
            step_s = predict_s(draft.shape)
            token_s = (predict_s(draft.shape.with_chunk(PROBE_TOKENS, 0)) - step_s) / PROBE_TOKENS
            self._known_costs_s = step_s, token_s
        return self._known_costs_s
