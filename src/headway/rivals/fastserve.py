"""``fastserve``: skip-join multi-level feedback queue, preemption at every iteration.

FastServe (arXiv 2305.05920 §4): newcomers join the level whose quantum holds their first
iteration; attained service demotes, starving promotes; every iteration computes the highest
levels first. Differs: who is outranked keeps its KV and sits out while there is room, and is
computed again when a higher level needs it; KV is copied to the host only when the running need
room to grow, not ahead of that (§4.2), and computed again where the host has no room; the number
of levels (6), the ratio of the quanta (2) and the starving time (300 s, as the longest wait of
ours) are ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from headway.kit.lengths import MaxTokens
from headway.kit.options import positive_count, positive_s
from headway.latency.model import StepShape
from headway.policy.draft import Draft
from headway.policy.swap_choice import WhereverItFits
from headway.request import Request
from headway.rivals.ranked import RankedPlanner, Ranking

RATIO = 2.0
"""Of one level's quantum to that of the level above."""


@dataclass(slots=True)
class QueuePlace:
    """Where a request stands in the queues.

    ``service_s`` was attained at this level; ``ran_at_s`` is when it was last seen to have
    computed anything (or arrived, or was promoted).
    """

    request: Request
    level: int
    ran_at_s: float
    service_s: float = 0.0
    num_computed_tokens: int = 0
    num_output_tokens: int = 0

    def has_run(self) -> bool:
        """Return whether it computed or emitted anything since this was last asked."""
        request = self.request
        ran = (
            request.num_computed_tokens > self.num_computed_tokens
            or request.num_output_tokens > self.num_output_tokens
        )
        self.num_computed_tokens = request.num_computed_tokens
        self.num_output_tokens = request.num_output_tokens
        return ran


class SkipJoin(Ranking):
    """Levels of doubling quanta; first come, first served within a level.

    A newcomer skips the levels whose quantum its first iteration (the prompt) would exceed.
    Whoever used up its level's quantum is demoted; whoever has not run for *starve_s* is
    promoted to the first level.

    Args:
        quantum_s: Of the first level; ``None`` takes the time of the shortest step there is,
            one decode alone, as the paper does.
    """

    def __init__(
        self,
        num_levels: int,
        quantum_s: float | None,
        starve_s: float,
    ) -> None:
        self._levels: list[dict[str, QueuePlace]] = [{} for _ in range(num_levels)]
        self._level_of: dict[str, int] = {}
        self._quantum_s = quantum_s
        self._starve_s = starve_s
        self._next_order = 0
        self._last_s = -math.inf
        self._is_new = True

    def begin(self, draft: Draft) -> None:
        """Forget the last plan."""
        self._is_new = True

    def order(self, draft: Draft) -> list[Request]:
        """Return the live requests level by level."""
        if self._is_new:
            self._is_new = False
            self._refresh(draft)
        return [job.request for level in self._levels for job in level.values()]

    def limit_s(self, draft: Draft) -> float:
        """Only requests and tokens are counted."""
        return math.inf

    def displaces(self, draft: Draft, newcomer: Request, resident: Request) -> bool:
        """Return whether *newcomer* is of a higher level: equals do not evict each other."""
        return self.level(newcomer) < self.level(resident)

    def level(self, request: Request) -> int:
        """Return the level of a live request, 0 the most important."""
        return self._level_of[request.request_id]

    def _refresh(self, draft: Draft) -> None:
        """Take in who left, who ran, who starved and who came since the last plan."""
        elapsed_s = draft.given.now_s - self._last_s
        self._last_s = draft.given.now_s
        quantum_s = self._quantum_s or draft.given.latency.predict_s(StepShape(0, 0, 1, 1))
        for job in [job for level in self._levels for job in level.values()]:
            request = job.request
            if draft.given.live.requests.get(request.request_id) is not request:
                self._drop(request.request_id)
            elif job.has_run():
                job.ran_at_s = draft.given.now_s
                job.service_s += elapsed_s
                self._demote(job, quantum_s)
            elif job.level and draft.given.now_s - job.ran_at_s >= self._starve_s:
                job.ran_at_s, job.service_s = draft.given.now_s, 0.0
                self._put(job, 0)
        new: list[Request] = []
        for request in reversed(draft.given.live.requests.values()):
            if request.order < self._next_order:
                break
            new.append(request)
        for request in reversed(new):
            self._join(draft, request, quantum_s)

    def _join(self, draft: Draft, request: Request, quantum_s: float) -> None:
        """Put a newcomer in the first level whose quantum holds its first iteration."""
        self._next_order = request.order + 1
        num_tokens = request.prefill_target_tokens
        first_s = draft.given.latency.predict_s(StepShape().with_chunk(num_tokens, 0))
        level = 0
        while level < len(self._levels) - 1 and quantum_s * RATIO**level < first_s:
            level += 1
        self._put(QueuePlace(request, level, request.arrived_at_s), level)

    def _demote(self, job: QueuePlace, quantum_s: float) -> None:
        """Move a job down while its service exceeds its level's quantum."""
        level = job.level
        while level < len(self._levels) - 1:
            allowed_s = quantum_s * RATIO**level
            if job.service_s < allowed_s:
                break
            job.service_s -= allowed_s
            level += 1
        if level != job.level:
            self._put(job, level)

    def _put(self, job: QueuePlace, level: int) -> None:
        """Append *job* to a level's queue."""
        request_id = job.request.request_id
        self._drop(request_id)
        job.level = level
        self._levels[level][request_id] = job
        self._level_of[request_id] = level

    def _drop(self, request_id: str) -> None:
        level = self._level_of.pop(request_id, None)
        if level is not None:
            del self._levels[level][request_id]


def planner(
    num_levels: int = 6,
    quantum_s: float | None = None,
    starve_s: float = 300.0,
    max_batch: int | None = None,
) -> RankedPlanner:
    """Levels by attained service; promises decide nothing.

    Args:
        num_levels: Levels of the queue, each of twice the quantum of the one above.
        quantum_s: Of the first level; ``None`` takes the predicted time of one decode alone.
        starve_s: How long a request may go without computing before it is promoted.
        max_batch: Requests computed in one step; ``None`` leaves it to the engine.
    """
    positive_count("num_levels", num_levels)
    if quantum_s is not None:
        positive_s("quantum_s", quantum_s)
    if max_batch is not None:
        positive_count("max_batch", max_batch)
    queue = SkipJoin(num_levels, quantum_s, starve_s=positive_s("starve_s", starve_s))
    return RankedPlanner(queue, MaxTokens(), max_batch, heeds_promises=False, swap=WhereverItFits())
