"""What one plan goes by: the state of requests, engine and clock at one instant, never changed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from typing import Protocol

from headway.kv_layout import KvLayout
from headway.latency.model import LatencyModel, StepShape
from headway.policy.live_requests import LiveRequests
from headway.policy.targets import Targets
from headway.policy.tenants import Tenants
from headway.policy.view import EngineView
from headway.request import Request

OVERDUE_SHARE = 0.8
"""Share of the longest wait after which a request goes first; serving it takes the rest. With half
fewer promises are kept (LOG.md, *Who waited 74 s*, which also tried to plan the wait to 0.95 and
0.7 full). Larger: the wait ends before the service; smaller: more goes before promises."""


class Price(Protocol):
    """What a step may cost for tight promises: :class:`~headway.policy.prices.GapPrices`."""

    least_gap_s: float

    def limit_s(self, given: Inputs, shape: StepShape) -> float:
        """Return the seconds that a step with these decodes may last."""

    def is_dear(self, request: Request) -> bool:
        """Return whether a promised gap would cost the others more than it is worth."""


@dataclass(frozen=True)
class Inputs:
    """The inputs of one call of ``plan``; :class:`~headway.policy.draft.Draft` has its outcome.

    Attributes:
        now_s: The driver's clock.
        ref_s: When the step being planned begins, as far as promises are concerned: the
            end of the step before it (predicted, while that one is still in flight).
        step: Steps scheduled so far.
        step_s: Recent mean duration of a step.
        max_step_s: The longest recent step.
        price: How long a step may last for the sake of tight promises.
        lagging_due_s: Due time of the most urgent decode that is out of step; ``inf``.
        claim_tokens: Prompt tokens of a typical claim: what one more promise costs.
        max_wait_s: Longest a request may wait for its next token; ``inf`` when unbounded.
        targets: What operators want kept, and what promises count for it.
        tenants: Who gives way.
    """

    view: EngineView
    now_s: float
    ref_s: float
    step: int
    step_s: float
    price: Price
    live: LiveRequests
    latency: LatencyModel
    max_step_s: float = 0.0
    lagging_due_s: float = math.inf
    claim_tokens: float = 1.0
    max_wait_s: float = math.inf
    targets: Targets = field(default_factory=Targets)
    tenants: Tenants = field(default_factory=Tenants)

    def worth(self, request: Request) -> float:
        """Return what a promise counts against the others."""
        return self.targets.worth(request)

    @property
    def heavy(self) -> frozenset[str]:
        """The tenants that give way to the others."""
        return self.tenants.heavy

    @cached_property
    def fair(self) -> tuple[Request, ...]:
        """Requests without a promise whose turn it is by arrival, in that order."""
        # Turns come in order of arrival.
        waiting = takewhile(lambda r: r.turn_at_s <= self.ref_s, self.live.turns)
        prompts = self.live.prefilling.values()
        return tuple(sorted(filter(self.is_fair, (*prompts, *waiting)), key=lambda r: r.order))

    def is_fair(self, request: Request) -> bool:
        """Return whether it would be a request's turn by now; see :attr:`fair`."""
        is_turn = request.turn_at_s <= self.ref_s and self.latency.is_warm
        return is_turn and request.slo.tenant not in self.heavy

    @cached_property
    def layout(self) -> KvLayout:
        """How tokens turn into KV blocks."""
        return self.view.layout

    @property
    def capacity_tokens(self) -> int:
        """Tokens the whole KV cache holds."""
        return self.layout.tokens(self.view.num_total_blocks)

    @property
    def held_share(self) -> float:
        """Share of the KV cache that is in use."""
        return 1.0 - self.view.num_free_blocks / max(self.view.num_total_blocks, 1)

    @cached_property
    def room_tokens(self) -> int:
        """Tokens that requests can hold together: the cache, and once more what they share now.

        The engine says how many blocks are in use; where requests hold more between them, they
        hold some of them together. A decode's newest token has no KV yet.
        """
        if self.layout.groups:
            return self._room_in_groups()
        live, view = self.live, self.view
        theirs = live.sum_decode_context_tokens - len(live.decoding)
        theirs += sum(r.num_computed_tokens for r in live.prefilling.values())
        held = self.layout.tokens(view.num_total_blocks - view.num_free_blocks)
        loaded = sum(r.num_computed_tokens for r in live.hindered.values())
        return self.capacity_tokens + max(theirs - held, 0) - loaded

    def _room_in_groups(self) -> int:
        """The same with several groups: a layout counts full windows, which not all requests hold.

        So no more is counted twice than what requests found held when they started, as far as
        their windows still reach back to it.
        """
        live, view, held = self.live, self.view, self.layout.held_tokens
        sizes = [(r.num_tokens - 1, r.num_shared_tokens) for r in live.decoding.values()]
        sizes += [(r.num_computed_tokens, r.num_shared_tokens) for r in live.prefilling.values()]
        theirs = sum(held(num_tokens) for num_tokens, _ in sizes)
        theirs -= self.layout.tokens(view.num_total_blocks - view.num_free_blocks)
        most = sum(held(n) - held(max(n - shared, 0)) for n, shared in sizes if shared)
        loaded = sum(held(r.num_computed_tokens) for r in live.hindered.values())
        return self.capacity_tokens + max(min(most, theirs), 0) - loaded

    def growth_blocks(self) -> dict[str, int]:
        """Return the blocks that decodes take in the step being planned; who is absent takes none.

        Under async scheduling tokens of steps in flight come first.
        """
        layout, ahead = self.layout, self.view.num_steps_in_flight - 1
        every = layout.grows_every_tokens
        return {
            request_id: layout.growth(num_tokens)
            for request_id, request in self.live.decoding.items()
            if not (num_tokens := request.num_tokens + ahead) % every
        }

    def prompt_blocks(self) -> int:
        """Return the blocks that the prompts in progress will keep and do not hold yet."""
        return sum(self.missing_blocks(r) for r in self.live.prefilling.values())

    def missing_blocks(self, request: Request) -> int:
        """Return what :meth:`prompt_blocks` counts for one of them."""
        kept = self.layout.kept_blocks
        return max(kept(request.prefill_target_tokens) - kept(request.num_computed_tokens), 0)

    def freed_blocks(self, victim: Request) -> int:
        """Return the blocks a running request gives back: its newest token has no KV yet.

        Not those that others held when it started.
        """
        layout = self.layout
        shared = layout.whole_blocks(victim.num_shared_tokens)
        if victim.num_computed_tokens < victim.prefill_target_tokens:
            return layout.kept_blocks(victim.num_computed_tokens) - shared
        return layout.kept_blocks(victim.num_tokens - 1) - shared

    def is_overdue(self, request: Request) -> bool:
        """Return whether a request waited so long that it goes before every promise."""
        return self.now_s - request.silent_since_s >= OVERDUE_SHARE * self.max_wait_s
