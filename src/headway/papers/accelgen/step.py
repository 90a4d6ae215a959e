"""One step by AccelGen's rules (arXiv 2503.13737): the urgent first, the rest packed.

A walk over all live requests decides everything at once: who decodes, who sits out, whose
prompt goes on, who starts and who makes room.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from headway.kit.lengths import SlidingHistogram
from headway.kit.one_walk import OneWalk
from headway.kit.tightest import Tightest, TightestRecent
from headway.latency.model import LatencyModel, StepShape
from headway.papers.accelgen.a1_chunk import Budget
from headway.papers.accelgen.a2_order import Order, Task
from headway.papers.accelgen.a3_packing import Amount, Packer
from headway.papers.accelgen.composition import Composition
from headway.policy.batch import StepFill, cap_partial
from headway.policy.draft import Draft
from headway.policy.known import Known
from headway.policy.preempt import Preemptor
from headway.request import Request, State

WINDOW = 12
"""Prompts weighed against each other for what is left of a step. Bounds the cost of a plan."""

LEARN = 0.05
"""Weight of the newest step in the mean chunk."""


class AccelGen(OneWalk):
    """The planner.

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
        gamma_s: float,
        careful: bool,
        max_wait_s: float,
        tightest: TightestRecent,
    ) -> None:
        super().__init__(SlidingHistogram(), budget, max_wait_s=max_wait_s)
        self._tightest = tightest
        self._order = order
        self._budget = budget
        self._packer = packer
        self._gamma_s = gamma_s
        self._careful = careful
        self._mean_chunk_tokens: float | None = None
        self._tasks: list[Task] | None = None
        self._made: Composition | None = None

    def known(self, latency: LatencyModel, overload: str) -> Known:
        """Return the state, which tells the tightest first token of late too."""
        return Tightest(self._tightest, latency, self._lengths, self._max_wait_s, overload)

    # -- the decisions --------------------------------------------------------------------

    def forget(self, draft: Draft) -> None:
        """Forget the last plan's step."""
        self._tasks = self._made = None

    def hold(self, draft: Draft) -> tuple[str, ...]:
        """Return the decodes that can wait, and the step had no room for."""
        made = self._compose(draft)
        draft.shape = made.shape.decodes
        gone = {v.request_id for v in made.victims}
        return tuple(i for i in made.held if i not in gone)

    def fill(self, draft: Draft, preemptor: Preemptor) -> StepFill:
        """Return what was chosen."""
        made = self._compose(draft)
        filled = StepFill(made.shape, made.chunks, preempt=made.victims)
        draft.gone.update(v.request_id for v in made.victims)
        draft.num_spare_blocks = made.spare_blocks
        cap_partial(draft, filled)
        if filled.chunks:
            computed = float(filled.shape.num_prefill_tokens)
            mean = self._mean_chunk_tokens or computed
            self._mean_chunk_tokens = mean + LEARN * (computed - mean)
        return filled

    def for_running(self, draft: Draft) -> Iterator[Request]:
        """Yield running requests: broken promises, then whoever can wait longest."""
        running = [t for t in self._ranked(draft) if t.request.state is State.RUNNING]
        yield from (t.request for t in reversed(running) if not t.request.has_claim)
        yield from (t.request for t in reversed(running) if t.request.has_claim)

    # -- the walk -------------------------------------------------------------------------

    def _ranked(self, draft: Draft) -> list[Task]:
        if self._tasks is None:
            mean = self._mean_chunk_tokens or float(self._budget.tokens(draft, math.inf))
            # The longest step there can be now is one that heeds the tightest promise.
            step_s = self._budget.longest_s(draft, self._budget.step_limit_s(draft))
            self._tasks = self._order.tasks(draft, step_s, mean)
        return self._tasks

    def _compose(self, draft: Draft) -> Composition:
        if self._made is None:
            self._made = self._walk(draft)
        return self._made

    def _walk(self, draft: Draft) -> Composition:
        """Serve the urgent, then pack the rest."""
        made = Composition.of(draft, self._budget)
        tasks = [t for t in self._ranked(draft) if t.request.request_id not in draft.gone]
        urgent = [t for t in tasks if t.is_urgent]
        rest = [t for t in tasks if not t.is_urgent]
        for task in urgent:
            if task.decodes:  # Before the prompts, which then heed the tightest gap.
                made.take_decode(task)
        for task in urgent:
            if not task.decodes:
                self._take_urgent_prompt(made, task, rest)
        if self._packer is None:
            self._fill_in_order(made, rest)
        else:
            self._pack(made, rest, self._packer)
        if not made.shape.num_tokens:
            self._unblock(made, tasks)
        return made

    def _take_urgent_prompt(self, made: Composition, task: Task, rest: list[Task]) -> None:
        """Compute what the step can take of a prompt, preempting those who can wait longest.

        Only decodes lose their KV: everybody who starts emits a token before it can be asked
        to leave again, so two requests cannot take turns for ever.
        """
        num_tokens = self._wanted(made, task, may_open=True)
        if num_tokens <= 0:
            return
        lacking = self._lacking_blocks(made, task)
        victims: list[Task] = []
        slots = made.num_slots
        for other in reversed(rest):
            if lacking <= 0 and (slots > 0 or task.request.state is State.RUNNING):
                break
            if other.decodes and other.left_s > task.left_s and self._may_lose(made, other):
                victims.append(other)
                slots += 1
                lacking -= made.draft.given.freed_blocks(other.request)
        if lacking > 0 or (slots <= 0 and task.request.state is not State.RUNNING):
            return
        for victim in victims:
            rest.remove(victim)
            made.preempt(victim.request, task.request)
        num_tokens = self._wanted(made, task, may_open=True)
        if num_tokens > 0:
            made.take_prompt(task, num_tokens, "late unless it runs now")

    def _may_lose(self, made: Composition, victim: Task) -> bool:
        """Return whether a stream can lose its KV to an urgent prompt; see the class."""
        request, draft = victim.request, made.draft
        if not self._careful or not request.has_claim:
            return True
        again = StepShape().with_chunk(request.num_tokens, 0)
        return victim.left_s > draft.given.latency.predict_s(again)

    def _lacking_blocks(self, made: Composition, task: Task) -> int:
        """Return the blocks missing before a prompt can start, or go on by a token."""
        request, draft = task.request, made.draft
        if request.state is not State.RUNNING:
            return draft.new_blocks(request) - made.spare_blocks
        return 1 - made.kv_room_tokens(request)

    def _wanted(self, made: Composition, task: Task, may_open: bool) -> int:
        """Return the tokens of a prompt the step has room for, whatever KV there is to start.

        A step cuts at most one prompt. The exclusive rule: while a prompt is in progress no
        other is opened that would have to be cut, unless *may_open*.
        """
        request, draft = task.request, made.draft
        wanted = request.prefill_target_tokens - request.num_computed_tokens
        room = made.room_tokens(task)
        fits = min(wanted, room)
        if request.state is State.RUNNING and made.kv_room_tokens(request) > 0:
            fits = min(fits, made.kv_room_tokens(request))
        if fits == wanted:
            return wanted
        in_progress = request.state is State.RUNNING
        others = any(i not in draft.gone for i in draft.given.live.prefilling)
        if made.cut is not None or not (in_progress or may_open or not others):
            return 0
        if not self._budget.cuts and made.shape.num_prefills:
            return 0  # Whole prompts: one that no step can hold goes alone beside the decodes.
        return max(fits, 0)

    def _pack(self, made: Composition, rest: list[Task], packer: Packer) -> None:
        """Fill the step from those within gamma of the head, again and again.

        A decode asks for the least there is, so each rule takes it after every prompt of the
        window that fits: the decodes of a window follow in order once its prompts are done.
        """
        capacity = Amount(
            self._budget.tokens(made.draft, made.promise_s), made.draft.given.view.num_total_blocks
        )
        while rest:
            until_s = rest[0].left_s + self._gamma_s
            window = [t for t in rest if t.left_s <= until_s]
            prompts = [t for t in window if not t.decodes][:WINDOW]
            done = self._pick(made, prompts, packer, capacity)
            if not done:
                decodes = [t for t in window if t.decodes]
                for task in decodes:
                    made.take_decode(task)
                done = prompts + decodes  # What did not fit now does not fit later.
            seen = {id(task) for task in done}
            rest = [t for t in rest if id(t) not in seen]

    def _pick(
        self, made: Composition, prompts: list[Task], packer: Packer, capacity: Amount
    ) -> list[Task]:
        """Take the prompts that the packer chooses now; return them."""
        demands: list[Amount] = []
        fitting: list[Task] = []
        for task in prompts:
            num_tokens = self._wanted(made, task, may_open=False)
            starts = task.request.state is not State.RUNNING
            if num_tokens <= 0 or self._lacking_blocks(made, task) > 0:
                continue
            if starts and made.num_slots <= 0:
                continue
            blocks = made.draft.new_blocks(task.request) if starts else 0
            demands.append(Amount(num_tokens, blocks))
            fitting.append(task)
        if not fitting:
            return []
        room = self._budget.tokens(made.draft, made.promise_s) - made.shape.num_tokens
        left = Amount(room, made.spare_blocks)
        taken: list[Task] = []
        for index in packer.pick(demands, left, capacity):
            task = fitting[index]
            num_tokens = min(demands[index].num_tokens, self._wanted(made, task, may_open=False))
            if num_tokens > 0:
                made.take_prompt(task, num_tokens, "it fills what the step has left")
                taken.append(task)
        return taken

    def _fill_in_order(self, made: Composition, rest: list[Task]) -> None:
        """Without A3: the rest in order; nobody starts behind the first who cannot."""
        is_open = True
        for task in rest:
            starts = task.request.state is not State.RUNNING
            if task.decodes:
                made.take_decode(task)
            elif is_open or not starts:
                num_tokens = self._wanted(made, task, may_open=False)
                fits = num_tokens > 0 and self._lacking_blocks(made, task) <= 0
                if fits and (made.num_slots > 0 or not starts):
                    made.take_prompt(task, num_tokens, "next in order")
                elif starts:
                    is_open = False

    def _unblock(self, made: Composition, tasks: list[Task]) -> None:
        """Nobody could run: the first prompt in progress goes on, the last ones giving way."""
        running = [t for t in tasks if t.request.state is State.RUNNING]
        if not running:
            return
        first = running[0]
        while len(running) > 1 and made.kv_room_tokens(first.request) < 1:
            made.preempt(running.pop().request, first.request)
        num_tokens = self._wanted(made, first, may_open=True)
        if num_tokens > 0:
            made.take_prompt(first, num_tokens, "nobody else can run")
