"""What published rules are composed of: parts that decide one thing each, and a planner of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from headway.kit.hold import hold
from headway.kit.ledger import KvLedger
from headway.kit.tightest import Tightest, TightestRecent
from headway.latency.model import LatencyModel
from headway.policy.admit import Gate
from headway.policy.batch import StepFill
from headway.policy.chunk import Chunker
from headway.policy.draft import Draft, SwapChoice
from headway.policy.known import Known
from headway.policy.plan import Preempt
from headway.policy.planner import Planner
from headway.policy.predict import Predictor
from headway.policy.preempt import Preemptor
from headway.policy.swap_choice import AlwaysRecompute
from headway.request import Request, Standing


class Part(Protocol):
    """Whatever remembers something for the length of one plan."""

    def begin(self, draft: Draft) -> None:
        """Forget the last plan."""


class Feasibility(Protocol):
    """Decides which claims stop competing."""

    def set_aside(self, draft: Draft, chunker: Chunker) -> tuple[set[str], float]:
        """Return the claims that do not fit now, and the pressure on prefill (0 to 1)."""


class Prioritizer(Protocol):
    """Orders the prompts in progress and the waiting requests together."""

    def candidates(self, draft: Draft) -> Iterator[Request]:
        """Yield requests that want prompt tokens, most important first."""


class Batcher(Protocol):
    """Fills a step with prompt work."""

    def fill(
        self,
        draft: Draft,
        candidates: Iterable[Request],
        chunker: Chunker,
        gate: Gate,
        preemptor: Preemptor,
    ) -> StepFill:
        """Return the chunks of the step; ``draft.num_spare_blocks`` shrinks with them."""


class Funder(Protocol):
    """Sees to it that running requests have the KV they are about to need."""

    def fund(self, draft: Draft, predictor: Predictor, preemptor: Preemptor) -> tuple[Preempt, ...]:
        """Return victims; ``draft.num_spare_blocks`` is left with what newcomers may take."""


@dataclass(slots=True)
class Parts:
    """What a preset is made of; each part can be switched on its own.

    ``max_wait_s`` bounds how long a request may wait for its next token. A preset that heeds no
    promises treats every request as if it had none. Where ``everyone_decodes`` no stream sits a
    step out, else those without a promised gap yield to those with one. ``funder`` replaces the
    rule that blocks are found for the next step only. Parts that reckon with the KV running
    requests will hold share a ``ledger``; who heeds the ``tightest`` recent first token shares it
    too; ``shared`` are parts of parts that remember something for one plan.
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
    everyone_decodes: bool = False
    funder: Funder | None = None
    ledger: KvLedger | None = None
    tightest: TightestRecent | None = None
    swap: SwapChoice = field(default_factory=AlwaysRecompute)
    shared: tuple[Part, ...] = ()


class Promiseless(Known):
    """What is known to a planner that heeds no promises: everybody is best effort."""

    heeds_promises = False

    def _judge(self, request: Request, at_s: float) -> None:
        request.standing = Standing.UNPROMISED


class ComposedPlanner(Planner):
    """A planner of parts."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts
        self.chunker = parts.chunker
        self.gate = parts.gate
        self.preemptor = parts.preemptor
        self.swap = parts.swap

    def known(self, latency: LatencyModel, overload: str) -> Known:
        """See :class:`~headway.policy.planner.Planner`."""
        parts = self.parts
        given = (latency, parts.predictor, parts.max_wait_s, overload, parts.ledger)
        if parts.tightest is not None:
            return Tightest(parts.tightest, *given)
        return Known(*given) if parts.heeds_promises else Promiseless(*given)

    def begin(self, draft: Draft) -> None:
        """See :class:`~headway.policy.planner.Planner`."""
        parts = self.parts
        if parts.ledger is not None:
            parts.ledger.layout = draft.given.layout
        remembering: tuple[Part, ...] = (parts.chunker, parts.gate, *parts.shared)
        for part in remembering:
            part.begin(draft)

    def set_aside(self, draft: Draft) -> tuple[set[str], float]:
        """As the feasibility test says."""
        return self.parts.feasibility.set_aside(draft, self.chunker)

    def hold(self, draft: Draft) -> tuple[str, ...]:
        """As the default policy does, or nobody."""
        return () if self.parts.everyone_decodes else hold(draft, self.chunker)

    def fund(self, draft: Draft, preemptor: Preemptor) -> tuple[Preempt, ...]:
        """As the funder says."""
        funder = self.parts.funder
        if funder is None:
            return super().fund(draft, preemptor)
        return funder.fund(draft, self.parts.predictor, preemptor)

    def fill(self, draft: Draft, preemptor: Preemptor) -> StepFill:
        """Let the batcher fill the step with what the prioritizer says is next."""
        parts = self.parts
        order = parts.prioritizer.candidates(draft)
        filled = parts.batcher.fill(draft, order, parts.chunker, parts.gate, preemptor)
        if parts.ledger is not None:
            parts.ledger.rub_out()
        return filled
