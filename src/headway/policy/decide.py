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

from headway.latency.model import LatencyModel
from headway.policy.admit import MooreHodgson
from headway.policy.batch import InOrder, StepFill
from headway.policy.chunk import SlackChunk
from headway.policy.draft import Draft, SwapChoice
from headway.policy.known import Known
from headway.policy.planner import Planner
from headway.policy.preempt import BestEffortFirst, Preemptor
from headway.policy.prioritize import ByDeadline
from headway.policy.weigh import ExpectedLengths, Weighed


class Headway(Planner):
    """``headway``.

    Args:
        max_wait_s: Bound on how long best effort may wait for its turn.
        swap: Decides how a victim loses its KV.
    """

    def __init__(self, max_wait_s: float, swap: SwapChoice) -> None:
        self._max_wait_s = max_wait_s
        self.chunker = SlackChunk()
        self.preemptor = BestEffortFirst()
        self.swap = swap
        self._lengths = ExpectedLengths()
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
        return self._batcher.fill(draft, order, self.chunker, self.gate, preemptor)
