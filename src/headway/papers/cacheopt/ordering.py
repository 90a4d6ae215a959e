"""In which order CacheOPT serves prompts: critical first, or simply as they came."""

from __future__ import annotations

from collections.abc import Iterator
from heapq import merge

from headway.kit.parts import Prioritizer
from headway.papers.cacheopt.critical import WINDOW, Critical
from headway.policy.draft import Draft
from headway.request import Request


class AsTheyCame(Prioritizer):
    """First come, first served, for policies that know promises but do not order by them."""

    def candidates(self, draft: Draft) -> Iterator[Request]:
        """Yield prompts in progress in the order they began, then the waiting by arrival."""
        yield from list(draft.given.live.prefilling.values())
        yield from merge(
            sorted(draft.given.live.claims, key=lambda r: r.order),
            draft.given.live.others,
            key=lambda r: r.order,
        )


class CriticalFirst(Prioritizer):
    """Critical requests by slack; the rest in the order of their weighted shares.

    CacheOPT (arXiv 2503.13773 §3.3, as third parties cite it) gives what the critical leave to
    the others by demand, weighted by promise. Here a request starts whole or not at all, so
    shares become an order: the KV left goes to whoever has the most weight a second of slack,
    each taking its whole demand, until it is used up. Who waited too long goes first
    (:meth:`~headway.policy.inputs.Inputs.is_overdue`), so nobody starves.
    """

    def __init__(self, critical: Critical) -> None:
        self._critical = critical

    def candidates(self, draft: Draft) -> Iterator[Request]:
        """Yield the overdue, the critical, prompts in progress, claims, then best effort."""
        overdue = [r for r in self._oldest(draft) if draft.given.is_overdue(r)]
        yield from overdue
        gone = {r.request_id for r in overdue}
        prompts = [r for r in draft.given.live.prefilling.values() if r.request_id not in gone]
        claims = [r for r in draft.given.live.claims.islice(0, WINDOW) if r.request_id not in gone]
        slack_s = {r.request_id: self._critical.slack_s(draft, r) for r in (*prompts, *claims)}

        def is_critical(request: Request) -> bool:
            return slack_s[request.request_id] < draft.given.max_step_s

        critical = [r for r in (*prompts, *claims) if is_critical(r)]
        yield from sorted(critical, key=lambda r: (slack_s[r.request_id], r.order))
        yield from (r for r in prompts if not is_critical(r))
        rest = [r for r in claims if not is_critical(r)]
        rest.sort(key=lambda r: (slack_s[r.request_id] / r.slo.weight, r.order))
        yield from rest
        yield from (r for r in draft.given.live.claims.islice(WINDOW) if r.request_id not in gone)
        yield from (r for r in draft.given.live.others if r.request_id not in gone)

    @staticmethod
    def _oldest(draft: Draft) -> Iterator[Request]:
        """Yield who may be overdue: prompts in progress, and others until one is too young."""
        yield from draft.given.live.prefilling.values()
        for request in draft.given.live.others:
            yield request
            if not draft.given.is_overdue(request) and not request.num_preemptions:
                return
