"""Planners whose one walk over all live requests decides who decodes, starts and makes room.

Decodes compete too: the step goes to the most important, be it a token or a prompt, until it is
full; the rest keep their KV and sit out.
"""

from __future__ import annotations

import math
from abc import abstractmethod

from headway.kit.parts import Promiseless
from headway.kit.simple import FreeBlocks
from headway.latency.model import LatencyModel
from headway.policy.chunk import Chunker
from headway.policy.draft import Draft, SwapChoice
from headway.policy.known import Known
from headway.policy.planner import Planner
from headway.policy.predict import Predictor
from headway.policy.preempt import Preemptor
from headway.policy.swap_choice import AlwaysRecompute


class OneWalk(Planner, Preemptor):
    """What such planners share; see :class:`~headway.kit.parts.Parts` for the arguments."""

    def __init__(
        self,
        lengths: Predictor,
        chunker: Chunker,
        *,
        max_wait_s: float = math.inf,
        heeds_promises: bool = True,
        swap: SwapChoice | None = None,
    ) -> None:
        self._lengths = lengths
        self._max_wait_s = max_wait_s
        self._known = Known if heeds_promises else Promiseless
        self.chunker = chunker
        self.gate = FreeBlocks()
        self.preemptor = self
        self.swap = swap or AlwaysRecompute()

    def known(self, latency: LatencyModel, overload: str) -> Known:
        """See :class:`~headway.policy.planner.Planner`."""
        return self._known(latency, self._lengths, self._max_wait_s, overload)

    def begin(self, draft: Draft) -> None:
        """Forget the last plan's walk."""
        self.chunker.begin(draft)
        self.forget(draft)

    @abstractmethod
    def forget(self, draft: Draft) -> None:
        """Forget what the last plan's walk found."""

    def set_aside(self, draft: Draft) -> tuple[set[str], float]:
        """Return nobody: the walk ranks whom others would set aside."""
        return set(), 0.0

    def decides_decodes(self, draft: Draft) -> bool:
        """Return whether anybody decodes, and so may sit out."""
        return bool(draft.given.live.decoding)
