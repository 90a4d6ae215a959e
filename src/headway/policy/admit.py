"""Which promises can still be kept together, and which request fits the KV cache."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from headway.latency.model import StepShape
from headway.policy.appointments import WORTH
from headway.policy.chunk import Chunker
from headway.policy.context import PlanContext
from headway.policy.price import STREAMS_SHARE
from headway.request import Request

CLAIMS_A_STEP = 64
"""Waiting claims for which what fits together is decided in every step; with more, less often."""


@dataclass(frozen=True, slots=True)
class Job:
    """One claim as the feasibility test sees it: work to do before an instant."""

    key: str
    due_s: float
    work_s: float
    weight: float = 1.0


def largest_feasible(jobs: Iterable[Job]) -> tuple[set[str], float]:
    """Return the jobs to set aside so that the most others end on time.

    Moore (1968) with Hodgson's proof: in order of due times, whenever the running total is
    late, drop the longest job so far. Optimal for equal weights. Differs: with weights the
    job with the most work *per weight* is dropped, a heuristic.

    Returns:
        Keys set aside, and the pressure: the largest share of the time until a due instant
        that work due by then takes (1 at most when it fits).
    """
    total_s = 0.0
    pressure = 0.0
    kept: list[tuple[float, str, float]] = []
    dropped: set[str] = set()
    for job in sorted(jobs, key=lambda j: (j.due_s, j.key)):
        total_s += job.work_s
        heapq.heappush(kept, (-job.work_s / job.weight, job.key, job.work_s))
        while total_s > job.due_s and kept:
            _, key, work_s = heapq.heappop(kept)
            total_s -= work_s
            dropped.add(key)
        if job.due_s > 0:
            pressure = max(pressure, total_s / job.due_s)
    return dropped, 1.0 if dropped else pressure


class Feasibility(Protocol):
    """Decides which claims stop competing."""

    def set_aside(self, ctx: PlanContext, chunker: Chunker) -> tuple[set[str], float]:
        """Return the claims that do not fit now, and the pressure on prefill (0 to 1)."""


class AllFeasible(Feasibility):
    """Hope for everybody, as servers without promises do."""

    def set_aside(self, ctx: PlanContext, chunker: Chunker) -> tuple[set[str], float]:
        """Return nobody."""
        return set(), 0.0


class MooreHodgson(Feasibility):
    """The largest set of claims whose first tokens can all be on time, by prefill time.

    The work of a claim is its remaining prompt at the speed the running decodes leave
    (:class:`PrefillTime`).
    Re-decided when requests came, moved or left; with many waiting only every
    ``len /`` :data:`CLAIMS_A_STEP` steps, so the cost a step stays bounded.
    """

    def __init__(self) -> None:
        self._last: tuple[set[str], float] = (set(), 0.0)
        self._decided_at_step = -1

    def set_aside(self, ctx: PlanContext, chunker: Chunker) -> tuple[set[str], float]:
        """Return the claims to set aside; see the class."""
        due_for_it = (ctx.step - self._decided_at_step) * CLAIMS_A_STEP >= len(ctx.live.claims)
        if due_for_it:
            ctx.pressure = 1.0  # What fits is decided at the speed the server has when pressed.
            dropped, pressure = largest_feasible(self._jobs(ctx, chunker))
            least_s = ctx.price.least_gap_s
            dropped.update(
                r.request_id for r in ctx.live.claims if (r.promised_gap_s or math.inf) < least_s
            )
            self._last = dropped, pressure
            self._decided_at_step = ctx.step
        return self._last

    def _jobs(self, ctx: PlanContext, chunker: Chunker) -> list[Job]:
        """Return one job a claim that waits or whose prompt is in progress.

        What several have in common with a prompt in progress is the work of the first of them.
        """
        prefill = prefill_time(ctx, chunker)
        waiting: Sequence[Request] = ctx.live.claims
        running = [r for r in ctx.live.prefilling.values() if r.has_claim]
        shared = ctx.live.shared_tokens()
        return [
            Job(
                r.request_id,
                # A token comes out when its step ends, on average half a step after the work.
                r.due_at_s - ctx.ref_s - 0.5 * prefill.step_s,
                prefill.work_s(r, shared.get(r.request_id, r.num_ready_tokens)),
                r.slo.weight * (WORTH if r.is_expected else 1.0),
            )
            for r in (*running, *waiting)
        ]


@dataclass(frozen=True, slots=True)
class PrefillTime:
    """What prompt tokens take beside the running decodes, cut into steps of one size.

    Attributes:
        num_tokens: Prompt tokens of such a step.
        step_s: Seconds of such a step.
        token_s: Seconds a token, at the beginning of a prompt.
        pair_s: Seconds a token takes longer for each token before it in its prompt.
    """

    num_tokens: int
    step_s: float
    token_s: float
    pair_s: float

    def work_s(self, request: Request, num_ready_tokens: int | None = None) -> float:
        """Return the seconds the rest of a prompt takes; fewer if more of it is ready by then."""
        ready = request.num_ready_tokens if num_ready_tokens is None else num_ready_tokens
        num_tokens = max(request.prefill_target_tokens - ready, 0)
        # On average half of these tokens are before each; those of one step are in token_s.
        before = request.prefill_target_tokens - num_tokens
        before += max(num_tokens - self.num_tokens, 0) // 2
        return num_tokens * (self.token_s + self.pair_s * before)


def prefill_time(ctx: PlanContext, chunker: Chunker) -> PrefillTime:
    """Return what prompt tokens take now."""
    most = chunker.largest(ctx, ctx.shape, 0, min(ctx.view.max_step_tokens, 2048))
    if most <= 0:
        return PrefillTime(1, ctx.step_s, 1e3, 0.0)
    step_s = ctx.latency.predict_s(ctx.shape.with_chunk(most, 0))
    later_s = ctx.latency.predict_s(ctx.shape.with_chunk(most, most))
    return PrefillTime(
        most, min(step_s, ctx.step_s), step_s / most, (later_s - step_s) / most / most
    )


class Gate(Protocol):
    """Decides whether a waiting request may start now."""

    def fits(self, ctx: PlanContext, request: Request) -> bool:
        """Return whether the future has room; free blocks are the scheduler's own check."""

    def admitted(self, ctx: PlanContext, request: Request) -> None:
        """Hear that *request* fits and starts in this plan; most gates need not know."""
        return  # An empty body would make it abstract to mypy.


