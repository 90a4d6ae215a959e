"""Orders played in the simulator itself: slower than the model, and the last word.

The fast model forgets whoever is given up and counts KV in tokens; here the others are served to
the end and KV comes in blocks, so an order keeps one or two requests in a hundred fewer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from headway.engines.sim.run import SimRun
from headway.engines.virtual import VirtualCall, VirtualEngine
from headway.latency.model import StepShape
from headway.latency.profile import StepCost
from headway.metrics import define
from headway.oracle.fast_model import Server, StepModel
from headway.oracle.policy import scheduler
from headway.oracle.search import SearchResult
from headway.slo import Slo, SloBook
from headway.workloads.schema import WorkloadRequest


def server_of(engine: VirtualEngine, cost: StepCost) -> Server:
    """Return a simulated server as the fast model knows it."""
    tokens = engine.num_blocks * engine.block_size
    return Server(cost, tokens, engine.max_num_batched_tokens, engine.max_num_seqs)


class SimulatedPlayer(StepModel):
    """Plays orders on a simulated server; due times and work are the fast model's.

    Args:
        calls: The requests as the server is fed them.
        slos: The promise of each request, by id.
        cost: What steps cost in the fast model.
        step_s: Seconds of a step in the simulator, without noise.
        book: SLO classes that the calls may name.
        overload: What the server does with a promise that is given up.
    """

    def __init__(
        self,
        requests: Sequence[WorkloadRequest],
        calls: Sequence[VirtualCall],
        slos: Mapping[str, Slo],
        engine: VirtualEngine,
        cost: StepCost,
        step_s: Callable[[StepShape], float],
        book: SloBook | None = None,
        overload: str = "demote",
    ) -> None:
        super().__init__(requests, slos, server_of(engine, cost))
        self._calls, self._engine, self._simulated_step_s = calls, engine, step_s
        self._book, self._overload = book, overload
        self._names = [request.id for request in self.requests]

    def play(self, order: Sequence[int]) -> set[int]:
        """See :class:`~.search.Player`."""
        rank = {self._names[index]: at for at, index in enumerate(order)}
        found = SearchResult(rank, frozenset(self._names).difference(rank), 0.0, 1)
        step_s = self._simulated_step_s
        policy = scheduler(found, self.requests, step_s, self._overload)
        outcomes = SimRun(self._engine, step_s, policy, book=self._book).run(self._calls)
        kept = set()
        for index, name in enumerate(self._names):
            outcome = outcomes[name]
            finished = outcome.finish_reason in ("stop", "length")
            arrived_at_s = outcome.call.arrived_at_s
            slo, emitted_at_s = self.slos[index], list(outcome.emitted_at_s)
            if define.attained(slo, arrived_at_s, emitted_at_s, finished=finished):
                kept.add(index)
        return kept
