"""The default policy. The promise decides; admission is weighed, no length is guessed.

Joins earliest due date (Jackson 1955), the largest set of claims that can be on time (Moore
1968) and stall-free chunks from a learned step time (after Sarathi-Serve, arXiv 2403.02310, and
QoServe, arXiv 2503.22562). A request starts when the promises that waiting would cost outweigh
those that running out of KV would (:mod:`headway.policy.weigh`). Of CacheOPT's components, in our
own forms: lengths are survival functions (C1), admission looks at everybody's future use at once
(C2), and a victim is copied to the host where that is faster (C5). KV found some steps ahead (C3)
and victims chosen as a set (C4) cost more than they brought and are not here
(``experiments/LOG.md``).
"""

from __future__ import annotations

from dataclasses import replace

from headway.latency.model import LatencyModel, StepShape
from headway.policy.admit import MooreHodgson
from headway.policy.batch import InOrder, StepFill
from headway.policy.chunk import SlackChunk
from headway.policy.draft import Draft, SwapChoice
from headway.policy.known import Known
from headway.policy.plan import Chunk, StartRisk
from headway.policy.planner import Planner
from headway.policy.preempt import BestEffortFirst, Preemptor
from headway.policy.prioritize import ByDeadline
from headway.policy.weigh import ExpectedLengths, Weighed


class Headway(Planner):
    """``headway``.

    Args:
        max_wait_s: Bound on how long best effort may wait for its turn.
        swap: Decides how a victim loses its KV.
        lengths: What is known of output lengths; by default what it learns from those that end.
    """

    def __init__(
        self, max_wait_s: float, swap: SwapChoice, lengths: ExpectedLengths | None = None
    ) -> None:
        self._max_wait_s = max_wait_s
        self.chunker = SlackChunk()
        self.preemptor = BestEffortFirst()
        self.swap = swap
        self._lengths = ExpectedLengths() if lengths is None else lengths
        self._feasibility = MooreHodgson()
        self._order = ByDeadline()
        self.gate = Weighed(self._lengths, self.chunker)
        self._batcher = InOrder()

    def known(self, latency: LatencyModel, overload: str) -> Known:
        """See :class:`~headway.policy.planner.Planner`."""
        return Known(latency, self._lengths, self._max_wait_s, overload)

    def begin(self, draft: Draft) -> None:
        """See :class:`~headway.policy.planner.Planner`."""
        self.chunker.begin(draft)
        self.gate.begin(draft)

    def set_aside(self, draft: Draft) -> tuple[set[str], float]:
        """Thin the claims to those that can be on time together."""
        return self._feasibility.set_aside(draft, self.chunker)

    def fill(self, draft: Draft, preemptor: Preemptor) -> StepFill:
        """By due time, while the step and the KV have room."""
        order = self._order.candidates(draft)
        filled = self._batcher.fill(draft, order, self.chunker, self.gate, preemptor)
        filled.chunks = [replace(c, risk=risk_of(draft, c, filled.shape)) for c in filled.chunks]
        return filled


def risk_of(draft: Draft, chunk: Chunk, shape: StepShape) -> StartRisk | None:
    """Return what speaks against a promise, if one first starts so in a step of this shape."""
    request = draft.given.live.requests[chunk.request_id]
    if not (chunk.admit and request.has_claim) or request.num_preemptions:
        return None
    predict_s = draft.given.latency.predict_s
    done = max(request.num_ready_tokens, draft.coming_tokens(request)) + chunk.num_tokens
    rest = StepShape().with_chunk(request.prefill_target_tokens - done, done)
    step_s, rest_s = predict_s(shape), predict_s(rest) if rest.is_mixed else 0.0
    steps_to_spare = max((request.due_at_s - draft.given.ref_s - rest_s) / step_s - 1.0, 0.0)
    half_way = request.num_prompt_tokens + request.predicted_output_tokens // 2
    redo_pauses = predict_s(StepShape().with_chunk(half_way, 0)) / request.slo.longest_pause_s
    return StartRisk(steps_to_spare, draft.victims.get(request.request_id, 0.0), redo_pauses)
