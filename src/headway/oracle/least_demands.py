"""What keeping a promise takes at least: the steps of the proof of :mod:`headway.oracle.bound`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from headway.latency.model import StepShape
from headway.latency.profile import StepCost
from headway.oracle.fractions_kept import WindowDemand
from headway.slo import Slo
from headway.workloads.schema import WorkloadRequest

PIECE_TOKENS = 50
"""Decode tokens that share a window; shorter pieces are tighter and cost more variables."""

PIECES_WITH_PAUSES = 4
"""Windows at most of a stream that may pause: a pause makes them so wide that more say little."""

ROUNDING_S = 1e-9
"""What clocks that add up steps, and promises that were milliseconds once, may be off by."""


@dataclass(frozen=True, slots=True)
class Prices:
    """The least that tokens can cost on a machine. Seconds.

    Attributes:
        token_s: A token's share of the cheapest step: ``min over n of (fixed + n tokens) / n``.
        least_token_s: A token in a step that is paid for already.
        least_step_s: The shortest step that computes anything.
    """

    cost: StepCost
    max_step_tokens: int
    token_s: float
    least_token_s: float
    least_step_s: float

    @classmethod
    def of(cls, cost: StepCost, max_step_tokens: int) -> Prices:
        """Return the prices of a machine.

        The cost of n tokens over n is monotone on either side of the knee, so its minimum is
        at the knee or at the largest step.
        """
        sizes = {min(max(cost.knee_tokens, 1), max_step_tokens), max_step_tokens}
        share_s = min((cost.fixed_s + _tokens_s(cost, n)) / n for n in sizes)
        least_s = min(cost.per_token_s, cost.per_token_above_s)
        return cls(cost, max_step_tokens, share_s, least_s, cost.fixed_s + least_s)

    def prompt_s(self, num_tokens: int) -> float:
        """Return the engine seconds of a prompt, its attention included.

        However it is cut, the chunks' ``chunk x (prefix + chunk / 2)`` add up to half its square.
        """
        pairs_s = self.cost.per_pair_s * num_tokens**2 / 2
        return self.token_s * num_tokens + pairs_s + self.cost.per_prefill_s

    def alone_s(self, num_tokens: int) -> float:
        """Return the least seconds from arrival to the end of a prompt on an idle engine."""
        at_once_s = self.cost.fixed_s + self.least_token_s * num_tokens
        pairs_s = self.cost.per_pair_s * num_tokens**2 / 2
        return max(at_once_s, self.token_s * num_tokens) + pairs_s + self.cost.per_prefill_s

    def decode_s(self, context_tokens: int) -> float:
        """Return the engine seconds of one more token behind a context.

        Either it is decoded, or the request lost its KV and computes all of it again.
        """
        decoded_s = self.cost.per_context_s * context_tokens + self.cost.per_decode_s
        return self.token_s + min(decoded_s, self.token_s * context_tokens)

    def gap_s(self, context_tokens: int) -> float:
        """Return the least time between two tokens, the engine doing nothing else."""
        decoded_s = self.cost.step_s(StepShape(0, 0, 1, context_tokens))
        return min(decoded_s, self.alone_s(context_tokens + 1))


@dataclass(frozen=True, slots=True)
class LatestGaps:
    """How late the tokens after the first may come where a promise is kept. Seconds.

    Attributes:
        gap_s: The promised gap; ``inf`` where none is.
        pause_s: The longest pause; never below *gap_s*.
        num_late: Gaps that may last as long as a pause.
    """

    gap_s: float
    pause_s: float
    num_late: int

    @classmethod
    def of(cls, slo: Slo, num_gaps: int) -> LatestGaps:
        """Return what a promise allows a stream of so many gaps, as the metrics count it."""
        pause_s = slo.longest_pause_s
        gap_s = min(slo.least_late_s, pause_s)
        return cls(gap_s, pause_s, num_gaps // 100 if pause_s > gap_s else 0)

    def most_s(self, count: int) -> float:
        """Return the most seconds from the first token to the one *count* gaps later."""
        num_late = min(self.num_late, count)
        on_time_s = (count - num_late) * self.gap_s if count > num_late else 0.0
        return on_time_s + (num_late * self.pause_s if num_late else 0.0)

    def are_hopeless(self, least_s: Sequence[float]) -> bool:
        """Return whether gaps that last at least so long break the promise."""
        late = sum(s > self.gap_s + ROUNDING_S for s in least_s)
        return late > self.num_late or max(least_s, default=0.0) > self.pause_s + ROUNDING_S


def demands_of(
    index: int,
    request: WorkloadRequest,
    slo: Slo,
    prices: Prices,
    kv_tokens: int,
) -> list[WindowDemand] | None:
    """Return what keeping the promise takes; ``None`` when even an idle server could not."""
    prompt, at_s = request.num_prompt_tokens, request.arrived_at_s
    most = min(request.max_output_tokens or math.inf, kv_tokens - prompt)
    # An answer that fills the whole cache is ended there, and counts as finished.
    num_gaps = int(min(request.num_output_tokens, most)) - 1
    if num_gaps < 0:
        return None
    alone_s, all_gaps_s = prices.alone_s(prompt), num_gaps * prices.least_step_s
    ends_s = at_s + (math.inf if slo.jct_s is None else slo.jct_s)
    first_s = min(at_s + (math.inf if slo.ttft_s is None else slo.ttft_s), ends_s - all_gaps_s)
    if at_s + alone_s > first_s + ROUNDING_S:
        return None
    gaps = LatestGaps.of(slo, num_gaps)
    if gaps.are_hopeless([prices.gap_s(prompt + k) for k in range(num_gaps)]):
        return None
    jobs = [WindowDemand(index, at_s, first_s, prices.prompt_s(prompt), 0.0)]
    may_pause = gaps.num_late > 0
    least = math.ceil(num_gaps / PIECES_WITH_PAUSES) if may_pause else 0
    for start, count in _pieces(num_gaps, max(PIECE_TOKENS, least)):
        context = prompt + start
        begins_s = at_s + alone_s + start * prices.least_step_s
        left_s = (num_gaps - start - count) * prices.least_step_s
        due_s = min(first_s + gaps.most_s(start + count), ends_s - left_s)
        work_s = count * prices.decode_s(context)
        held = count * (context + 1) * prices.least_step_s
        jobs.append(WindowDemand(index, begins_s, due_s, work_s, held, may_pause))
    return jobs


def _pieces(num_gaps: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield first gap and number of gaps of each piece."""
    for start in range(0, num_gaps, size):
        yield start, min(size, num_gaps - start)


def _tokens_s(cost: StepCost, num_tokens: int) -> float:
    above = max(num_tokens - cost.knee_tokens, 0)
    return (num_tokens - above) * cost.per_token_s + above * cost.per_token_above_s
