"""What a preset is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Protocol

from headway.papers.cacheopt.c2_lending import LendingBook
from headway.policy.admit import Feasibility, Gate
from headway.policy.batch import Batcher
from headway.policy.chunk import Chunker
from headway.policy.context import PlanContext
from headway.policy.plan import Preempt
from headway.policy.predict import Predictor
from headway.policy.preempt import Preemptor
from headway.policy.prioritize import Prioritizer
from headway.policy.swap_choice import AlwaysRecompute, SwapChoice


class Holder(Protocol):
    """Decides which running decodes sit a step out, keeping their KV."""

    def hold(self, ctx: PlanContext) -> tuple[str, ...]:
        """Return their ids; ``ctx.shape`` is left with the decodes that do run."""


class Funder(Protocol):
    """Sees to it that running requests have the KV they are about to need."""

    def fund(
        self, ctx: PlanContext, predictor: Predictor, preemptor: Preemptor
    ) -> tuple[Preempt, ...]:
        """Return victims; ``ctx.num_spare_blocks`` is left with what newcomers may take."""


@dataclass(slots=True)
class Parts:
    """What a preset is made of; each part can be switched on its own.

    ``max_wait_s`` bounds how long a request may wait for its next token. A preset that heeds no
    promises treats every request as if it had none. ``holder`` replaces the scheduler's own rule
    (streams without a promised gap yield to those with one), ``funder`` the rule that blocks are
    found for the next step only. With ``lending`` the ledger keeps that book too.
    """

    predictor: Predictor
    feasibility: Feasibility
    prioritizer: Prioritizer
    chunker: Chunker
    gate: Gate
    batcher: Batcher
    preemptor: Preemptor
    max_wait_s: float = math.inf
    heeds_promises: bool = True
    holder: Holder | None = None
    funder: Funder | None = None
    lending: LendingBook | None = None
    swap: SwapChoice = field(default_factory=AlwaysRecompute)
