"""The clients of a simulated server: what they send, when they hang up, what they get to see."""

from __future__ import annotations

import heapq
from array import array
from collections import deque
from typing import NamedTuple, cast

from headway.engines import wire
from headway.engines.journal import Journal
from headway.engines.sim.blocks import num_cached_tokens
from headway.engines.sim.job import Job
from headway.engines.sim.steady import Steady
from headway.engines.sim.steered_engine import SteeredEngine
from headway.engines.virtual import Outcome, VirtualCall, VirtualEngine
from headway.errors import UserError
from headway.policy.events import Arrived, Finished
from headway.policy.quote import Quote
from headway.policy.scheduler import Scheduler
from headway.slo import NO_PROMISE, Slo, SloBook


class Sent(NamedTuple):
    """A call on its way to a server.

    Attributes:
        at_s: When it reaches this server: its arrival, or when another server refused it.
        last_try: See :class:`~headway.policy.events.Arrived`.
    """

    at_s: float
    call: VirtualCall
    last_try: float


class Clients:
    """Requests on their way in and answers on their way out; :class:`SimRun` adds the steps."""

    def __init__(
        self,
        engine: VirtualEngine,
        policy: Scheduler | Journal,
        book: SloBook | None,
    ) -> None:
        self.engine = engine
        self.policy = policy
        self.machine = SteeredEngine(engine)
        self.now_s = 0.0
        self.outcomes: dict[str, Outcome] = {}
        self._book = book or SloBook.empty()
        self.refused: list[str] = []
        """Requests refused here, in the order in which their clients heard of it."""
        self._inbox: deque[Sent] = deque()
        self._inbox_tokens = 0
        self.unfinished_prompt_tokens = 0
        """Prompt tokens of all requests that have not ended."""
        self._aborts: list[tuple[float, str]] = []
        self._answers: list[tuple[str, str | None, str]] = []
        self._end_untold = False
        self._steady: Steady | None = None

    @property
    def num_preemptions(self) -> dict[str, int]:
        """Preemptions so far by kind: ``recompute`` and ``swap``."""
        return self.machine.num_preemptions

    @property
    def num_unfinished(self) -> int:
        """Requests here that have not ended, those just sent included."""
        return len(self._inbox) + len(self.machine.jobs)

    @property
    def kv_load_blocks(self) -> int:
        """Blocks held, and those that prompts need whose requests do not run yet."""
        size = self.engine.block_size
        waiting = sum(j.num_tokens for j in self.machine.waiting.values()) + self._inbox_tokens
        return self.machine.pool.num_total - self.machine.pool.num_free + -(-waiting // size)

    @property
    def kv_load_share(self) -> float:
        """The same, as a share of all blocks; above 1 where more is wanted than there is."""
        return self.kv_load_blocks / self.machine.pool.num_total

    def submit(self, call: VirtualCall, at_s: float | None = None, last_try: float = 1.0) -> None:
        """Send a call; calls must come in the order in which they reach the server.

        Args:
            at_s: When it reaches this server, if that is later than its arrival. Promises run
                from its arrival all the same.
            last_try: How likely a refusal here is its client's last word.

        Raises:
            UserError: Its name is taken, or it has no tokens.
        """
        if call.request_id in self.outcomes:
            raise UserError(f"Two calls are named {call.request_id!r}; names must be unique.")
        if call.num_prompt_tokens < 1 or call.num_output_tokens < 1:
            raise UserError(f"Call {call.request_id!r} needs at least one token in and one out.")
        outcome = Outcome(call, phases=[(call.arrived_at_s, "queued")])
        # An array of doubles in place of the list: the same values in a quarter of the room.
        outcome.emitted_at_s = cast("list[float]", array("d"))
        self.outcomes[call.request_id] = outcome
        self._inbox.append(Sent(call.arrived_at_s if at_s is None else at_s, call, last_try))
        self._inbox_tokens += call.num_prompt_tokens
        self.unfinished_prompt_tokens += call.num_prompt_tokens

    def _take_in(self) -> None:
        inbox, aborts = self._inbox, self._aborts
        while inbox and inbox[0].at_s <= self.now_s:
            _, call, last_try = inbox.popleft()
            self._inbox_tokens -= call.num_prompt_tokens
            self._arrive(call, last_try)
            if call.abort_at_s is not None:
                heapq.heappush(aborts, (call.abort_at_s, call.request_id))
        while aborts and aborts[0][0] <= self.now_s:
            job = self.machine.jobs.get(heapq.heappop(aborts)[1])
            if job is not None:
                self._catch_up()
                self._remove(job, "aborted")
                self._close(job.outcome, "abort", None)

    def _arrive(self, call: VirtualCall, last_try: float) -> None:
        outcome = self.outcomes[call.request_id]
        slo, mistake = self.slo_of(call)
        job = Job(call, outcome)
        self.machine.add(job)
        arrived_at_s = min(call.arrived_at_s, self.now_s)
        self.policy.observe(
            Arrived(
                self.now_s,
                job.request_id,
                arrived_at_s,
                job.num_prompt,
                max(job.max_output, 1),
                slo,
                *self.machine.prefixes.find(job.request_id, job, job.num_tokens),
                last_try=last_try,
            )
        )
        if mistake is not None:
            self._end_by_plan(job.request_id, "abort", mistake)

    def slo_of(self, call: VirtualCall) -> tuple[Slo, str | None]:
        """Return the promise of *call* and, where it asks for nonsense, what its client is told."""
        try:
            return self._book.resolve(call.xargs), None
        except UserError as error:
            return NO_PROMISE, wire.invalid(str(error))

    def quote(self, job: Job, slo: Slo, at_s: float) -> Quote:
        """Return whether *slo* could be promised a request that came now; changes nothing."""
        cached = num_cached_tokens(self.machine.pool.cached, job, self.engine.block_size)
        return self.policy.quote(job.num_prompt, cached, slo, at_s)

    def _remove(self, job: Job, reason: str) -> None:
        self.machine.remove(job)
        self._end_untold = True
        self.policy.observe(Finished(self.now_s, job.request_id, reason))

    def _close(self, outcome: Outcome, finish_reason: str, stop_reason: str | None) -> None:
        if outcome.finish_reason is None:
            self.unfinished_prompt_tokens -= outcome.call.num_prompt_tokens
            outcome.finish_reason = finish_reason
            outcome.stop_reason = stop_reason
            outcome.ended_at_s = self.now_s
            if wire.outcome_of(stop_reason) == "refused":
                self.refused.append(outcome.call.request_id)

    def _end_by_plan(self, request_id: str, finish_reason: str, answer: str | None) -> None:
        """End a request on the core's word; its client hears with the next output."""
        job = self.machine.jobs.get(request_id)
        if job is not None:
            self._remove(job, wire.outcome_of(answer) or finish_reason)
            self._answers.append((finish_reason, answer, request_id))

    def _catch_up(self) -> None:
        """Leave the steady state; the jobs' own counters are right again."""
        if self._steady is not None:
            self._steady.catch_up()
            self._steady = None