class AllOf(Gate):
    """Several gates in a row."""

    def __init__(self, *gates: Gate) -> None:
        self._gates = gates

    def fits(self, ctx: PlanContext, request: Request) -> bool:
        """Return whether every gate is open."""
        return all(gate.fits(ctx, request) for gate in self._gates)

    def admitted(self, ctx: PlanContext, request: Request) -> None:
        """Tell every gate."""
        for gate in self._gates:
            gate.admitted(ctx, request)


class StepGate(Gate):
    """Start a stream only if the steps to come stay within the gaps already promised.

    Every stream makes every later step longer. Streams without a promised gap can sit steps
    out, so only those with one count against each other; a best-effort stream starts when a
    step with *everybody* still fits.

    A dear gap (:mod:`headway.policy.price`) keeps nobody out. Decodes alone may take
    :data:`~headway.policy.price.STREAMS_SHARE` of the tightest gap; prompts need the rest.
    """

    def fits(self, ctx: PlanContext, request: Request) -> bool:
        """Return whether the decode step with one more stream stays within the gaps."""
        live = ctx.live
        gaps_s = list(islice(live.claim_gaps.irange(ctx.price.least_gap_s), 1))
        gap_s = request.promised_gap_s
        if request.has_claim and gap_s is not None and not ctx.price.is_dear(request):
            gaps_s.append(gap_s)
        if not gaps_s or ctx.is_overdue(request):
            return True
        if not request.has_claim:
            num_streams = live.num_running + 1
        elif gap_s is None:
            return True
        else:
            starting = sum(
                r.has_claim and r.slo.tbt_s is not None for r in live.prefilling.values()
            )
            others = sum(live.claim_gaps.values()) + starting
            if others == 0:
                return True  # No gap but its own is at stake, and waiting makes that no longer.
            num_streams = others + 1
        context = live.sum_decode_context_tokens * num_streams // max(len(live.decoding), 1)
        step_s = ctx.latency.predict_s(StepShape(0, 0, num_streams, context))
        return bool(step_s * ctx.latency.margin(False, 0.05) <= STREAMS_SHARE * min(gaps_s))


class FreeBlocks(Gate):
    """Whoever fits the free blocks may start, as stock vLLM does."""

    def fits(self, ctx: PlanContext, request: Request) -> bool:
        """Always: free blocks are checked for every gate."""
        return True


class CurveGate(Gate):
    """Admit when the peak of the predicted usage stays within the cache.

    A request whose promise is alive is measured against the others with a claim only:
    best-effort residents are preempted when they stand in its way. Who was admitted earlier in the
    same plan is not in the curve: counted, a burst waits longer and fewer promises are kept.

    Args:
        reserve_share: Share of the cache kept free of predictions.
    """

    def __init__(self, reserve_share: float = 0.02) -> None:
        self._reserve_share = reserve_share

    def fits(self, ctx: PlanContext, request: Request) -> bool:
        """Return whether the peak with *request* stays below capacity minus the reserve."""
        capacity = ctx.room_tokens * (1.0 - self._reserve_share)
        if len(ctx.ledger.everyone) == 0:  # Nobody runs, nobody is pencilled in.
            return True
        peak = ctx.ledger.peak_with_tokens(request, ctx.step, claims_only=ctx.comes_first(request))
        return peak <= capacity
