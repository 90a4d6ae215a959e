"""Where lateness came from: the seconds of a broken promise, split by cause.

**What is late.** Each broken promise of a request has late spans: arrival to first token when it
exceeds ``ttft_s``; each gap above ``tbt_s`` when the gap promise as a whole is broken (fewer
than 99 % of the gaps kept); arrival to last token when it exceeds ``jct_s``. A span is late
by its length less the promise. Promises are counted one by one: a slow first token can also be
part of a late job, and is then in both.

**Without an end.** Of a request that was cut off (its client hung up, the engine failed, or it
ended without any token) the end stands in for the token that never came: who gives up after
60 s of a promised second was 59 s late. Who was refused never waited for a token and has no
seconds. The online ledger (:mod:`headway.metrics.story`) knows rejected requests too and treats
them like refused ones; here they are ``failed``. Runs kept without ``ended_at_s`` (older ones)
know no such spans.

**Whose fault.** Every instant of a late span belongs to exactly one cause (:data:`CAUSES`), by
what the request and the engine did then. The span's lateness is charged to the causes in
proportion to the seconds each took of it. Rejected: charging what happened after the due time
only, which blames the prompt for the wait before it; an order of blame, which hides the choice.

**Which way it errs.** A wait counts as ``kv_wait`` while fewer KV tokens are free than its prompt
has; a policy that waits for *reserved* room is charged ``queueing``. Everything from a preemption
to the next decode is ``preemption``, the prompt's second computation included, or ``swap`` when
the host kept its KV, the wait for its turn included. Without a timeline (live runs) waits are
``queueing`` and decoding is ``long_step``.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from headway.metrics import define
from headway.metrics.kept import LOST, KeptRequest, KeptRun, Timeline
from headway.slo import Slo

CAUSES: Mapping[str, str] = {
    "queueing": "waited for its turn although its prompt would have fitted into free KV",
    "kv_wait": "waited while less KV was free than its prompt needs",
    "prefill": "its prompt was being computed, in chunks and beside others",
    "preemption": "had lost its place and its KV, until it decoded again",
    "swap": "had lost its place, its KV kept on the host, until it decoded again",
    "long_step": "decoding, in steps that brought its tokens and kept to their plan",
    "skipped": "decoding, while steps passed that brought it no token",
    "model_error": "running, while a step took longer than it was promised to take",
    "other": "decoding, while the engine ran no step",
}

SAME_INSTANT_S = 1e-5
"""A token belongs to the step that ended when it came; files round to a microsecond."""


class LateSpan(NamedTuple):
    """A span that took *late_s* longer than promised; *promise* is ttft, tbt or jct."""

    begins_s: float
    ends_s: float
    late_s: float
    promise: str


@dataclass(frozen=True, slots=True)
class Lateness:
    """The lateness of one request: ``total_s`` is the sum of ``by_cause_s``."""

    total_s: float
    by_cause_s: Mapping[str, float]


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


def late_spans(slo: Slo, arrived_at_s: float, emitted_at_s: tuple[float, ...]) -> list[LateSpan]:
    """Return every span by which a promise was broken; none without a token."""
    if not emitted_at_s:
        return []
    first_s, last_s = emitted_at_s[0], emitted_at_s[-1]
    spans = []
    if slo.ttft_s is not None:
        spans.append(LateSpan(arrived_at_s, first_s, first_s - arrived_at_s - slo.ttft_s, "ttft"))
    if slo.tbt_s is not None and not define.tbt_attained(emitted_at_s, slo.tbt_s):
        spans += [
            LateSpan(before_s, after_s, after_s - before_s - slo.tbt_s, "tbt")
            for before_s, after_s in pairwise(emitted_at_s)
        ]
    if slo.jct_s is not None:
        spans.append(LateSpan(arrived_at_s, last_s, last_s - arrived_at_s - slo.jct_s, "jct"))
    return [span for span in spans if span.late_s > 0]


def heard_at_s(request: KeptRequest) -> tuple[float, ...]:
    """Return when its tokens came; the end of one that was cut off stands in for the next."""
    ended_well = request.outcome == "finished" and bool(request.emitted_at_s)
    if ended_well or request.outcome == "refused" or request.ended_at_s is None:
        return request.emitted_at_s
    return (*request.emitted_at_s, request.ended_at_s)


def lateness_of(request: KeptRequest, timeline: Timeline | None = None) -> Lateness:
    """Return how late a request was and why; see the module for the rule."""
    spent = dict.fromkeys(CAUSES, 0.0)
    spans = late_spans(request.slo, request.arrived_at_s, heard_at_s(request))
    for span in spans:
        causes = seconds_by_cause(request, span.begins_s, span.ends_s, timeline)
        share = span.late_s / math.fsum(causes.values())
        for cause, seconds in causes.items():
            spent[cause] += share * seconds
    return Lateness(math.fsum(span.late_s for span in spans), spent)


def seconds_by_cause(
    request: KeptRequest, begins_s: float, ends_s: float, timeline: Timeline | None = None
) -> dict[str, float]:
    """Return the seconds between two instants of a request's life by cause; they add up."""
    spent = dict.fromkeys(CAUSES, 0.0)
    for from_s, to_s, stage in _stages(request):
        low_s, high_s = max(from_s, begins_s), min(to_s, ends_s)
        if high_s <= low_s:
            continue
        for cause, seconds in _split(request, stage, low_s, high_s, timeline).items():
            spent[cause] += seconds
    return spent


