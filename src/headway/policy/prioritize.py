"""In which order prompts compete for the step."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from heapq import merge

from headway.policy.draft import Draft
from headway.request import Request


class ByDeadline:
    """Overdue best effort, then claims by due time, then the rest by arrival.

    A request without a promise whose turn it is goes before the claims that came after it.

    Earliest due date first (Jackson 1955) among the claims that fit together; those set
    aside come next, in case there is room after all; then requests without a live promise.
    A claim whose prompt begins as one in progress does gives its turn to that one: what it would
    compute itself, it finds in the cache when the other is done. (TensorRT-LLM's capacity scheduler
    lets it wait. Differs: the other one, best effort or not, goes in its place.)
    Whoever is overdue (:meth:`~headway.policy.inputs.Inputs.is_overdue`) goes before all, the
    longest silent first (a stream that stands still may have come early and fallen silent late), so
    nobody starves.
    """

    def candidates(self, draft: Draft) -> Iterator[Request]:
        """Yield in the order described by the class; prompts in progress win ties."""
        overdue: list[Request] = []
        rest_in_progress: list[Request] = []
        claims_in_progress: list[Request] = []
        for request in draft.given.live.prefilling.values():
            if request.has_claim and request.request_id not in draft.set_aside:
                claims_in_progress.append(request)
            elif draft.given.is_overdue(request):
                overdue.append(request)
            else:
                rest_in_progress.append(request)
        for request in draft.given.live.others:
            if draft.given.is_overdue(request):
                overdue.append(request)
            elif not request.num_preemptions:
                break  # Whoever came later has waited less; the preempted may have run since.
        overdue.sort(key=lambda request: request.silent_since_s)
        yield from overdue
        first = {request.request_id for request in overdue}
        turns = deque(r for r in draft.given.fair if r.request_id not in first)
        first.update(r.request_id for r in turns)
        claims_in_progress.sort(key=_due)
        aside: list[Request] = []
        giving_way: list[Request] = []
        for request in merge(claims_in_progress, draft.given.live.claims, key=_due):
            if request.request_id in draft.set_aside:
                aside.append(request)
                continue
            if request.slo.tenant in draft.given.heavy and request.request_id not in first:
                giving_way.append(request)
                continue
            while turns and turns[0].order < request.order:
                yield turns.popleft()
            other = draft.given.live.computing_for(request)
            for one in (request,) if other is None else (other, request):
                if one.request_id not in first:
                    first.add(one.request_id)
                    yield one
        yield from turns
        yield from giving_way
        yield from (r for r in rest_in_progress if r.request_id not in first)
        yield from aside
        others = draft.given.live.others
        heavy = draft.given.heavy
        yield from (r for r in others if r.request_id not in first and r.slo.tenant not in heavy)
        if heavy:
            yield from (r for r in others if r.request_id not in first and r.slo.tenant in heavy)


def _due(request: Request) -> tuple[float, int, int]:
    return (request.due_at_s, 0 if request.num_computed_tokens else 1, request.order)
