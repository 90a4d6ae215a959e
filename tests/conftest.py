"""What the tests share: a deterministic hypothesis, an honest little engine, a lab for vLLM's."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from headway.engines import virtual
from headway.engines.journal import Journal
from headway.engines.sim.run import SimRun
from headway.latency.model import StepShape
from headway.policy.events import Arrived, Finished, StepDone, StepScheduled
from headway.policy.plan import StepPlan
from headway.policy.scheduler import Scheduler
from headway.policy.view import EngineView
from headway.request import State
from headway.slo import NO_PROMISE, Slo
from headway.units import blocks_for

settings.register_profile(
    "suite",
    derandomize=True,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("suite")
SimRun.validate_every = 64


@dataclass(slots=True)
class Job:
    """A request as the little engine holds it. Sizes in tokens."""

    request_id: str
    num_prompt_tokens: int
    num_output_tokens: int
    max_output_tokens: int
    num_emitted: int = 0
    num_in_flight: int = 0
    num_computed: int = 0
    target: int = 0
    num_blocks: int = 0
    num_stale: int = 0
    reason: str | None = None


@dataclass(slots=True)
class Flight:
    """A step the little engine has begun."""

    ends_at_s: float
    emitting: list[str]
    stale: set[str] = field(default_factory=set)


class FakeEngine:
    """Blocks, budgets and preemption, counted honestly; no more of an engine than that.

    It carries a plan out as vLLM would (decodes, prompts in progress, then the admitted; when
    blocks run out the last one running leaves), reports what really happened, and checks each
    plan against the view it was made for. ``depth`` is how many steps may be in flight
    beside the one being planned: 0 is synchronous.
    """

    def __init__(
        self,
        core: Scheduler | Journal,
        num_blocks: int = 64,
        block_size: int = 4,
        max_running: int = 8,
        max_step_tokens: int = 64,
        depth: int = 0,
        step_time_s: Callable[[StepShape], float] | None = None,
    ) -> None:
        self.core = core
        self.num_blocks = num_blocks
        self.num_free = num_blocks
        self.block_size = block_size
        self.max_running = max_running
        self.max_step_tokens = max_step_tokens
        self.depth = depth
        self.step_time_s = step_time_s or (lambda s: 0.01 + 1e-4 * s.num_prefill_tokens)
        self.now_s = 0.0
        self.jobs: dict[str, Job] = {}
        self.running: list[Job] = []
        self.finished: dict[str, str] = {}
        self.refusing: Callable[[str], bool] = lambda request_id: False
        self.num_forced = 0
        self.plans: list[StepPlan] = []
        self._preempted: list[str] = []
        self._flights: deque[Flight] = deque()

    # -- what happens to it ---------------------------------------------------------------

    def arrive(
        self,
        request_id: str,
        num_prompt_tokens: int,
        num_output_tokens: int,
        max_output_tokens: int | None = None,
        slo: Slo = NO_PROMISE,
    ) -> None:
        bound = max_output_tokens or num_output_tokens
        job = Job(request_id, num_prompt_tokens, min(num_output_tokens, bound), bound)
        self.jobs[request_id] = job
        self.core.observe(
            Arrived(self.now_s, request_id, self.now_s, num_prompt_tokens, bound, slo)
        )

    def abort(self, request_id: str) -> None:
        self._end(self.jobs[request_id], "aborted")

    def preempt(self, job: Job) -> None:
        """Take a running request's KV away; the core hears of it with the next step."""
        self.running.remove(job)
        self.num_free += job.num_blocks
        job.num_blocks = job.num_computed = 0
        job.num_stale += job.num_in_flight
        job.num_in_flight = 0
        for flight in self._flights:
            if job.request_id in flight.emitting:
                flight.stale.add(job.request_id)
        self._preempted.append(job.request_id)

    def _end(self, job: Job, reason: str) -> None:
        if job in self.running:
            self.running.remove(job)
            self.num_free += job.num_blocks
        del self.jobs[job.request_id]
        self.finished[job.request_id] = reason
        self.core.observe(Finished(self.now_s, job.request_id, reason))

    # -- one step -------------------------------------------------------------------------

    @property
    def view(self) -> EngineView:
        return EngineView(
            num_total_blocks=self.num_blocks,
            num_free_blocks=self.num_free,
            block_size_tokens=self.block_size,
            max_num_running=self.max_running,
            max_step_tokens=self.max_step_tokens,
            num_steps_in_flight=len(self._flights),
        )

    def step(self) -> None:
        """Plan, carry out, and take in the oldest step when the pipeline is full or idle."""
        view = self.view
        plan = self.core.plan(view, self.now_s)
        self.plans.append(plan)
        self.check(plan, view)
        self._carry_out(plan)
        if self._flights and (len(self._flights) > self.depth or not self.began):
            self._settle()
        elif not self._flights:
            self.now_s += 0.01

    def drain(self, max_steps: int) -> None:
        """Step until every request has left; fail when that takes too long."""
        for _ in range(max_steps):
            if not self.jobs and not self._flights:
                return
            if self.jobs:
                self.step()
            else:
                self._settle()
        raise AssertionError(f"still live after {max_steps} steps: {list(self.jobs.values())[:5]}")

    def _carry_out(self, plan: StepPlan) -> None:
        for reject in plan.reject:
            self._end(self.jobs[reject.request_id], "error")
        for refuse in plan.refuse:
            self._end(self.jobs[refuse.request_id], "refused")
        for cap in plan.cap:
            self._end(self.jobs[cap.request_id], "length")
        for preempt in plan.preempt:
            if preempt.request_id not in self._preempted:
                self.preempt(self.jobs[preempt.request_id])
        admits = [c.request_id for c in plan.chunks if c.admit]
        wanted = {c.request_id: c.num_tokens for c in plan.chunks}
        budget = min(plan.token_budget, self.max_step_tokens)
        tokens: dict[str, int] = {}
        admitted: dict[str, int] = {}
        decodes = [j for j in self.running if j.num_computed >= j.target]
        prompts = [j for j in self.running if j.num_computed < j.target]
        prompts.sort(
            key=lambda j: list(wanted).index(j.request_id) if j.request_id in wanted else 0
        )
        before = len(self._preempted)
        for job in decodes + prompts:
            if job not in self.running or job.request_id in plan.hold:
                continue
            if job.num_computed < job.target:
                if job.request_id not in wanted:
                    continue
                want = min(job.target - job.num_computed, wanted[job.request_id])
            elif job.num_emitted + job.num_in_flight >= job.max_output_tokens:
                continue
            else:
                want = 1
            want = min(want, budget)
            if want > 0 and self._allocate(job, want):
                tokens[job.request_id] = want
                budget -= want
        if len(self._preempted) == before:
            for request_id in admits:
                job = self.jobs[request_id]
                want = min(job.num_prompt_tokens + job.num_emitted, wanted[request_id], budget)
                needs = blocks_for(job.num_prompt_tokens + job.num_emitted, self.block_size)
                if want <= 0 or needs > self.num_free or len(self.running) >= self.max_running:
                    break
                if job.num_stale or self.refusing(request_id):
                    continue
                job.target = job.num_prompt_tokens + job.num_emitted
                self.running.append(job)
                admitted[request_id] = 0
                assert self._allocate(job, want)
                tokens[request_id] = want
                budget -= want
        tokens = {i: n for i, n in tokens.items() if i not in self._preempted[before:]}
        self._begin(tokens, admitted)

    def _allocate(self, job: Job, num_tokens: int) -> bool:
        """Give *job* its blocks, the last one running leaving when there are none."""
        while True:
            needed = blocks_for(job.num_computed + num_tokens, self.block_size) - job.num_blocks
            if needed <= self.num_free:
                self.num_free -= needed
                job.num_blocks += needed
                return True
            victim = self.running[-1]
            self.num_forced += 1
            self.preempt(victim)
            if victim is job:
                return False

    def _begin(self, tokens: dict[str, int], admitted: dict[str, int]) -> None:
        preempted, self._preempted = tuple(self._preempted), []
        self.began = bool(tokens)
        if not tokens and not preempted:
            return
        shape = StepShape()
        emitting: list[str] = []
        for request_id, count in tokens.items():
            job = self.jobs[request_id]
            shape = shape.with_chunk(count, job.num_computed)
            job.num_computed += count
            if job.num_computed >= job.target:
                job.num_in_flight += 1
                emitting.append(request_id)
        self.core.observe(StepScheduled(self.now_s, tokens, admitted, preempted))
        if tokens:
            begins_s = max(self.now_s, self._flights[-1].ends_at_s if self._flights else 0.0)
            self._flights.append(Flight(begins_s + self.step_time_s(shape), emitting))

    def _settle(self) -> None:
        flight = self._flights.popleft()
        self.now_s = max(self.now_s, flight.ends_at_s)
        emitted: dict[str, int] = {}
        ended: list[Job] = []
        for request_id in flight.emitting:
            job = self.jobs.get(request_id)
            if job is None:
                continue
            if request_id in flight.stale:
                job.num_stale -= 1
            else:
                job.num_in_flight -= 1
            job.num_emitted += 1
            emitted[request_id] = 1
            if job.num_emitted >= job.num_output_tokens:
                ended.append(job)
        self.core.observe(StepDone(self.now_s, emitted))
        for job in ended:
            full = job.num_emitted >= job.max_output_tokens
            self._end(job, "length" if full else "stopped")

    # -- what must hold -------------------------------------------------------------------

    def check(self, plan: StepPlan, view: EngineView) -> None:
        """Assert that *plan* is consistent with *view* and with the engine's own books."""
        live = self.core.live
        chunks = {c.request_id: c for c in plan.chunks}
        assert len(chunks) == len(plan.chunks), "one chunk a request"
        preempted = [p.request_id for p in plan.preempt]
        leaving = [x.request_id for x in (*plan.reject, *plan.refuse, *plan.cap)]
        assert len(set(preempted)) == len(preempted), "one preemption a request"
        assert len(set(leaving)) == len(leaving), "one end a request"
        assert not set(preempted) & set(chunks), "nobody is preempted and computed at once"
        assert not set(leaving) & (set(chunks) | set(preempted)), "who leaves does nothing else"
        assert all(live.requests[i].state is State.RUNNING for i in preempted)
        for one in (*plan.reject, *plan.refuse):
            assert live.requests[one.request_id].state is State.WAITING
        assert all(i in live.decoding for i in plan.hold)
        num_partial = 0
        for chunk in plan.chunks:
            request = live.requests[chunk.request_id]
            waits = request.state in (State.WAITING, State.PREEMPTED)
            assert chunk.admit is waits, "only the waiting are admitted"
            assert waits or chunk.request_id in live.prefilling
            remaining = request.prefill_target_tokens - request.num_computed_tokens
            assert 1 <= chunk.num_tokens <= remaining
            num_partial += chunk.num_tokens < remaining
        assert num_partial <= 1, "at most one prompt is cut short"
        prompt_tokens = sum(c.num_tokens for c in plan.chunks)
        idle = {*plan.hold, *preempted, *leaving}
        decodes = [i for i in live.decoding if i not in idle]
        if plan.chunks:
            assert prompt_tokens + len(decodes) <= view.max_step_tokens
        assert plan.token_budget >= prompt_tokens
        if plan.chunk_cap_tokens:
            assert max(c.num_tokens for c in plan.chunks) == plan.chunk_cap_tokens
        admits = [c for c in plan.chunks if c.admit]
        assert live.num_running - len(preempted) + len(admits) <= view.max_num_running
        if self._preempted:
            return  # The core does not know yet what it lost: blocks cannot be compared.
        freed = sum(self.jobs[i].num_blocks for i in (*preempted, *leaving))
        taken = sum(
            blocks_for(live.requests[c.request_id].num_tokens, self.block_size) for c in admits
        )
        assert taken <= view.num_free_blocks + freed, "no more blocks are given than there are"

    def next_plan(self) -> StepPlan:
        """Run one step, check every book, and return the plan it was carried out by."""
        self.step()
        self.core.validate()
        self.agrees()
        return self.plans[-1]

    def agrees(self) -> None:
        """Assert that the core knows the same requests in the same places."""
        assert set(self.core.live.requests) == set(self.jobs), "no request is lost"
        running = {r.request_id for r in self.core.live.running()}
        untold = set(self._preempted)
        assert running - untold == {j.request_id for j in self.running}
        held = sum(j.num_blocks for j in self.running)
        assert held + self.num_free == self.num_blocks


