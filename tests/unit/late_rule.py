"""The slow twin of the book of lateness: each instant of a finished request asked for its cause."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from headway.metrics import define
from headway.metrics.causes import CAUSES
from headway.metrics.kept import LOST, KeptRequest, Timeline
from headway.slo import Slo

SAME_INSTANT_S = 1e-5
"""A token belongs to the step that ended when it came; files round to a microsecond."""


class LateSpan(NamedTuple):
    """A span that took *late_s* longer than promised; *promise* is what broke."""

    begins_s: float
    ends_s: float
    late_s: float
    promise: str


@dataclass(frozen=True, slots=True)
class Lateness:
    """The lateness of one request: ``total_s`` is the sum of ``by_cause_s``."""

    total_s: float
    by_cause_s: Mapping[str, float]


def late_spans(slo: Slo, arrived_at_s: float, emitted_at_s: tuple[float, ...]) -> list[LateSpan]:
    """Return every span by which a promise was broken; none without a token."""
    if not emitted_at_s:
        return []
    first_s, last_s = emitted_at_s[0], emitted_at_s[-1]
    spans = []
    if slo.ttft_s is not None:
        spans.append(LateSpan(arrived_at_s, first_s, first_s - arrived_at_s - slo.ttft_s, "ttft"))
    gap_s, what = slo.longest_pause_s, "pause"
    if slo.tbt_s is not None and not define.tbt_attained_plain(emitted_at_s, slo.tbt_s):
        gap_s, what = slo.tbt_s, "tbt"
    spans += [
        LateSpan(before_s, after_s, after_s - before_s - gap_s, what)
        for before_s, after_s in pairwise(emitted_at_s)
    ]
    if slo.tpot_s is not None and len(emitted_at_s) > 1:
        late_s = last_s - first_s - slo.tpot_s * (len(emitted_at_s) - 1)
        spans.append(LateSpan(first_s, last_s, late_s, "tpot"))
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
