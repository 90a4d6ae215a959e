"""Everything one plan may look at. Parts read it; only the scheduler writes it."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass

from headway.latency.model import LatencyModel, StepShape
from headway.policy.kv.ledger import KvLedger
from headway.policy.live import LiveRequests
from headway.policy.view import EngineView
from headway.units import blocks_for


@dataclass(slots=True)
class PlanContext:
    """The state of one call of ``plan``.

    Attributes:
        now_s: The driver's clock.
        ref_s: When the step being planned begins, as far as promises are concerned: the
            end of the step before it (predicted, while that one is still in flight).
        step: Steps scheduled so far.
        step_s: Recent mean duration of a step.
        tightest_ttft_s: Tightest TTFT promised recently; ``inf`` when none.
        lagging_due_s: Due time of the most urgent decode that is out of step; ``inf``.
        set_aside: Claims that do not fit beside the others now.
        pressure: How much of the prefill the claims' due times leave is already spoken for:
            0 with nothing to prefill, 1 when every second counts.
        claim_tokens: Prompt tokens of a typical claim: what one more promise costs.
        shape: The decodes of this step, before any prompt token.
        num_spare_blocks: Free blocks nobody running needs for this step or its prompt.
    """

    view: EngineView
    now_s: float
    ref_s: float
    step: int
    step_s: float
    tightest_ttft_s: float
    lagging_due_s: float
    live: LiveRequests
    ledger: KvLedger
    latency: LatencyModel
    set_aside: Set[str] = frozenset()
    pressure: float = 0.0
    claim_tokens: float = 300.0
    shape: StepShape = StepShape()
    num_spare_blocks: int = 0

    def blocks(self, num_tokens: int) -> int:
        """Return the blocks *num_tokens* occupy."""
        return blocks_for(num_tokens, self.view.block_size_tokens)
