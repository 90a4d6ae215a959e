"""A step while it is being composed: what is in it, and how much room is left."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from headway.latency.model import StepShape
from headway.papers.accelgen.a1_chunk import Budget
from headway.papers.accelgen.a2_order import Task
from headway.policy.draft import Draft
from headway.policy.plan import Chunk, Preempt
from headway.request import Request, State


@dataclass(slots=True)
class Composition:
    """The books of one composition.

    Attributes:
        num_slots: Requests that may still start.
        spare_blocks: KV for whoever starts: the engine wants room for its whole prompt.
        free_blocks: KV for prompts in progress, that of others in progress included.
        promise_s: The tightest promise of those in the step.
        cut: The one prompt the step does not complete; it goes last.
    """

    draft: Draft
    budget: Budget
    num_slots: int
    spare_blocks: int
    free_blocks: int
    promise_s: float = math.inf
    shape: StepShape = field(default_factory=StepShape)
    whole: list[Chunk] = field(default_factory=list)
    cut: Chunk | None = None
    held: list[str] = field(default_factory=list)
    victims: list[Preempt] = field(default_factory=list)

    @classmethod
    def of(cls, draft: Draft, budget: Budget) -> Composition:
        """Return an empty step beside what the scheduler has already decided to end."""
        live, view = draft.given.live, draft.given.view
        gone = [r for r in live.running() if r.request_id in draft.gone]
        free = view.num_free_blocks + sum(draft.given.freed_blocks(r) for r in gone)
        growing = sum(
            blocks for i, blocks in draft.given.growth_blocks().items() if i not in draft.gone
        )
        num_running = live.num_running - len(gone)
        slots = view.max_num_running - num_running
        return cls(draft, budget, slots, draft.num_spare_blocks, max(free - growing, 0))

    @property
    def chunks(self) -> list[Chunk]:
        """Prompt work in the plan's order: whoever is cut comes last."""
        return self.whole if self.cut is None else [*self.whole, self.cut]

    def room_tokens(self, task: Task) -> int:
        """Return the tokens a step that heeds *task*'s promise too has left."""
        promise_s = min(self.promise_s, task.promise_s)
        return self.budget.tokens(self.draft, promise_s) - self.shape.num_tokens

    def kv_room_tokens(self, request: Request) -> int:
        """Return the prompt tokens of a request in progress that free blocks can take."""
        return self.draft.given.layout.room_tokens(request.num_computed_tokens, self.free_blocks)

    def take_decode(self, task: Task) -> bool:
        """Give a decode its token, or hold it when the step is full."""
        if self.room_tokens(task) < 1:
            self.held.append(task.request.request_id)
            return False
        self._heed(task)
        self.shape = self.shape.with_decode(task.request.num_tokens)
        return True

    def take_prompt(self, task: Task, num_tokens: int, why: str) -> None:
        """Compute *num_tokens* of a prompt; KV and slot must be there."""
        request = task.request
        prefix = request.num_computed_tokens
        starts = request.state is not State.RUNNING
        self._heed(task)
        if starts:
            blocks = self.draft.new_blocks(request)
            self.num_slots -= 1
            self.spare_blocks -= blocks
        else:
            layout = self.draft.given.layout
            blocks = layout.blocks(prefix + num_tokens) - layout.blocks(prefix)
        self.free_blocks -= blocks
        self.shape = self.shape.with_chunk(num_tokens, prefix)
        chunk = Chunk(request.request_id, num_tokens, starts, why)
        if num_tokens < request.prefill_target_tokens - prefix:
            self.cut = chunk
        else:
            self.whole.append(chunk)

    def preempt(self, victim: Request, claim: Request) -> None:
        """Take a running request's KV for *claim*."""
        blocks = self.draft.given.freed_blocks(victim)
        self.num_slots += 1
        self.spare_blocks += blocks
        self.free_blocks += blocks
        why = f"it can wait longer than {claim.request_id}, which needs its KV now"
        self.victims.append(Preempt(victim.request_id, "recompute", why))

    def _heed(self, task: Task) -> None:
        self.promise_s = min(self.promise_s, task.promise_s)
