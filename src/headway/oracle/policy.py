"""The policy ``oracle``: serves in the order that was searched, and knows every length.

For engines under a virtual clock only, since nobody else knows the future. Its parts are the
default policy's with the guesses replaced by the truth.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from headway.kit.curve_gate import CurveGate
from headway.kit.ledger import KvLedger
from headway.kit.lengths import Oracle
from headway.kit.parts import ComposedPlanner, Feasibility, Parts, Prioritizer
from headway.kit.tightest import TightestRecent
from headway.latency.model import LatencyModel, StepShape
from headway.oracle.search import SearchResult
from headway.policy.batch import InOrder
from headway.policy.chunk import Chunker, SlackChunk
from headway.policy.draft import Draft
from headway.policy.preempt import BestEffortFirst
from headway.policy.scheduler import Scheduler
from headway.request import Request
from headway.workloads.schema import WorkloadRequest


class KnownTime(LatencyModel):
    """Step times that are told: a truth without noise, or its mean."""

    def __init__(self, truth: Callable[[StepShape], float]) -> None:
        self._truth = truth

    def predict_s(self, shape: StepShape) -> float:
        """Return the seconds of a step of this shape."""
        return self._truth(shape)

    def margin(self, mixed: bool, miss_rate: float) -> float:
        """Return 1: there is no error."""
        return 1.0

    def exceeds(self, mixed: bool, ratio: float) -> float:
        """Return whether the step itself exceeds."""
        return float(ratio < 1.0)

    def observe(self, shape: StepShape, duration_s: float) -> None:
        """Nothing is left to learn."""


class ChosenClaims(Feasibility):
    """The claims given up in advance are set aside; the others are served at full pressure."""

    def __init__(self, dropped: frozenset[str]) -> None:
        self._dropped = dropped

    def set_aside(self, draft: Draft, chunker: Chunker) -> tuple[set[str], float]:
        """See :class:`~headway.kit.parts.Feasibility`."""
        return {i for i in draft.given.live.requests if i in self._dropped}, 1.0


class EveryGap(SlackChunk):
    """Steps as short as every promise of those it serves asks: whom to serve is decided."""

    def __init__(self, tightest: TightestRecent) -> None:
        super().__init__()
        self._tightest = tightest

    def promised_s(self, draft: Draft, least_s: float) -> float:
        """Return the tighter of recent first tokens and gaps that are not broken anyway."""
        decode_s = draft.given.latency.predict_s(draft.shape)
        gap_s = next(
            draft.given.live.claim_gaps.irange(decode_s, inclusive=(False, True)), math.inf
        )
        return min(max(self._tightest.value_s, least_s), gap_s)


class ByRank(Prioritizer):
    """Those who are served for their promise, by rank; when none of them waits, the rest.

    Whoever is given up would only lengthen the steps of the others; a prompt in progress goes on.
    """

    def __init__(self, rank: Mapping[str, int]) -> None:
        self._rank = rank

    def candidates(self, draft: Draft) -> Iterator[Request]:
        """Yield prompts in progress and waiting requests together."""
        live = draft.given.live
        chosen = [r for r in (*live.prefilling.values(), *live.claims) if self._is_chosen(r)]
        yield from sorted(chosen, key=lambda r: self._rank[r.request_id])
        waiting = () if chosen else (*live.claims, *live.others)
        rest = (r for r in (*live.prefilling.values(), *waiting) if not self._is_chosen(r))
        yield from sorted(rest, key=lambda r: r.order)

    def _is_chosen(self, request: Request) -> bool:
        return request.has_claim and request.request_id in self._rank


def true_lengths(requests: Sequence[WorkloadRequest]) -> dict[str, int]:
    """Return the output tokens of each request, by id; a client's bound ends an output too."""
    return {
        r.id: min(r.num_output_tokens, r.max_output_tokens or r.num_output_tokens) for r in requests
    }


def scheduler(
    found: SearchResult,
    requests: Sequence[WorkloadRequest],
    truth: Callable[[StepShape], float],
    overload: str = "demote",
) -> Scheduler:
    """Return a policy core, new, for one run of exactly these requests.

    Args:
        found: The order to serve in.
        truth: Seconds of a step, without noise.
    """
    ledger, tightest = KvLedger(), TightestRecent()
    parts = Parts(
        predictor=Oracle(true_lengths(requests)),
        feasibility=ChosenClaims(found.dropped),
        prioritizer=ByRank(found.rank),
        chunker=EveryGap(tightest),
        gate=CurveGate(ledger, reserve_share=0.0),
        batcher=InOrder(),
        preemptor=BestEffortFirst(),
        ledger=ledger,
        tightest=tightest,
    )
    return Scheduler("oracle", ComposedPlanner(parts), KnownTime(truth), overload)
