"""A load on one simulated server, played again and again: the last word of every search.

The fast model forgets whoever is given up and counts KV in tokens; here the others are served to
the end and KV comes in blocks, so an order keeps one or two requests in a hundred fewer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from headway.engines.sim.run import SimRun
from headway.engines.virtual import VirtualCall, VirtualEngine
from headway.latency.model import StepShape
from headway.latency.profile import StepCost
from headway.metrics import define
from headway.oracle.fast_model import Server, StepModel
from headway.oracle.policy import scheduler
from headway.oracle.search import SearchResult
from headway.policy.scheduler import Scheduler
from headway.slo import Slo, SloBook
from headway.workloads.schema import WorkloadRequest

StepTime = Callable[[StepShape], float]


@dataclass(frozen=True)
class Instance:
    """A load and the server it is offered to.

    Attributes:
        calls: The requests as the server is fed them.
        slos: The promise of each request, by id.
        cost: What steps cost, without noise.
        step_s: The same as seconds of a step: what policies are told that know step times.
        truth_of: Returns what the steps of one play take, noise included: the same every time.
        book: SLO classes that the calls may name.
        overload: What the server does with a promise that is given up.
    """

    requests: Sequence[WorkloadRequest]
    calls: Sequence[VirtualCall]
    slos: Mapping[str, Slo]
    engine: VirtualEngine
    cost: StepCost
    step_s: StepTime
    truth_of: Callable[[], StepTime]
    book: SloBook | None = None
    overload: str = "demote"

    @property
    def server(self) -> Server:
        """The server as the fast model knows it."""
        engine = self.engine
        tokens = engine.num_blocks * engine.block_size
        return Server(self.cost, tokens, engine.max_num_batched_tokens, engine.max_num_seqs)

    def kept_by(self, policy: Scheduler) -> frozenset[str]:
        """Return whose promise is kept, by id, when *policy*, new, serves the load."""
        outcomes = SimRun(self.engine, self.truth_of(), policy, book=self.book).run(self.calls)
        return frozenset(
            name
            for name, outcome in outcomes.items()
            if define.attained(
                self.slos[name],
                outcome.call.arrived_at_s,
                list(outcome.emitted_at_s),
                finished=outcome.finish_reason in ("stop", "length"),
            )
        )


class SimulatedPlayer(StepModel):
    """Plays orders on a simulated server; due times and work are the fast model's."""

    def __init__(self, instance: Instance) -> None:
        super().__init__(instance.requests, instance.slos, instance.server)
        self.instance = instance
        self.names = [request.id for request in self.requests]

    def play(self, order: Sequence[int]) -> set[int]:
        """See :class:`~headway.oracle.search.Player`."""
        rank = {self.names[index]: at for at, index in enumerate(order)}
        found = SearchResult(rank, frozenset(self.names).difference(rank), 0.0, 1)
        kept = self.instance.kept_by(self.scheduler(found))
        return {index for index, name in enumerate(self.names) if name in kept}

    def scheduler(self, found: SearchResult) -> Scheduler:
        """Return a policy core, new, that serves as *found* says."""
        one = self.instance
        return scheduler(found, one.requests, one.step_s, one.overload)
