"""What the steered engine does with a plan: who computes how much, who loses its KV.

The rules are those of vLLM's loop as Headway steers it (``engines/vllm/driver.py``),
written from its behaviour: ``tests/conformance/test_two_engines.py`` holds the two together.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping
from dataclasses import dataclass

from headway.engines.prefix import Prefixes
from headway.engines.sim.blocks import BlockPool, PrefixPool
from headway.engines.sim.host_pool import HostPool
from headway.engines.sim.job import Job
from headway.engines.virtual import VirtualEngine
from headway.latency.model import StepShape
from headway.policy.plan import StepPlan


@dataclass(slots=True)
class Launch:
    """A step as the engine settled it; ``emitting`` are the requests that reach their end."""

    tokens: Mapping[str, int]
    admitted: Mapping[str, int]
    preempted: tuple[str, ...]
    swapped: tuple[str, ...]
    emitting: Container[str]
    shape: StepShape


class SteeredEngine:
    """Jobs, blocks and the rules of one step. Knows no time but what it is told."""

    def __init__(self, engine: VirtualEngine) -> None:
        self.engine = engine
        pool = PrefixPool if engine.prefix_caching else BlockPool
        self.pool: BlockPool = pool(engine.num_blocks, engine.block_size)
        look_up = self.pool.look_up if engine.prefix_caching else None
        self.prefixes = Prefixes(engine.block_size, look_up, self.pool.name_of)
        self.host = HostPool(engine)
        self.jobs: dict[str, Job] = {}
        self.running: list[Job] = []
        self.waiting: dict[str, Job] = {}
        self.num_preemptions = {"recompute": 0, "swap": 0}
        self._preempted: list[str] = []

    def add(self, job: Job) -> None:
        """Let a new request wait."""
        self.jobs[job.request_id] = self.waiting[job.request_id] = job

    def remove(self, job: Job) -> None:
        """A request ends, wherever it is."""
        if job.running:
            self.running.remove(job)
            job.running = False
        else:
            del self.waiting[job.request_id]
        self.pool.release(job)
        self.host.drop(job)
        del self.jobs[job.request_id]
        self.prefixes.forget(job.request_id)

    def preempt(self, job: Job, how: str, now_s: float) -> None:
        """Take a running request's KV away; a swap that does not fit becomes a recompute."""
        self.running.remove(job)
        stored = how == "swap" and self.host.try_store(job, now_s)
        self.num_preemptions["swap" if stored else "recompute"] += 1
        self.pool.release(job)
        job.running = job.emits = False
        job.num_computed = 0
        job.num_stale = job.num_in_flight
        job.num_placeholders = 0
        job.num_preemptions += 1
        job.enter(now_s, "swapped" if stored else "preempted")
        self.waiting[job.request_id] = job
        self._preempted.append(job.request_id)

    def begin(self, plan: StepPlan, prefilling: Collection[str], now_s: float) -> Launch:
        """Carry out the plan's prompt work, holds and budget; see :class:`Launch`.

        Args:
            prefilling: Requests the policy counts as prompts in progress. Those without a
                chunk in the plan sit the step out.
        """
        hidden = self._arrange(plan, prefilling)
        several = len(self.running) + len(self.waiting) > 1
        cap = plan.chunk_cap_tokens if several else 0
        budget = min(plan.token_budget, self.engine.max_num_batched_tokens)
        num_before = len(self._preempted)
        tokens: dict[str, int] = {}
        budget = self._compute_running(tokens, budget, cap, now_s)
        admitted: dict[str, int] = {}
        if len(self._preempted) == num_before:
            admitted = self._admit(plan, tokens, budget, cap, now_s)
        self.running.extend(hidden)
        preempted, self._preempted = tuple(self._preempted), []
        swapped = tuple(i for i in preempted if self.jobs[i].host_tokens)
        shape, emitting = self._advance(tokens)
        return Launch(tokens, admitted, preempted, swapped, emitting, shape)

    def _arrange(self, plan: StepPlan, prefilling: Collection[str]) -> list[Job]:
        """Order the running: decodes, then prompts as planned; return who sits out."""
        if not prefilling and not plan.hold:
            return []
        order = {c.request_id: i for i, c in enumerate(plan.chunks) if not c.admit}
        held = set(plan.hold)
        decodes: list[Job] = []
        prompts: list[Job] = []
        hidden: list[Job] = []
        for job in self.running:
            request_id = job.request_id
            in_order = request_id in order
            if request_id in held or (not in_order and request_id in prefilling):
                hidden.append(job)
            else:
                (prompts if in_order else decodes).append(job)
        prompts.sort(key=lambda job: order[job.request_id])
        self.running = decodes + prompts
        return hidden

    def _compute_running(self, tokens: dict[str, int], budget: int, cap: int, now_s: float) -> int:
        """Give the running their tokens, the last one leaving when blocks run out.

        Returns:
            What is left of *budget*.
        """
        running, pool, caching = self.running, self.pool, self.engine.prefix_caching
        index = 0
        while index < len(running) and budget > 0:
            job = running[index]
            index += 1
            ahead = job.num_placeholders
            if ahead and job.num_computed + 2 - ahead >= job.num_prompt + job.max_output:
                continue  # The token in flight is the last one allowed.
            count = job.num_prompt + job.num_output + ahead - job.num_computed
            if 0 < cap < count:
                count = cap
            if count > budget:
                count = budget
            if count == 0:
                continue
            while not pool.allocate(job, job.num_computed + count):
                victim = running[-1]
                self.preempt(victim, "recompute", now_s)
                if victim is job:
                    return budget
            if caching:
                pool.note_full(job, min(job.num_computed + count, job.num_tokens))
            tokens[job.request_id] = count
            budget -= count
        return budget

    def _admit(
        self, plan: StepPlan, tokens: dict[str, int], budget: int, cap: int, now_s: float
    ) -> dict[str, int]:
        """Start the admitted while everything of theirs fits; stop at the first that does not.

        Returns:
            Tokens found in a cache, for each request that began; the resumed come last.
        """
        began: dict[str, int] = {}
        resumed: dict[str, int] = {}
        for chunk in plan.chunks:
            job = self.waiting.get(chunk.request_id) if chunk.admit else None
            if job is None:
                continue
            if budget <= 0 or len(self.running) >= self.engine.max_num_seqs:
                break
            if job.num_stale:
                continue
            hits = self.pool.find(job)
            if not self.pool.admits(job, hits):
                break
            self.pool.adopt(job, hits)
            cached = len(hits) * self.engine.block_size
            if job.host_tokens:
                cached = self.host.load(job, cached, now_s)
            count = job.num_tokens - cached
            if 0 < cap < count:
                count = cap
            count = min(count, budget)
            assert self.pool.allocate(job, cached + count), "admitted without room"
            self.pool.note_full(job, cached + count)
            del self.waiting[job.request_id]
            self.running.append(job)
            job.running = True
            job.num_computed = cached
            tokens[job.request_id] = count
            budget -= count
            (resumed if job.num_preemptions else began)[job.request_id] = cached
        return {**began, **{i: resumed[i] for i in sorted(resumed)}}

    def _advance(self, tokens: dict[str, int]) -> tuple[StepShape, set[str]]:
        """Count the scheduled tokens; return the step's shape and who will emit."""
        shape = StepShape()
        num_decodes = context = 0
        emitting: set[str] = set()
        ahead = int(self.engine.asynchronous)
        for request_id, count in tokens.items():
            job = self.jobs[request_id]
            before = job.num_computed
            job.num_computed = before + count
            job.num_in_flight += count
            if count == 1 and before >= job.num_prompt:
                num_decodes += 1
                context += before
            else:
                shape = shape.with_chunk(count, before)
            if job.num_computed >= job.num_tokens + job.num_placeholders:
                emitting.add(request_id)
                job.num_placeholders += ahead
        shape = StepShape(
            shape.num_prefill_tokens, shape.num_prefills, num_decodes, context, shape.chunk_context
        )
        return shape, emitting

    def end(self, launch: Launch, now_s: float) -> tuple[dict[str, int], list[Job]]:
        """A step's output is there: return tokens emitted per request, and who is complete."""
        jobs, emitting, asynchronous = self.jobs, launch.emitting, self.engine.asynchronous
        emitted: dict[str, int] = {}
        complete: list[Job] = []
        for request_id, count in launch.tokens.items():
            job = jobs.get(request_id)
            if job is None:
                continue  # It ended while the step ran.
            job.num_in_flight -= count
            stale = job.num_stale > 0
            if stale:
                job.num_stale -= count
            if request_id not in emitting:
                continue
            job.num_output += 1
            job.times.append(now_s)
            if asynchronous and not stale:
                job.num_placeholders -= 1
                self.pool.note_full(job, job.num_computed - job.num_placeholders)
            if not stale and not job.emits:
                job.emits = True
                job.enter(now_s, "decode")
            emitted[request_id] = 1
            if job.num_output >= job.stop_after:
                complete.append(job)
        return emitted, complete