@pytest.fixture(scope="session")
def fake_engine() -> type[FakeEngine]:
    """The little engine's class."""
    return FakeEngine


@pytest.fixture(autouse=True)
def no_channel_left_open() -> Iterator[None]:
    """What one test serves is not watched by the next."""
    yield
    os.environ.pop("HEADWAY_CHANNEL", None)
    os.environ.pop("HEADWAY_LOAD_CHANNEL", None)


# -- vLLM's own scheduler under a virtual clock ------------------------------------------------


class Lab:
    """Builds, runs and watches virtual vLLM servers."""

    def __init__(self, harness: Any) -> None:
        self.Engine = harness.Engine
        self.Call = virtual.VirtualCall
        self.VirtualRun = harness.VirtualRun

    @staticmethod
    def truth(seed: int = 0, noise: float = 0.1) -> Callable[[StepShape], float]:
        """A small model on two CPU cores: seconds of a step, with log-normal noise."""
        rng = np.random.default_rng(seed)

        def step_s(shape: StepShape) -> float:
            seconds = (
                0.030
                + 0.0021 * shape.num_decodes
                + 0.00094 * shape.num_prefill_tokens
                + 1.2e-6 * shape.sum_context_tokens
                + 2.4e-7 * shape.chunk_context
                + (0.004 if shape.is_mixed else 0.0)
            )
            if noise:
                seconds *= float(np.exp(noise * rng.standard_normal() - noise * noise / 2))
            return seconds

        return step_s

    def mixed(
        self,
        num: int,
        rate_rps: float,
        seed: int,
        *,
        long: tuple[int, int] = (300, 900),
        promised: bool = True,
    ) -> list[Any]:
        """70 % short chats with tight promises, 30 % longer documents; Poisson arrivals."""
        rng = np.random.default_rng(seed)
        at_s = 0.0
        calls = []
        for i in range(num):
            at_s += float(rng.exponential(1 / rate_rps))
            if rng.random() < 0.7:
                name, prompt, mean = f"c{i:04d}", int(rng.integers(20, 80)), 3.6
                xargs = {"slo_ttft_ms": 1000, "slo_tbt_ms": 200}
            else:
                name, prompt, mean = f"d{i:04d}", int(rng.integers(*long)), 3.4
                xargs = {"slo_ttft_ms": 8000, "slo_tbt_ms": 400}
            output = int(min(96, rng.lognormal(mean, 0.6)) + 1)
            calls.append(self.Call(name, at_s, prompt, output, xargs if promised else {}, 128))
        return calls

    def start(self, engine: Any, seed: int = 0, noise: float = 0.1) -> Any:
        """A virtual server; Headway's books are validated after every step."""
        run = self.VirtualRun(engine, self.truth(seed, noise))
        if engine.headway is not None:
            self.watch(run.scheduler)
        return run

    @staticmethod
    def watch(scheduler: Any) -> None:
        """Validate the core and compare it with vLLM's tables around every step."""
        schedule, update = scheduler.schedule, scheduler.update_from_output

        def checked_schedule(*args: Any, **kwargs: Any) -> Any:
            output = schedule(*args, **kwargs)
            core = scheduler.headway
            core.validate()
            assert set(core.live.requests) == set(scheduler.requests)
            running = {r.request_id for r in scheduler.running}
            assert {r.request_id for r in core.live.running()} == running
            assert len(running) <= scheduler.max_num_running_reqs
            assert len(scheduler.waiting) == core.live.num_waiting
            return output

        def checked_update(*args: Any, **kwargs: Any) -> Any:
            outputs = update(*args, **kwargs)
            scheduler.headway.validate()
            return outputs

        scheduler.schedule = checked_schedule
        scheduler.update_from_output = checked_update

    @staticmethod
    def free_blocks(run: Any) -> int:
        return int(run.scheduler.kv_cache_manager.block_pool.get_num_free_blocks())

    def is_clean(self, run: Any) -> None:
        """Assert that nothing of any request is left in vLLM or in the core."""
        scheduler = run.scheduler
        assert not scheduler.requests
        assert not scheduler.running
        assert not len(scheduler.waiting)
        assert not len(scheduler.kv_holding_waiting)
        assert self.free_blocks(run) == run.engine.num_blocks - 1
        core = scheduler.headway
        assert not core.live.requests
        assert not core.live.num_waiting
        assert not core.live.hindered
        assert not core.live.num_running
        assert len(core.known.finishes) == 0
        assert core.live.sum_decode_context_tokens == 0
        assert not core.known.pace.in_flight, "every step begun was also ended"

    @staticmethod
    def all_served(outcomes: Mapping[str, Any]) -> None:
        """Assert that each request got every token it asked for."""
        for outcome in outcomes.values():
            call = outcome.call
            assert outcome.finish_reason in ("stop", "length"), outcome
            assert len(outcome.emitted_at_s) == call.num_output_tokens, outcome

    @staticmethod
    def attained(outcome: Any) -> bool:
        """Whether a client would say that its promise was kept."""
        xargs, emitted = outcome.call.xargs, outcome.emitted_at_s
        if not emitted or outcome.finish_reason not in ("stop", "length"):
            return False
        arrived_at_s = outcome.call.arrived_at_s
        if emitted[0] - arrived_at_s > xargs.get("slo_ttft_ms", 1e12) / 1000:
            return False
        if emitted[-1] - arrived_at_s > xargs.get("slo_jct_ms", 1e12) / 1000:
            return False
        gaps = np.diff(emitted)
        kept = gaps <= xargs.get("slo_tbt_ms", 1e12) / 1000 + 1e-9
        return not len(gaps) or bool(kept.mean() >= 0.99)

    def attainment(self, outcomes: Iterable[Any]) -> float:
        return float(np.mean([self.attained(o) for o in outcomes]))


@pytest.fixture(scope="session")
def lab() -> Lab:
    """The lab; skips where vLLM is not installed."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    from headway.engines.vllm import harness

    return Lab(harness)


@pytest.fixture
def recorded(tmp_path: Path) -> Callable[[str], list[dict[str, Any]]]:
    """Read a recording of the test's folder as rows."""

    def read(name: str) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (tmp_path / name).read_text().splitlines()]

    return read


@pytest.fixture
def rng() -> Random:
    """A seeded generator."""
    return Random(7)
