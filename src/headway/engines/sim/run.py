"""One simulated server: a clock, a policy core, and the machine that carries its plans out.

At one instant things happen in this order: the step that ends delivers its tokens, requests
that arrive are taken in (by name), clients hang up, and then the next step is planned. So a
plan knows everything that happened up to its own instant, as a real engine's does.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from headway.engines import wire
from headway.engines.journal import Journal
from headway.engines.sim.clients import Clients
from headway.engines.sim.steady import Steady, is_plain
from headway.engines.sim.steered_engine import Launch
from headway.engines.virtual import Outcome, StepRow, VirtualCall, VirtualEngine
from headway.latency.model import StepShape
from headway.policy.events import Finished, StepDone, StepScheduled
from headway.policy.plan import StepPlan
from headway.policy.scheduler import Scheduler
from headway.policy.view import EngineView
from headway.slo import SloBook

StepTruth = Callable[[StepShape], float]

IDLE_S = 1e-4
"""How soon a policy that left a free engine idle is asked again."""


@dataclass(slots=True)
class Pending:
    """A step whose output has not come back; ``launch`` is ``None`` for a steady one."""

    launch: Launch | None
    ends_s: float
    num_tokens: int


class SimRun(Clients):
    """A server under a virtual clock: feed calls, advance, read outcomes.

    Args:
        truth: Seconds of a step of a given shape; the policy never sees it.
        policy: The policy core, new, or its journal; it learns from events alone.
        book: SLO classes that ``VirtualCall.xargs`` may name.
        keep_steps: Fill ``steps`` with a row for each step.
        keep_schedule: Fill ``schedule`` with the instant and tokens of each step, for tests.
    """

    validate_every = 0
    """Steps after which the core recomputes its books; 0 never does. The tests set it."""

    def __init__(
        self,
        engine: VirtualEngine,
        truth: StepTruth,
        policy: Scheduler | Journal,
        *,
        book: SloBook | None = None,
        keep_steps: bool = False,
        keep_schedule: bool = False,
    ) -> None:
        super().__init__(engine, policy, book)
        self.truth = truth
        self.num_steps = 0
        self.steps: list[StepRow] = []
        self.schedule: list[tuple[float, dict[str, int]]] = []
        self._keep_steps = keep_steps
        self._keep_schedule = keep_schedule
        self._pending: deque[Pending] = deque()
        self._depth = 2 if engine.asynchronous else 1
        self._must_settle = False
        self._did_schedule = False
        self._num_in_flight = 0
        self._ready_s = 0.0
        self._may_glide = not (engine.asynchronous or engine.prefix_caching)

    # -- time passes -----------------------------------------------------------------------

    def run(self, calls: Iterable[VirtualCall]) -> dict[str, Outcome]:
        """Serve *calls* to the end and return their outcomes."""
        for call in sorted(calls, key=lambda c: (c.arrived_at_s, c.request_id)):
            self.submit(call)
        self.advance(float("inf"))
        return self.outcomes

    def advance(self, until_s: float) -> None:
        """Let time pass up to *until_s*: steps may end then, none begins at or after it."""
        while True:
            if self._must_settle:
                if self._pending[0].ends_s > until_s:
                    return
                self._settle()
                continue
            if self.now_s >= until_s:
                return
            self._take_in()
            if self.machine.jobs or self._end_untold or self._pending:
                self._begin()
            elif self._inbox and self._inbox[0].at_s <= until_s:
                self.now_s = max(self.now_s, self._inbox[0].at_s)
            else:
                return

    @property
    def next_event_s(self) -> float:
        """When :meth:`advance` would next do something; ``inf`` when idle."""
        if self._must_settle:
            return self._pending[0].ends_s
        if self.machine.jobs or self._end_untold or self._pending:
            return self.now_s
        return self._inbox[0].at_s if self._inbox else float("inf")

    @property
    def due_s(self) -> float:
        """The least instant to which :meth:`advance` does one thing more; ``inf`` when idle.

        A step's end happens at its instant, its beginning only before the instant asked for.
        """
        at_s = self.next_event_s
        return at_s if self._must_settle else math.nextafter(at_s, math.inf)

    # -- one step ---------------------------------------------------------------------------

    def _begin(self) -> None:
        """Plan and launch a step while the pipeline has room, then let the oldest end."""
        scheduled = False
        if (self.machine.jobs or self._end_untold) and len(self._pending) < self._depth:
            scheduled = self._schedule()
            if scheduled and len(self._pending) < self._depth:
                return
        self._did_schedule = scheduled
        self._must_settle = True

    def _schedule(self) -> bool:
        machine, pool = self.machine, self.machine.pool
        news = machine.prefixes.news(self.now_s, self.policy.live, machine.jobs)
        if news is not None:
            self.policy.observe(news)
        if self.validate_every and self.num_steps % self.validate_every == 0:
            self.policy.validate()
        plan = self.policy.plan(self._view(), self.now_s)
        if self._may_glide and is_plain(plan):
            if self._steady is None:
                self._steady = Steady.of(machine.running, self.engine.block_size)
            steady = self._steady
            most = self.engine.max_num_batched_tokens
            if steady is not None and steady.goes_on(plan, pool.num_free, most):
                self._glide(steady, plan)
                return True
        self._catch_up()
        self._end_planned(plan)
        for preempt in plan.preempt:
            job = machine.jobs.get(preempt.request_id)
            if job is not None and job.running:
                machine.preempt(job, preempt.how, self.now_s)
        launch = machine.begin(plan, self.policy.live.prefilling, self.now_s)
        self._end_untold = False
        self._launch(launch, plan)
        return bool(launch.tokens)

    def _view(self) -> EngineView:
        engine, pool, host = self.engine, self.machine.pool, self.machine.host
        seats = (engine.max_num_seqs, engine.max_num_batched_tokens, self._num_in_flight)
        if not engine.host_blocks:
            return EngineView(pool.num_total, pool.num_free, engine.block_size, *seats)
        queued_s = max(host.link.idle_at_s - self.now_s, 0.0)
        return EngineView(
            pool.num_total,
            pool.num_free,
            engine.block_size,
            *seats,
            swap_free_blocks=host.num_free,
            copy_bytes_per_s=engine.copy_bytes_per_s,
            kv_bytes_per_token=engine.kv_bytes_per_token,
            num_queued_copy_blocks=round(queued_s / engine.block_copy_s),
        )

    def _end_planned(self, plan: StepPlan) -> None:
        for reject in plan.reject:
            self._end_by_plan(reject.request_id, "abort", wire.invalid(reject.reason))
        for refuse in plan.refuse:
            answer = wire.refused(refuse.retry_after_s, refuse.reason)
            self._end_by_plan(refuse.request_id, "abort", answer)
        for cap in plan.cap:
            self._end_by_plan(cap.request_id, "length", None)

    def _launch(self, launch: Launch, plan: StepPlan) -> None:
        self.policy.observe(
            StepScheduled(
                self.now_s, launch.tokens, launch.admitted, launch.preempted, launch.swapped
            )
        )
        if launch.tokens:
            self._run_step(launch, launch.shape, launch.tokens, plan)
        else:
            self._pending.append(Pending(launch, self.now_s, 0))

    def _glide(self, steady: Steady, plan: StepPlan) -> None:
        """Launch a step in which everybody just takes one more token."""
        self._end_untold = False
        self.machine.pool.num_free -= steady.num_new_blocks()
        self.policy.observe(StepScheduled(self.now_s, steady.tokens))
        self._run_step(None, steady.begin(), steady.tokens, plan)

    def _run_step(
        self, launch: Launch | None, shape: StepShape, tokens: Mapping[str, int], plan: StepPlan
    ) -> None:
        begins_s = max(self._ready_s, self.now_s, self.machine.host.link.idle_at_s)
        for request_id in launch.admitted if launch is not None else ():
            self.machine.jobs[request_id].enter(begins_s, "prefill")
        self._ready_s = begins_s + self.truth(shape)
        self._pending.append(Pending(launch, self._ready_s, len(tokens)))
        self._num_in_flight += 1
        self.num_steps += 1
        if self._keep_schedule:
            self.schedule.append((self.now_s, dict(tokens)))
        if self._keep_steps:
            self.steps.append(self._row(begins_s, shape, plan))

    def _row(self, begins_s: float, shape: StepShape, plan: StepPlan) -> StepRow:
        pool = self.machine.pool
        held = (pool.num_total - pool.num_free) * pool.block_size
        return StepRow.of(
            (begins_s, self._ready_s),
            shape,
            len(self.machine.running),
            len(self.machine.waiting),
            held,
            plan,
            self.policy.live,
        )

    def _settle(self) -> None:
        """The oldest step ends: its tokens reach the clients."""
        self._must_settle = False
        pending = self._pending.popleft()
        self.now_s = max(self.now_s, pending.ends_s)
        if pending.launch is None:
            assert self._steady is not None
            self._num_in_flight -= 1
            self._steady.ends_s.append(self.now_s)
            self.policy.observe(StepDone(self.now_s, self._steady.tokens))
        elif pending.num_tokens:
            self._num_in_flight -= 1
            self._deliver(pending.launch)
        for finish_reason, answer, request_id in self._answers:
            self._close(self.outcomes[request_id], finish_reason, answer)
        self._answers.clear()
        if not self._did_schedule and not self._pending and self.machine.jobs:
            self.now_s += IDLE_S

    def _deliver(self, launch: Launch) -> None:
        emitted, complete = self.machine.end(launch, self.now_s)
        for job in complete:
            self.machine.remove(job)
            self._end_untold = True
            by_itself = job.num_output >= job.call.num_output_tokens
            self._close(job.outcome, "stop" if by_itself else "length", None)
        self.policy.observe(StepDone(self.now_s, emitted))
        for job in complete:
            by_itself = job.num_output >= job.call.num_output_tokens
            reason = "stopped" if by_itself else "length"
            self.policy.observe(Finished(self.now_s, job.request_id, reason))
