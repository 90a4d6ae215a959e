"""The table of live requests, in the orders a plan needs, kept incrementally."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from itertools import takewhile

from sortedcontainers import SortedDict, SortedKeyList

from headway.errors import InvariantError
from headway.latency.model import StepShape
from headway.request import Request, Standing, State


class LiveRequests:
    """Every unfinished request, by phase.

    ``claims`` are waiting requests whose promise may still be kept, by the instant their
    next token is due; ``others`` wait as best effort, by arrival, and hold ``others_work_s``
    seconds of work; ``hindered`` wait for something that no plan can give them. ``prefilling`` and
    ``decoding`` run. ``claim_gaps`` counts decoding claims per promised gap, ``num_unpromised``
    those of all that asked for no promise. ``turns`` are those of ``others`` that have a turn
    (:mod:`headway.policy.turns`), by arrival.
    """

    def __init__(self) -> None:
        self.requests: dict[str, Request] = {}
        self.claims: SortedKeyList = SortedKeyList(key=lambda r: (r.due_at_s, r.order))
        self.others: SortedKeyList = SortedKeyList(key=lambda r: r.order)
        self.others_work_s = 0.0
        self.turns: SortedKeyList = SortedKeyList(key=lambda r: r.order)
        self.hindered: dict[str, Request] = {}
        self.prefilling: dict[str, Request] = {}
        self.decoding: dict[str, Request] = {}
        self.sum_decode_context_tokens = 0
        self.num_unclaimed_decodes = self.num_unpromised = 0
        self.claim_gaps: SortedDict = SortedDict()
        self._num_arrived = 0

    def __len__(self) -> int:
        return len(self.requests)

    @property
    def num_waiting(self) -> int:
        """Requests that could start."""
        return len(self.claims) + len(self.others)

    @property
    def num_running(self) -> int:
        """Requests that hold KV."""
        return len(self.prefilling) + len(self.decoding)

    @property
    def decodes(self) -> StepShape:
        """The step with every decode and no prompt token."""
        return StepShape(0, 0, len(self.decoding), self.sum_decode_context_tokens)

    def running(self) -> Iterator[Request]:
        """Yield running requests, prompts in progress last."""
        yield from self.decoding.values()
        yield from self.prefilling.values()

    def waiting(self) -> Iterator[Request]:
        """Yield those who could start: claims by due time, then best effort by arrival."""
        yield from self.claims
        yield from self.others

    def past_due(self, now_s: float) -> list[Request]:
        """Return the waiting claims whose next token is late already."""
        due = takewhile(lambda r: r.due_at_s < now_s, self.claims)
        # When the last token is due tells only by estimate when the next one is.
        return [r for r in due if r.slo.jct_s is None or r.is_past_due(now_s)]

    def computing_for(self, request: Request) -> Request | None:
        """Return the prompt in progress that computes next what a waiting request lacks next."""
        other = self.prefilling.get(request.computed_by)
        if other is None:
            return None
        is_ahead = request.num_found_tokens <= other.num_computed_tokens
        return other if is_ahead and other.num_computed_tokens < request.num_common_tokens else None

    def shared_tokens(self) -> dict[str, int]:
        """Return, by waiting claim, the tokens that are computed for another claim due before."""
        shared: dict[str, int] = {}
        counted: set[str] = set()
        for request in self.claims if self.prefilling else ():
            other = self.computing_for(request) if request.computed_by else None
            if other is None:
                continue
            is_due_before = other.has_claim and other.due_at_s <= request.due_at_s
            if is_due_before or other.request_id in counted:
                shared[request.request_id] = request.num_common_tokens
            counted.add(other.request_id)
        return shared

    def arrive(self, request: Request) -> None:
        """Take a new request in; its ``due_at_s`` must be set."""
        if request.request_id in self.requests:
            raise InvariantError(f"{request.request_id} arrived twice")
        request.order = self._num_arrived
        self._num_arrived += 1
        self.requests[request.request_id] = request
        self.num_unpromised += not request.slo.is_promise
        self.queue(request)

    def leave(self, request: Request) -> None:
        """A request that neither waits nor runs any more has ended."""
        del self.requests[request.request_id]
        self.num_unpromised -= not request.slo.is_promise

    def queue(self, request: Request) -> None:
        """Put a waiting request in the queue its standing asks for."""
        if request.hindrance:
            self.hindered[request.request_id] = request
        elif request.has_claim:
            self.claims.add(request)
        else:
            self.others.add(request)
            self.others_work_s += request.work_s
            if request.turn_at_s < math.inf:
                self.turns.add(request)

    def unqueue(self, request: Request) -> None:
        """Take a waiting request out of its queue."""
        if request.hindrance:
            del self.hindered[request.request_id]
            return
        if request.has_claim:
            self.claims.remove(request)
            return
        self.others.remove(request)
        if request.turn_at_s < math.inf:
            self.turns.remove(request)
        self.others_work_s = self.others_work_s - request.work_s if self.others else 0.0

    def change_work(self, request: Request, work_s: float) -> None:
        """Set the engine seconds a waiting request will take."""
        if not request.has_claim and not request.hindrance:
            self.others_work_s += work_s - request.work_s
        request.work_s = work_s

    def hinder(self, request: Request, why: str) -> None:
        """Set why a waiting request cannot start; empty when it can."""
        self.unqueue(request)
        request.hindrance = why
        self.queue(request)

    def start_prefill(self, request: Request) -> None:
        """A request began or resumed: its prompt is in progress."""
        self.prefilling[request.request_id] = request

    def start_decode(self, request: Request) -> None:
        """The prompt is complete: one token a step from here on."""
        del self.prefilling[request.request_id]
        self.decoding[request.request_id] = request
        self.sum_decode_context_tokens += request.num_tokens
        self._count_decode(request, 1)

    def stop_running(self, request: Request) -> None:
        """A running request was preempted or finished."""
        if self.prefilling.pop(request.request_id, None) is None:
            del self.decoding[request.request_id]
            self.sum_decode_context_tokens -= request.num_tokens
            self._count_decode(request, -1)

    def change_standing(self, request: Request, standing: Standing) -> None:
        """Move a request to another standing, wherever it is."""
        decoding = request.request_id in self.decoding
        waiting = request.state in (State.WAITING, State.PREEMPTED)
        if decoding:
            self._count_decode(request, -1)
        if waiting:
            self.unqueue(request)
        request.standing = standing
        if decoding:
            self._count_decode(request, 1)
        if waiting:
            self.queue(request)

    def _count_decode(self, request: Request, by: int) -> None:
        if request.standing is not Standing.PROMISED:
            self.num_unclaimed_decodes += by
        elif (gap_s := request.promised_gap_s) is not None:
            count = self.claim_gaps.get(gap_s, 0) + by
            if count:
                self.claim_gaps[gap_s] = count
            else:
                del self.claim_gaps[gap_s]

    def validate(self) -> None:
        """Recompute every derived quantity and compare.

        Raises:
            InvariantError: A request is in no phase or in two, or a count is off.
        """
        waiting = [*self.claims, *self.others, *self.hindered.values()]
        phases = [r.request_id for r in waiting] + [*self.prefilling, *self.decoding]
        if len(phases) != len(set(phases)) or set(phases) != set(self.requests):
            raise InvariantError(f"phases {sorted(phases)} do not partition the live requests")
        for request in waiting:
            if request.state not in (State.WAITING, State.PREEMPTED):
                raise InvariantError(f"{request!r} is queued; {request.tell()}")
        if not all(r.hindrance for r in self.hindered.values()):
            raise InvariantError("a request that could start is not in a queue")
        if not all(r.has_claim for r in self.claims) or any(r.has_claim for r in self.others):
            raise InvariantError("a waiting request is in the queue of another standing")
        if list(self.turns) != [r for r in self.others if r.turn_at_s < math.inf]:
            raise InvariantError(f"{list(self.turns)} are booked to have a turn")
        work_s = sum(r.work_s for r in self.others)
        if abs(work_s - self.others_work_s) > 1e-6 * max(work_s, 1.0):
            raise InvariantError(f"best effort waits for {work_s} s, booked {self.others_work_s}")
        context = sum(r.num_tokens for r in self.decoding.values())
        if context != self.sum_decode_context_tokens:
            raise InvariantError(f"context is {context}, booked {self.sum_decode_context_tokens}")
        claims = [r for r in self.decoding.values() if r.standing is Standing.PROMISED]
        if self.num_unpromised != sum(not r.slo.is_promise for r in self.requests.values()):
            raise InvariantError(f"{self.num_unpromised} are booked to ask for no promise")
        gaps = Counter(r.promised_gap_s for r in claims if r.promised_gap_s is not None)
        unclaimed = len(self.decoding) - len(claims)
        if gaps != dict(self.claim_gaps) or unclaimed != self.num_unclaimed_decodes:
            raise InvariantError(f"claims {gaps}/{unclaimed} are booked {self.claim_gaps}")
