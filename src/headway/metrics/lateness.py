"""Where lateness came from in a run that is over: told to the book of lateness as it happened.

What is charged to what, :mod:`headway.metrics.causes` says. Of a kept run free KV is what a step
left, not what was free when it was planned; so a wait may be ``kv_wait`` here that a live page
calls ``queueing``. Without a timeline (a fleet's runs) a request's own tokens are its steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from headway.metrics.causes import CAUSES
from headway.metrics.kept import LOST, KeptRequest, KeptRun, Timeline
from headway.metrics.lateness_book import LatenessBook
from headway.metrics.request_lateness import Lateness
from headway.metrics.tally import Tallies

SAME_INSTANT_S = 1e-5
"""A token belongs to the step that ended when it came; files round to a microsecond."""

PLENTY = 2**62
"""Free tokens where the KV cache is not known."""


@dataclass(slots=True)
class ClassLateness:
    """The lateness of all requests of a class.

    ``num_unanswered`` broke their promise with no late span to measure: refused, or cut off
    before anything was late. They have no seconds and are in no cause.
    """

    num_requests: int = 0
    num_late: int = 0
    num_unanswered: int = 0
    total_s: float = 0.0
    by_cause_s: dict[str, float] = field(default_factory=lambda: dict.fromkeys(CAUSES, 0.0))


def of_run(kept: KeptRun) -> dict[str, Lateness]:
    """Return the lateness of each request of a run, by id."""
    return by_request(kept.requests, kept.timeline)


def by_class(
    requests: Iterable[KeptRequest], found: Mapping[str, Lateness]
) -> dict[str, ClassLateness]:
    """Return the lateness of *requests* by class, classes in the order they first arrive."""
    classes: dict[str, ClassLateness] = {}
    for request in requests:
        of_class = classes.setdefault(request.slo.class_name, ClassLateness())
        of_class.num_requests += 1
        if request.attained:
            continue
        late = found[request.id]
        if not late.total_late_s:
            of_class.num_unanswered += 1
            continue
        of_class.num_late += 1
        of_class.total_s += late.total_late_s
        for cause, seconds in late.late_s.items():
            of_class.by_cause_s[cause] += seconds
    return classes


def by_request(
    requests: Sequence[KeptRequest], timeline: Timeline | None = None
) -> dict[str, Lateness]:
    """Return the lateness of each of *requests* by id; see :func:`of_run`."""
    if timeline is not None and len(timeline):
        return _told(requests, _steps_of(timeline))
    found: dict[str, Lateness] = {}
    for request in requests:
        found |= _told([request], _own_steps(request))
    return found


class _Step(NamedTuple):
    begins_s: float
    ends_s: float
    planned_s: float = math.inf
    free_tokens: float = PLENTY


def _steps_of(timeline: Timeline) -> list[_Step]:
    free = np.minimum(timeline.free_tokens, PLENTY)
    columns = (timeline.begins_s, timeline.ends_s, timeline.planned_s, free)
    return [_Step(*map(float, row)) for row in zip(*columns, strict=True)]


def _own_steps(request: KeptRequest) -> list[_Step]:
    """Return a step for each token: from the one before, or from where its prompt was begun."""
    begun_s = [at_s for at_s, phase in request.phases if phase == "prefill"]
    steps: list[_Step] = []
    for before_s, at_s in pairwise((request.arrived_at_s, *request.emitted_at_s)):
        steps.append(_Step(max([before_s, *(b for b in begun_s if b < at_s)]), at_s))
    return steps


_DONE, _ARRIVED, _ENDED, _LOST, _BEGUN = range(5)
"""What happens at one instant happens in this order."""


def _told(requests: Sequence[KeptRequest], steps: Sequence[_Step]) -> dict[str, Lateness]:
    """Tell a book everything in order; return what it found of each request, by id."""
    book = LatenessBook(Tallies())
    begins_s, ends_s = (np.array([s[i] for s in steps]) for i in (0, 1))
    admitted: list[dict[str, int]] = [{} for _ in steps]
    emitted: list[dict[str, int]] = [{} for _ in steps]
    order: list[tuple[float, int, int]] = []
    for number, step in enumerate(steps):
        order += ((step.begins_s, _BEGUN, number), (step.ends_s, _DONE, number))
    lost: list[tuple[str, str]] = []
    for number, request in enumerate(requests):
        order += ((request.arrived_at_s, _ARRIVED, number), (_end_s(request), _ENDED, number))
        begun_s = [at_s for at_s, phase in request.phases if phase == "prefill"]
        for where, instants in ((admitted, begun_s), (emitted, request.emitted_at_s)):
            if not steps:
                break  # It was begun, and nothing came of it.
            edges = begins_s if where is admitted else ends_s
            for index in np.searchsorted(edges, np.array(instants) - SAME_INSTANT_S):
                where[min(int(index), len(steps) - 1)][request.id] = 1
        for at_s, phase in request.phases:
            if phase in LOST:
                order.append((at_s, _LOST, len(lost)))
                lost.append((request.id, phase))
    found: dict[str, Lateness] = {}
    for at_s, kind, number in sorted(order):
        if kind == _BEGUN:
            book.scheduled(at_s, admitted[number], steps[number].planned_s)
        elif kind == _DONE:
            book.done(at_s, emitted[number], int(steps[number].free_tokens))
        elif kind == _LOST:
            request_id, phase = lost[number]
            book.preempted(request_id, at_s, swapped=phase == "swapped")
        elif kind == _ARRIVED:
            one = requests[number]
            book.arrived(one.id, one.slo, one.arrived_at_s, one.num_prompt_tokens)
        else:
            found[requests[number].id] = _ended(book, requests[number], at_s)
    return found


def _end_s(request: KeptRequest) -> float:
    """Return when a request left; where that is not known, when it was last seen."""
    return request.last_seen_at_s if request.ended_at_s is None else request.ended_at_s


def _ended(book: LatenessBook, request: KeptRequest, at_s: float) -> Lateness:
    return book.finished(
        request.id,
        at_s,
        len(request.emitted_at_s),
        ended_well=request.outcome == "finished",
        # Whose end is not known waited for nothing that could be measured.
        was_refused=request.outcome == "refused" or request.ended_at_s is None,
    )
