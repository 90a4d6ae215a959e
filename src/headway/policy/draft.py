"""A plan in the making: what has been decided so far, and the room that is left."""

from __future__ import annotations

import math
from collections.abc import Callable, Set
from dataclasses import dataclass, field
from typing import Protocol

from headway.latency.model import StepShape
from headway.policy.inputs import Inputs
from headway.policy.plan import Preempt
from headway.request import LATE_GAPS_FORGIVEN, Request, State


class SwapChoice(Protocol):
    """Decides how one victim loses its KV."""

    def how(self, draft: Draft, victim: Request) -> str:
        """Return ``"swap"`` or ``"recompute"``."""


@dataclass(slots=True)
class Draft:
    """What one call of ``plan`` has decided so far.

    Attributes:
        given: What it goes by.
        swap: Decides whether a victim's KV is copied out or thrown away.
        shape: The decodes of this step, before any prompt token.
        set_aside: Claims that do not fit beside the others now.
        pressure: How much of the prefill that due times leave room for the claims take:
            0 with nothing to prefill, 1 when every second counts.
        gone: Requests that end or lose their KV in this plan: nobody's victim, no chunk.
        busy: Requests that this plan gives prompt tokens: nobody's victim.
        num_spare_blocks: Free blocks nobody running needs for this step or its prompt.
        num_copied_blocks: Blocks this plan swaps out.
        until_s: Seconds the step may last for the first tokens it brings so far; ``inf``.
        risks, victims: Why a gate let in who may cost others their KV; how many it expects to.
    """

    given: Inputs
    swap: SwapChoice
    shape: StepShape = field(init=False)
    set_aside: Set[str] = frozenset()
    pressure: float = 0.0
    gone: set[str] = field(default_factory=set)
    busy: set[str] = field(default_factory=set)
    num_spare_blocks: int = 0
    num_copied_blocks: int = 0
    until_s: float = math.inf
    risks: dict[str, str] = field(default_factory=dict)
    victims: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.shape = self.given.live.decodes

    @property
    def per_token(self) -> float:
        """Promises that the time of one prompt token could keep: what work costs in this plan."""
        return min(self.pressure, 1.0) / self.given.claim_tokens

    def draft_blocks(self) -> int:
        """Return the blocks beyond their growth that decodes take if all have draft tokens.

        Nobody is preempted for them, but a prompt that started in them would not start at all.
        """
        view = self.given.view
        if not view.num_drafts:
            return 0
        kept, first = self.given.layout.kept_blocks, view.num_steps_in_flight
        return sum(
            kept(request.num_tokens + first + view.num_drafts) - kept(request.num_tokens + first)
            for request_id, request in self.given.live.decoding.items()
            if request_id not in self.gone
        )

    def new_blocks(self, request: Request) -> int:
        """Return the free blocks a waiting request takes: those nobody running holds."""
        return self._own_blocks(request, self.given.layout.blocks)

    def lasting_blocks(self, request: Request) -> int:
        """Return the free blocks of :meth:`new_blocks` that a request still has as it decodes."""
        return self._own_blocks(request, self.given.layout.kept_blocks)

    def _own_blocks(self, request: Request, blocks: Callable[[int], int]) -> int:
        """Return what a waiting request takes as *blocks* counts it, beyond what is held now."""
        found = max(request.num_held_tokens, self.coming_tokens(request))
        held = self.given.layout.whole_blocks(found)
        return blocks(request.num_tokens) - held - blocks(request.num_computed_tokens)

    def blocks_to_start(self, request: Request, num_step_tokens: int) -> int:
        """Return the spare blocks a waiting request must find; only some of them it takes.

        Bounded groups hold a step's prompt tokens until the next step is planned: beside what all
        keep, room for the steps under way is enough, of all their prompts together.

        Args:
            num_step_tokens: Prompt tokens of this step, the request's chunk included.
        """
        given, view = self.given, self.given.view
        num_tokens = num_step_tokens * (1 + view.num_steps_in_flight)
        needed = self.lasting_blocks(request) + given.layout.passing_blocks(num_tokens)
        if request.request_id in view.loads:  # Prompts in progress have theirs already.
            needed += max(view.num_kept_blocks - given.prompt_blocks(), 0)
        return needed

    def passing_tokens(self, request: Request, num_step_tokens: int, most_tokens: int) -> int:
        """Return how many of a prompt's next tokens bounded groups have room for in this step.

        Args:
            num_step_tokens: Prompt tokens that the step has already.
        """
        layout = self.given.layout
        if not layout.groups:
            return most_tokens
        waits = request.state is not State.RUNNING
        spare = self.num_spare_blocks - (self.lasting_blocks(request) if waits else 0)
        steps, most = 1 + self.given.view.num_steps_in_flight, num_step_tokens + most_tokens
        return layout.passing_tokens(spare, most * steps) // steps - num_step_tokens

    def coming_tokens(self, request: Request) -> int:
        """Return the tokens of a waiting request that this plan has another one compute first.

        A prompt that is cut is the last of a plan, so whoever comes after finds all it has in
        common.
        """
        return request.num_common_tokens if request.computed_by in self.busy else 0

    def preempt(self, victim: Request, reason: str) -> Preempt:
        """Take a victim's KV in this plan, the cheaper way; its blocks are not yet counted."""
        self.gone.add(victim.request_id)
        how = self.swap.how(self, victim)
        if how == "swap":
            self.num_copied_blocks += self.given.layout.whole_blocks(victim.kv_tokens)
        return Preempt(victim.request_id, how, reason)

    def brings(self, claim: Request, shape: StepShape) -> None:
        """Count in that a step of this shape brings *claim* its first token, if it can be in time.

        What else the step takes on delays that token too.
        """
        given = self.given
        until_s = (claim.due_at_s - given.ref_s) / given.latency.margin(True, LATE_GAPS_FORGIVEN)
        if given.latency.predict_s(shape) <= until_s:
            self.until_s = min(self.until_s, until_s)

    def comes_first(self, request: Request) -> bool:
        """Return whether best effort must make room: a live promise, or overdue."""
        if request.has_claim and request.request_id not in self.set_aside:
            return True
        return self.given.is_overdue(request)
