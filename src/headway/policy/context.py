"""Everything one plan may look at. Parts read it; only the scheduler writes it."""

from __future__ import annotations

import math
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from headway.latency.model import LatencyModel, StepShape
from headway.policy.kv.layout import KvLayout
from headway.policy.kv.ledger import KvLedger
from headway.policy.live import LiveRequests
from headway.policy.plan import Preempt
from headway.policy.swap_choice import AlwaysRecompute, SwapChoice
from headway.policy.view import EngineView
from headway.request import Request, State

if TYPE_CHECKING:
    from headway.policy.price import StepPrice

OVERDUE_SHARE = 0.8
"""Share of the longest wait after which a request goes first; serving it takes the rest."""


@dataclass(slots=True)
class PlanContext:
    """The state of one call of ``plan``.

    Attributes:
        now_s: The driver's clock.
        ref_s: When the step being planned begins, as far as promises are concerned: the
            end of the step before it (predicted, while that one is still in flight).
        step: Steps scheduled so far.
        step_s: Recent mean duration of a step.
        max_step_s: The longest recent step.
        price: How long a step may last for the sake of tight promises.
        tightest_ttft_s: Tightest TTFT promised recently; ``inf`` when none.
        lagging_due_s: Due time of the most urgent decode that is out of step; ``inf``.
        set_aside: Claims that do not fit beside the others now.
        pressure: How much of the prefill the claims' due times leave is already spoken for:
            0 with nothing to prefill, 1 when every second counts.
        claim_tokens: Prompt tokens of a typical claim: what one more promise costs.
        shape: The decodes of this step, before any prompt token.
        max_wait_s: Longest a request may wait for its next token; ``inf`` when unbounded.
        gone: Requests that end or lose their KV in this plan: nobody's victim, no chunk.
        busy: Requests that this plan gives prompt tokens: nobody's victim.
        num_spare_blocks: Free blocks nobody running needs for this step or its prompt.
        num_reserve_blocks: Free blocks beyond those, for critical requests only.
        num_short_blocks: Blocks missing while victims are looked for.
        swap: Decides whether a victim's KV is copied out or thrown away.
        num_copied_blocks: Blocks this plan swaps out.
        until_s: Seconds the step may last for the first tokens it brings so far; ``inf``.
        risks: Why a gate let somebody in who may cost others their KV, by request.
        layout: How tokens turn into KV blocks.
    """

    view: EngineView
    now_s: float
    ref_s: float
    step: int
    step_s: float
    price: StepPrice
    tightest_ttft_s: float
    lagging_due_s: float
    live: LiveRequests
    ledger: KvLedger
    latency: LatencyModel
    set_aside: Set[str] = frozenset()
    pressure: float = 0.0
    claim_tokens: float = 300.0
    shape: StepShape = field(default_factory=StepShape)
    max_wait_s: float = math.inf
    gone: set[str] = field(default_factory=set)
    num_spare_blocks: int = 0
    max_step_s: float = 0.0
    busy: set[str] = field(default_factory=set)
    num_reserve_blocks: int = 0
    num_short_blocks: int = 0
    swap: SwapChoice = field(default_factory=AlwaysRecompute)
    num_copied_blocks: int = 0
    until_s: float = math.inf
    risks: dict[str, str] = field(default_factory=dict)
    layout: KvLayout = field(init=False)
    _room_tokens: int | None = None

    def __post_init__(self) -> None:
        self.layout = self.view.layout

    def blocks(self, num_tokens: int) -> int:
        """Return the blocks that a prompt of *num_tokens* needs."""
        return self.layout.blocks(num_tokens)

    @property
    def capacity_tokens(self) -> int:
        """Tokens the whole KV cache holds."""
        return self.layout.tokens(self.view.num_total_blocks)

    @property
    def room_tokens(self) -> int:
        """Tokens that requests can hold together: the cache, and once more what they share now.

        The engine says how many blocks are in use; where requests hold more between them, they
        hold some of them together. A decode's newest token has no KV yet.
        """
        if self.layout.groups:
            return self._room_in_groups
        live, view = self.live, self.view
        theirs = live.sum_decode_context_tokens - len(live.decoding)
        theirs += sum(r.num_computed_tokens for r in live.prefilling.values())
        held = self.layout.tokens(view.num_total_blocks - view.num_free_blocks)
        loaded = sum(r.num_computed_tokens for r in live.hindered.values())
        return self.capacity_tokens + max(theirs - held, 0) - loaded

    @property
    def _room_in_groups(self) -> int:
        """The same with several groups: a layout counts full windows, which not all requests hold.

        So no more is counted twice than what requests found held when they started, as far as
        their windows still reach back to it.
        """
        if self._room_tokens is None:
            live, view, held = self.live, self.view, self.layout.held_tokens
            sizes = [(r.num_tokens - 1, r.num_shared_tokens) for r in live.decoding.values()]
            sizes += [
                (r.num_computed_tokens, r.num_shared_tokens) for r in live.prefilling.values()
            ]
            theirs = sum(held(num_tokens) for num_tokens, _ in sizes)
            theirs -= self.layout.tokens(view.num_total_blocks - view.num_free_blocks)
            most = sum(held(n) - held(max(n - shared, 0)) for n, shared in sizes if shared)
            loaded = sum(held(r.num_computed_tokens) for r in live.hindered.values())
            self._room_tokens = self.capacity_tokens + max(min(most, theirs), 0) - loaded
        return self._room_tokens

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

    def draft_blocks(self) -> int:
        """Return the blocks beyond :meth:`growth_blocks` that decodes take if all have drafts.

        Nobody is preempted for them, but a prompt that started in them would not start at all.
        """
        most = self.view.num_drafts
        if not most:
            return 0
        kept, first = self.layout.kept_blocks, self.view.num_steps_in_flight
        return sum(
            kept(request.num_tokens + first + most) - kept(request.num_tokens + first)
            for request_id, request in self.live.decoding.items()
            if request_id not in self.gone
        )

    def prompt_blocks(self) -> int:
        """Return the blocks that the prompts in progress will keep and do not hold yet."""
        return sum(self.missing_blocks(r) for r in self.live.prefilling.values())

    def missing_blocks(self, request: Request) -> int:
        """Return what :meth:`prompt_blocks` counts for one of them."""
        kept = self.layout.kept_blocks
        return max(kept(request.prefill_target_tokens) - kept(request.num_computed_tokens), 0)

    def new_blocks(self, request: Request) -> int:
        """Return the free blocks a waiting request takes: those nobody running holds."""
        return self._own_blocks(request, self.layout.blocks)

    def lasting_blocks(self, request: Request) -> int:
        """Return the free blocks of :meth:`new_blocks` that a request still has as it decodes."""
        return self._own_blocks(request, self.layout.kept_blocks)

    def _own_blocks(self, request: Request, blocks: Callable[[int], int]) -> int:
        """Return what a waiting request takes as *blocks* counts it, beyond what is held now."""
        held = self.layout.whole_blocks(max(request.num_held_tokens, self.coming_tokens(request)))
        return blocks(request.num_tokens) - held - blocks(request.num_computed_tokens)

    def blocks_to_start(self, request: Request, num_step_tokens: int) -> int:
        """Return the spare blocks a waiting request must find; only some of them it takes.

        Bounded groups hold a step's prompt tokens until the next step is planned: beside what all
        keep, room for the steps under way is enough, of all their prompts together.

        Args:
            num_step_tokens: Prompt tokens of this step, the request's chunk included.
        """
        num_tokens = num_step_tokens * (1 + self.view.num_steps_in_flight)
        needed = self.lasting_blocks(request) + self.layout.passing_blocks(num_tokens)
        if request.request_id in self.view.loads:  # Prompts in progress have theirs already.
            needed += max(self.view.num_kept_blocks - self.prompt_blocks(), 0)
        return needed

    def passing_tokens(self, request: Request, num_step_tokens: int, most_tokens: int) -> int:
        """Return how many of a prompt's next tokens bounded groups have room for in this step.

        Args:
            num_step_tokens: Prompt tokens that the step has already.
        """
        if not self.layout.groups:
            return most_tokens
        waits = request.state is not State.RUNNING
        spare = self.num_spare_blocks - (self.lasting_blocks(request) if waits else 0)
        steps, most = 1 + self.view.num_steps_in_flight, num_step_tokens + most_tokens
        return self.layout.passing_tokens(spare, most * steps) // steps - num_step_tokens

    def coming_tokens(self, request: Request) -> int:
        """Return the tokens of a waiting request that this plan has another one compute first.

        A prompt that is cut is the last of a plan, so whoever comes after finds all it has in
        common.
        """
        return request.num_common_tokens if request.computed_by in self.busy else 0

    @property
    def held_share(self) -> float:
        """Share of the KV cache that is in use."""
        return 1.0 - self.view.num_free_blocks / max(self.view.num_total_blocks, 1)

    def freed_blocks(self, victim: Request) -> int:
        """Return the blocks a running request gives back: its newest token has no KV yet.

        Not those that others held when it started.
        """
        layout = self.layout
        shared = layout.whole_blocks(victim.num_shared_tokens)
        if victim.num_computed_tokens < victim.prefill_target_tokens:
            return layout.kept_blocks(victim.num_computed_tokens) - shared
        return layout.kept_blocks(victim.num_tokens - 1) - shared

    def preempt(self, victim: Request, reason: str) -> Preempt:
        """Take a victim's KV in this plan, the cheaper way; its blocks are not yet counted."""
        self.gone.add(victim.request_id)
        how = self.swap.how(self, victim)
        if how == "swap":
            self.num_copied_blocks += self.layout.whole_blocks(victim.kv_tokens)
        return Preempt(victim.request_id, how, reason)

    def brings(self, claim: Request, shape: StepShape) -> None:
        """Count in that a step of this shape brings *claim* its first token, if it can be in time.

        What else the step takes on delays that token too.
        """
        until_s = (claim.due_at_s - self.ref_s) / self.latency.margin(True, 0.05)
        if self.latency.predict_s(shape) <= until_s:
            self.until_s = min(self.until_s, until_s)

    def is_overdue(self, request: Request) -> bool:
        """Return whether a request waited so long that it goes before every promise."""
        return self.now_s - request.silent_since_s >= OVERDUE_SHARE * self.max_wait_s

    def comes_first(self, request: Request) -> bool:
        """Return whether best effort must make room: a live promise, or overdue."""
        if request.has_claim and request.request_id not in self.set_aside:
            return True
        return self.is_overdue(request)
