"""In which order prompts compete for the step."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import merge
from typing import Protocol

from headway.policy.context import PlanContext
from headway.request import Request


class Prioritizer(Protocol):
    """Orders the prompts in progress and the waiting requests together."""

    def candidates(self, ctx: PlanContext) -> Iterator[Request]:
        """Yield requests that want prompt tokens, most important first."""


class ByArrival(Prioritizer):
    """First come, first served; prompts in progress before new ones."""

    def candidates(self, ctx: PlanContext) -> Iterator[Request]:
        """Yield prompts in progress in the order they began, then waiting by arrival."""
        yield from list(ctx.live.prefilling.values())
        yield from merge(ctx.live.claims, ctx.live.others, key=lambda r: r.order)


class ByDeadline(Prioritizer):
    """Overdue best effort, then claims by due time, then the rest by arrival.

    Earliest due date first (Jackson 1955) among the claims that fit together; those set
    aside come next, in case there is room after all; then requests without a live promise.
    Whoever waited longer than ``max_wait_s`` minus a tenth goes before all, so nobody
    starves: the tenth is the time their own work may take.
    """

    def __init__(self, max_wait_s: float = 300.0) -> None:
        self.max_wait_s = max_wait_s

    def is_overdue(self, request: Request, now_s: float) -> bool:
        """Return whether a request has waited so long that it goes first."""
        since_s = request.last_token_at_s or request.queued_at_s
        return now_s - since_s >= 0.9 * self.max_wait_s

    def candidates(self, ctx: PlanContext) -> Iterator[Request]:
        """Yield in the order described by the class; prompts in progress win ties."""
        now_s = ctx.now_s
        rest_in_progress: list[Request] = []
        claims_in_progress: list[Request] = []
        for request in ctx.live.prefilling.values():
            if request.has_claim and request.request_id not in ctx.set_aside:
                claims_in_progress.append(request)
            elif self.is_overdue(request, now_s):
                yield request
            else:
                rest_in_progress.append(request)
        num_overdue = 0
        for request in ctx.live.others:
            if not self.is_overdue(request, now_s):
                break
            num_overdue += 1
            yield request
        claims_in_progress.sort(key=_due)
        aside: list[Request] = []
        for request in merge(claims_in_progress, ctx.live.claims, key=_due):
            if request.request_id in ctx.set_aside:
                aside.append(request)
            else:
                yield request
        yield from rest_in_progress
        yield from aside
        yield from ctx.live.others.islice(num_overdue)


def _due(request: Request) -> tuple[float, int, int]:
    return (request.due_at_s, 0 if request.num_computed_tokens else 1, request.order)