def of_run(kept: KeptRun) -> dict[str, ClassLateness]:
    """Return the lateness of a whole run by class, classes in the order they first arrive."""
    return by_class(kept.requests, kept.timeline)


def by_class(
    requests: Iterable[KeptRequest], timeline: Timeline | None = None
) -> dict[str, ClassLateness]:
    """Return the lateness of *requests* by class; see :func:`of_run`."""
    found: dict[str, ClassLateness] = {}
    for request in requests:
        of_class = found.setdefault(request.slo.class_name, ClassLateness())
        of_class.num_requests += 1
        if request.attained:
            continue
        lateness = lateness_of(request, timeline)
        if not lateness.total_s:
            of_class.num_unanswered += 1
            continue
        of_class.num_late += 1
        of_class.total_s += lateness.total_s
        for cause, seconds in lateness.by_cause_s.items():
            of_class.by_cause_s[cause] += seconds
    return found


def _stages(request: KeptRequest) -> Iterator[tuple[float, float, str]]:
    """Yield (from, to, stage); the first begins at arrival, the last never ends."""
    stages: list[tuple[float, str]] = []
    for at_s, phase in request.phases or ((request.arrived_at_s, "queued"),):
        is_redone = bool(stages) and stages[-1][1] in LOST and phase not in (*LOST, "decode")
        stages.append((at_s, stages[-1][1] if is_redone else phase))
    for index, (at_s, stage) in enumerate(stages):
        next_s = stages[index + 1][0] if index + 1 < len(stages) else math.inf
        yield (at_s if index else min(at_s, request.arrived_at_s)), next_s, stage


def _split(
    request: KeptRequest, stage: str, low_s: float, high_s: float, timeline: Timeline | None
) -> dict[str, float]:
    """Return the seconds of one stage between two instants, by cause."""
    span_s = high_s - low_s
    if stage in LOST:
        return {"swap" if stage == "swapped" else "preemption": span_s}
    if timeline is None or not len(timeline):
        plain = {"queued": "queueing", "prefill": "prefill", "decode": "long_step"}
        return {plain[stage]: span_s}
    steps = _Overlap.of(timeline, low_s, high_s)
    if stage == "queued":
        short = timeline.free_tokens[steps.where] < request.num_prompt_tokens
        kv_wait_s = min(span_s, float(steps.inside_s[short].sum()))
        return {"kv_wait": kv_wait_s, "queueing": span_s - kv_wait_s}
    if stage == "prefill":
        error_s = min(span_s, float(steps.beyond_plan_s.sum()))
        return {"model_error": error_s, "prefill": span_s - error_s}
    return _decode_split(request, span_s, steps, timeline)


def _decode_split(
    request: KeptRequest, span_s: float, steps: _Overlap, timeline: Timeline
) -> dict[str, float]:
    brought = np.array(
        [_token_at(request, float(at_s)) for at_s in timeline.ends_s[steps.where]], dtype=bool
    )
    skipped_s = float(steps.inside_s[~brought].sum())
    error_s = float(steps.beyond_plan_s[brought].sum())
    own_s = float(steps.inside_s[brought].sum())
    return {
        "skipped": skipped_s,
        "model_error": error_s,
        "long_step": own_s - error_s,
        "other": max(0.0, span_s - own_s - skipped_s),
    }


def _token_at(request: KeptRequest, at_s: float) -> bool:
    """Whether a token reached the client at this instant."""
    index = bisect_left(request.emitted_at_s, at_s - SAME_INSTANT_S)
    return (
        index < len(request.emitted_at_s) and request.emitted_at_s[index] <= at_s + SAME_INSTANT_S
    )


class _Overlap(NamedTuple):
    """The steps that touch a span: which, seconds inside it, seconds inside it beyond plan."""

    where: slice
    inside_s: Any
    beyond_plan_s: Any

    @classmethod
    def of(cls, timeline: Timeline, low_s: float, high_s: float) -> _Overlap:
        where = slice(
            int(np.searchsorted(timeline.ends_s, low_s, side="right")),
            int(np.searchsorted(timeline.begins_s, high_s, side="left")),
        )
        begins_s, ends_s = timeline.begins_s[where], timeline.ends_s[where]
        due_s = begins_s + timeline.planned_s[where]
        until_s = np.minimum(ends_s, high_s)
        return cls(
            where,
            np.maximum(until_s - np.maximum(begins_s, low_s), 0.0),
            np.maximum(until_s - np.maximum(due_s, low_s), 0.0),
        )
