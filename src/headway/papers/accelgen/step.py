"""One step by AccelGen's rules (arXiv 2503.13737): the urgent first, the rest packed.

A walk over all live requests decides everything at once: who decodes, who sits out, whose
prompt goes on, who starts and who makes room. The parts of the plan only report it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from headway.kit.parts import Holder
from headway.latency.model import StepShape
from headway.papers.accelgen.a1_chunk import Budget
from headway.papers.accelgen.a2_order import Order, Task
from headway.papers.accelgen.a3_packing import Amount, Packer
from headway.papers.accelgen.draft import Draft
from headway.policy.admit import Gate
from headway.policy.batch import Batcher, Filled, cap_partial
from headway.policy.chunk import Chunker
from headway.policy.context import PlanContext
from headway.policy.preempt import Preemptor
from headway.policy.prioritize import Prioritizer
from headway.request import Request, State

WINDOW = 12
"""Prompts weighed against each other for what is left of a step. Bounds the cost of a plan."""

LEARN = 0.05
"""Weight of the newest step in the mean chunk."""


class PackedStep(Holder, Prioritizer, Batcher, Preemptor):
    """Composes steps.

    Args:
        order: Who can wait how long (A2).
        budget: How many tokens the step takes (A1).
        packer: Who fills what the urgent leave (A3); ``None`` takes the rest in order and
            stops at the first prompt that does not fit.
        gamma_s: How much longer than the head of the rest a candidate may be able to wait.
        careful: Preempt for the urgent only those who would be back in time, or whose promise
            is broken. Else whoever can wait longest, as the paper's rule has it: a stream that
            can wait for a tenth of a second has no time to compute its prompt again.
    """

    def __init__(
        self,
        order: Order,
        budget: Budget,
        packer: Packer | None,
        gamma_s: float = 0.75,
        careful: bool = True,
    ) -> None:
        self._order = order
        self._budget = budget
        self._packer = packer
        self._gamma_s = gamma_s
        self._careful = careful
        self._mean_chunk_tokens: float | None = None
        self._ranked_for: PlanContext | None = None
        self._tasks: list[Task] = []
        self._drafted_for: PlanContext | None = None
        self._draft: Draft | None = None

    # -- the parts ------------------------------------------------------------------------

    def hold(self, ctx: PlanContext) -> tuple[str, ...]:
        """Return the decodes that can wait, and the step had no room for."""
        draft = self._compose(ctx)
        ctx.shape = draft.decodes
        gone = {v.request_id for v in draft.victims}
        return tuple(i for i in draft.held if i not in gone)

    def candidates(self, ctx: PlanContext) -> Iterator[Request]:
        """Yield the prompts chosen."""
        yield from (ctx.live.requests[c.request_id] for c in self._compose(ctx).chunks)

    def fill(
        self,
        ctx: PlanContext,
        candidates: Iterable[Request],
        chunker: Chunker,
        gate: Gate,
        preemptor: Preemptor,
    ) -> Filled:
        """Return what was chosen."""
        draft = self._compose(ctx)
        filled = Filled(draft.shape, draft.chunks, preempt=draft.victims)
        ctx.gone.update(v.request_id for v in draft.victims)
        ctx.num_spare_blocks = draft.spare_blocks
        cap_partial(ctx, filled)
        if filled.chunks:
            computed = float(filled.shape.num_prefill_tokens)
            mean = self._mean_chunk_tokens or computed
            self._mean_chunk_tokens = mean + LEARN * (computed - mean)
        return filled

    def for_running(self, ctx: PlanContext) -> Iterator[Request]:
        """Yield running requests: broken promises, then whoever can wait longest."""
        running = [t for t in self._ranked(ctx) if t.request.state is State.RUNNING]
        yield from (t.request for t in reversed(running) if not t.request.has_claim)
        yield from (t.request for t in reversed(running) if t.request.has_claim)

    def for_claim(self, ctx: PlanContext, claim: Request) -> Iterator[Request]:
        """Yield nobody: the walk has decided who makes room."""
        yield from ()

    # -- the walk -------------------------------------------------------------------------

    def _ranked(self, ctx: PlanContext) -> list[Task]:
        if ctx is not self._ranked_for:
            self._ranked_for = ctx
            mean = self._mean_chunk_tokens or float(self._budget.tokens(ctx, math.inf))
            # The longest step there can be now is one that heeds the tightest promise.
            step_s = self._budget.longest_s(ctx, self._budget.step_limit_s(ctx))
            self._tasks = self._order.tasks(ctx, step_s, mean)
        return self._tasks

    def _compose(self, ctx: PlanContext) -> Draft:
        if ctx is not self._drafted_for or self._draft is None:
            self._drafted_for, self._draft = ctx, self._walk(ctx)
        return self._draft

    def _walk(self, ctx: PlanContext) -> Draft:
        """Serve the urgent, then pack the rest."""
        draft = Draft.of(ctx, self._budget)
        tasks = [t for t in self._ranked(ctx) if t.request.request_id not in ctx.gone]
        urgent = [t for t in tasks if t.is_urgent]
        rest = [t for t in tasks if not t.is_urgent]
        for task in urgent:
            if task.decodes:  # Before the prompts, which then heed the tightest gap.
                draft.take_decode(task)
        for task in urgent:
            if not task.decodes:
                self._take_urgent_prompt(draft, task, rest)
        if self._packer is None:
            self._fill_in_order(draft, rest)
        else:
            self._pack(draft, rest, self._packer)
        if not draft.num_tokens:
            self._unblock(draft, tasks)
        return draft

    def _take_urgent_prompt(self, draft: Draft, task: Task, rest: list[Task]) -> None:
        """Compute what the step can take of a prompt, preempting those who can wait longest.

        Only decodes lose their KV: everybody who starts emits a token before it can be asked
        to leave again, so two requests cannot take turns for ever.
        """
        num_tokens = self._wanted(draft, task, may_open=True)
        if num_tokens <= 0:
            return
        lacking = self._lacking_blocks(draft, task)
        victims: list[Task] = []
        slots = draft.num_slots
        for other in reversed(rest):
            if lacking <= 0 and (slots > 0 or task.request.state is State.RUNNING):
                break
            if other.decodes and other.left_s > task.left_s and self._may_lose(draft, other):
                victims.append(other)
                slots += 1
                lacking -= draft.ctx.freed_blocks(other.request)
        if lacking > 0 or (slots <= 0 and task.request.state is not State.RUNNING):
            return
        for victim in victims:
            rest.remove(victim)
            draft.preempt(victim.request, task.request)
        num_tokens = self._wanted(draft, task, may_open=True)
        if num_tokens > 0:
            draft.take_prompt(task, num_tokens, "late unless it runs now")

    def _may_lose(self, draft: Draft, victim: Task) -> bool:
        """Return whether a stream can lose its KV to an urgent prompt; see the class."""
        request, ctx = victim.request, draft.ctx
        if not self._careful or not request.has_claim:
            return True
        again = StepShape().with_chunk(request.num_tokens, 0)
        return victim.left_s > ctx.latency.predict_s(again)

    def _lacking_blocks(self, draft: Draft, task: Task) -> int:
        """Return the blocks missing before a prompt can start, or go on by a token."""
        request, ctx = task.request, draft.ctx
        if request.state is not State.RUNNING:
            return ctx.new_blocks(request) - draft.spare_blocks
        return 1 - draft.kv_room_tokens(request)

    def _wanted(self, draft: Draft, task: Task, may_open: bool) -> int:
        """Return the tokens of a prompt the step has room for, whatever KV there is to start.

        A step cuts at most one prompt. The exclusive rule: while a prompt is in progress no
        other is opened that would have to be cut, unless *may_open*.
        """
        request, ctx = task.request, draft.ctx
        wanted = request.prefill_target_tokens - request.num_computed_tokens
        room = draft.room_tokens(task)
        fits = min(wanted, room)
        if request.state is State.RUNNING and draft.kv_room_tokens(request) > 0:
            fits = min(fits, draft.kv_room_tokens(request))
        if fits == wanted:
            return wanted
        in_progress = request.state is State.RUNNING
        others = any(i not in ctx.gone for i in ctx.live.prefilling)
        if draft.cut is not None or not (in_progress or may_open or not others):
            return 0
        if not self._budget.cuts and draft.shape.num_prefills:
            return 0  # Whole prompts: one that no step can hold goes alone beside the decodes.
        return max(fits, 0)

    def _pack(self, draft: Draft, rest: list[Task], packer: Packer) -> None:
        """Fill the step from those within gamma of the head, again and again.

        A decode asks for the least there is, so each rule takes it after every prompt of the
        window that fits: the decodes of a window follow in order once its prompts are done.
        """
        capacity = Amount(
            self._budget.tokens(draft.ctx, draft.promise_s), draft.ctx.view.num_total_blocks
        )
        while rest:
            until_s = rest[0].left_s + self._gamma_s
            window = [t for t in rest if t.left_s <= until_s]
            prompts = [t for t in window if not t.decodes][:WINDOW]
            done = self._pick(draft, prompts, packer, capacity)
            if not done:
                decodes = [t for t in window if t.decodes]
                for task in decodes:
                    draft.take_decode(task)
                done = prompts + decodes  # What did not fit now does not fit later.
            seen = {id(task) for task in done}
            rest = [t for t in rest if id(t) not in seen]

    def _pick(
        self, draft: Draft, prompts: list[Task], packer: Packer, capacity: Amount
    ) -> list[Task]:
        """Take the prompts that the packer chooses now; return them."""
        demands: list[Amount] = []
        fitting: list[Task] = []
        for task in prompts:
            num_tokens = self._wanted(draft, task, may_open=False)
            starts = task.request.state is not State.RUNNING
            if num_tokens <= 0 or self._lacking_blocks(draft, task) > 0:
                continue
            if starts and draft.num_slots <= 0:
                continue
            blocks = draft.ctx.new_blocks(task.request) if starts else 0
            demands.append(Amount(num_tokens, blocks))
            fitting.append(task)
        if not fitting:
            return []
        room = self._budget.tokens(draft.ctx, draft.promise_s) - draft.num_tokens
        left = Amount(room, draft.spare_blocks)
        taken: list[Task] = []
        for index in packer.pick(demands, left, capacity):
            task = fitting[index]
            num_tokens = min(demands[index].num_tokens, self._wanted(draft, task, may_open=False))
            if num_tokens > 0:
                draft.take_prompt(task, num_tokens, "it fills what the step has left")
                taken.append(task)
        return taken

    def _fill_in_order(self, draft: Draft, rest: list[Task]) -> None:
        """Without A3: the rest in order; nobody starts behind the first who cannot."""
        is_open = True
        for task in rest:
            starts = task.request.state is not State.RUNNING
            if task.decodes:
                draft.take_decode(task)
            elif is_open or not starts:
                num_tokens = self._wanted(draft, task, may_open=False)
                fits = num_tokens > 0 and self._lacking_blocks(draft, task) <= 0
                if fits and (draft.num_slots > 0 or not starts):
                    draft.take_prompt(task, num_tokens, "next in order")
                elif starts:
                    is_open = False

    def _unblock(self, draft: Draft, tasks: list[Task]) -> None:
        """Nobody could run: the first prompt in progress goes on, the last ones giving way."""
        running = [t for t in tasks if t.request.state is State.RUNNING]
        if not running:
            return
        first = running[0]
        while len(running) > 1 and draft.kv_room_tokens(first.request) < 1:
            draft.preempt(running.pop().request, first.request)
        num_tokens = self._wanted(draft, first, may_open=True)
        if num_tokens > 0:
            draft.take_prompt(first, num_tokens, "nobody else can run")
