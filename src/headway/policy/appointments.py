"""When the refused may come back: appointments, one after the other, and kept when they do.

A forecast cannot keep such a promise: nobody knows when a burst ends or the next begins. The core
can, since it decides who is served. So what a refused request is told is an appointment: work
booked in the future, behind the work booked before it, with most of the machine left to others.
Whoever returns in time counts for more than a newcomer when not all fit
(:data:`WORTH`). See docs/decisions/0006-retry-after.md.
"""

from __future__ import annotations

from collections import deque

from headway.policy.events import Arrived
from headway.request import Request
from headway.slo import Slo

LEAD_S = 30.0
"""Seconds ahead of the first appointment: most bursts are over by then (experiments/retry_after,
with SHARE and WORTH chosen on seeds 0, 1 and 7). Larger: the refused wait for nothing; smaller:
they come back into the burst that refused them."""

SHARE = 1 / 3
"""Share of the engine's time that appointments may book (experiments/retry_after; spacing by how
idle the machine was is worse, docs/decisions/0006). Larger: newcomers find less room; smaller: the
refused wait longer."""

WORTH = 1.5
"""How many newcomers' promises a kept appointment is worth (experiments/retry_after: honouring wins
3 to 11 points of first retries and costs 0.8 to 2.9 kept at once). Larger: appointments hold more
often and fewer promises are kept at once; smaller: the reverse."""

ABOUT_S = 5.0
"""Seconds before and after its time within which an appointment holds: clients wait whole seconds,
and a network and a queue add delay (experiments/retry_after). Larger: similar requests of other
clients take it; smaller: a client that rounds down or is late counts as new."""

MAX_RETRY_AFTER_S = 600.0
"""The most seconds a client is told to stay away; beyond, it is told this and has no appointment.
Few clients wait as long. Larger: waits nobody honours are booked; smaller: fewer of the refused
have an appointment."""

Key = tuple[Slo, int, int]
"""What a returning request is known by: its promise, its prompt's tokens, its bound on the output.
It has a new name, and no client sends anything back. A stranger of the same kind may take the
appointment; one is then kept for another all the same."""


def key_of(request: Request | Arrived) -> Key:
    """Return what a request is known by when it comes back."""
    return (request.slo, request.num_prompt_tokens, request.max_output_tokens)


class Appointments:
    """The book: who is expected when. Instants in seconds of the driver's clock."""

    def __init__(self) -> None:
        self._free_at_s = 0.0
        self._booked: dict[Key, deque[float]] = {}
        self._in_order: deque[tuple[float, Key]] = deque()

    def __len__(self) -> int:
        """Return how many appointments are neither kept nor forgotten."""
        return sum(len(instants) for instants in self._booked.values())

    def book(self, request: Request, work_s: float, backlog_s: float, now_s: float) -> float:
        """Return the seconds after which *request* should be sent again, and expect it then.

        Who may still be served by another server takes the room of an appointment as far as this
        is likely to be its last try, and none where it is not: it would seldom come.

        Args:
            work_s: Seconds of the engine it takes, a step's at least: so the book stays short.
            backlog_s: Seconds of the engine that wait before it; no appointment lies within them.

        Returns:
            :data:`LEAD_S` to :data:`MAX_RETRY_AFTER_S`.
        """
        self._forget(now_s)
        at_s = max(now_s + max(LEAD_S, backlog_s), self._free_at_s)
        if at_s - now_s > MAX_RETRY_AFTER_S:
            return MAX_RETRY_AFTER_S
        if request.last_try <= 0.0:
            return at_s - now_s
        self._free_at_s = at_s + request.last_try * work_s / SHARE
        key = key_of(request)
        self._booked.setdefault(key, deque()).append(at_s)
        self._in_order.append((at_s, key))
        return at_s - now_s

    def keeps(self, event: Arrived) -> bool:
        """Return whether this arrival is one that was expected now; it is then no longer."""
        self._forget(event.at_s)
        key = key_of(event)
        instants = self._booked.get(key)
        if instants is None or event.arrived_at_s < instants[0] - ABOUT_S:
            return False
        self._drop(key, instants)
        return True

    def _forget(self, now_s: float) -> None:
        """Drop the appointments nobody came to."""
        while self._in_order and self._in_order[0][0] + ABOUT_S < now_s:
            at_s, key = self._in_order.popleft()
            instants = self._booked.get(key)
            if instants is not None and instants[0] == at_s:  # Otherwise it was kept.
                self._drop(key, instants)

    def _drop(self, key: Key, instants: deque[float]) -> None:
        instants.popleft()
        if not instants:
            del self._booked[key]
