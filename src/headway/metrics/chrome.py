"""A kept run as a Chrome trace: open it in Perfetto or in ``chrome://tracing``.

The JSON form of the trace event format (complete ``X``, counter ``C``, nestable async ``b``,
``n``, ``e`` and metadata ``M`` events); instants there are microseconds.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from headway.errors import UserError
from headway.metrics import lateness
from headway.metrics.kept import KeptRequest, KeptRun, Timeline
from headway.metrics.request_lateness import Lateness
from headway.metrics.tally import promise_of

ENGINE_PID, REQUESTS_PID = 1, 2
STEPS_TID = 1

Event = dict[str, Any]


def chrome_trace(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the trace of a kept run: steps, KV and queue counters, one track a request.

    Raises:
        UserError: *document* is not a kept run.
    """
    kept = KeptRun.parse(document)
    events = [
        _name("process_name", ENGINE_PID, "engine"),
        _name("thread_name", ENGINE_PID, "steps", tid=STEPS_TID),
        _name("process_name", REQUESTS_PID, "requests"),
        *_step_events(kept.timeline),
        *_counters(kept.timeline),
    ]
    found = lateness.of_run(kept)
    for request in kept.requests:
        events.extend(_request_events(request, found[request.id]))
    return {
        "traceEvents": events,
        "displayTimeUnit": "ms",
        "otherData": {key: str(value) for key, value in kept.spec.items()},
    }


def write(document: Mapping[str, Any], path: str | Path) -> int:
    """Write the trace of a kept run, gzipped when *path* ends in ``.gz``; return its events.

    Raises:
        UserError: *document* is not a kept run, or *path* cannot be written.
    """
    trace = chrome_trace(document)
    data = json.dumps(trace, separators=(",", ":"), allow_nan=False).encode()
    path = Path(path)
    try:
        path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    except OSError as error:
        raise UserError(f"Cannot write {path}: {error.strerror}.") from None
    return len(trace["traceEvents"])


def _us(at_s: float) -> float:
    return round(float(at_s) * 1e6, 3)


def _ms(span_s: float) -> float:
    return round(float(span_s) * 1e3, 4)


def _name(kind: str, pid: int, name: str, tid: int = 0) -> Event:
    return {"ph": "M", "name": kind, "pid": pid, "tid": tid, "args": {"name": name}}


def _step_events(timeline: Timeline) -> Iterator[Event]:
    """Yield one slice a step; those beyond their promise say so in their name."""
    for i in range(len(timeline)):
        prefill, decodes = int(timeline.num_prefill_tokens[i]), int(timeline.num_decodes[i])
        is_over = timeline.spans_s[i] > timeline.planned_s[i]
        yield {
            "ph": "X", "cat": "step", "pid": ENGINE_PID, "tid": STEPS_TID,
            "name": f"{prefill}+{decodes}" + (" over" if is_over else ""),
            "ts": _us(timeline.begins_s[i]), "dur": _us(timeline.spans_s[i]),
            "args": {
                "prefill_tokens": prefill,
                "decodes": decodes,
                "took_ms": _ms(timeline.spans_s[i]),
                "predicted_ms": _ms(timeline.predicted_s[i]) or None,
                "promised_ms": _ms(timeline.promised_s[i]) or None,
            },
        }  # fmt: skip


def _counters(timeline: Timeline) -> Iterator[Event]:
    """Yield what the KV cache and the queue looked like at the start of each step."""
    for i in range(len(timeline)):
        at = {"ph": "C", "pid": ENGINE_PID, "ts": _us(timeline.begins_s[i])}
        queue = {"running": timeline.num_running[i], "waiting": timeline.num_waiting[i]}
        kv = {
            "held": timeline.held_tokens[i],
            "reserved": timeline.reserved_tokens[i] - timeline.lent_tokens[i],
            "lent": timeline.lent_tokens[i],
        }
        if timeline.capacity_tokens:
            kv["free"] = timeline.free_tokens[i] - kv["reserved"]
        yield {**at, "name": "requests", "args": {k: int(v) for k, v in queue.items()}}
        yield {**at, "name": "KV tokens", "args": {k: int(v) for k, v in kv.items()}}


def _request_events(request: KeptRequest, found: Lateness) -> Iterator[Event]:
    """Yield a request's slice, its phases inside it, and marks for the tokens that came late."""
    fate = "kept" if request.attained else "broken"
    if request.outcome != "finished":
        fate = request.outcome
    track = {"cat": "request", "pid": REQUESTS_PID, "tid": 0, "id": request.id}
    whole = {**track, "name": f"{request.id} {request.slo.class_name}: {fate}"}
    end_us = _us(request.last_seen_at_s)
    late_s = {} if request.attained else found.late_s
    yield {
        **whole, "ph": "b", "ts": _us(request.arrived_at_s),
        "args": {
            "class": request.slo.class_name,
            "outcome": request.outcome,
            "prompt_tokens": request.num_prompt_tokens,
            "output_tokens": len(request.emitted_at_s),
            "preemptions": request.num_preemptions,
            "promised": promise_of(request.slo),
            "late_ms_by_cause": {name: _ms(span_s) for name, span_s in late_s.items() if span_s},
        },
    }  # fmt: skip
    edges = [*(_us(at_s) for at_s, _ in request.phases), end_us]
    for (_, phase), (begin_us, phase_end_us) in zip(request.phases, pairwise(edges), strict=True):
        yield {**track, "name": phase, "ph": "b", "ts": begin_us}
        yield {**track, "name": phase, "ph": "e", "ts": phase_end_us}
    yield from _marks(request, track)
    yield {**whole, "ph": "e", "ts": end_us}


def _marks(request: KeptRequest, track: Event) -> Iterator[Event]:
    if request.emitted_at_s:
        yield {**track, "name": "first token", "ph": "n", "ts": _us(request.emitted_at_s[0])}
    slo = request.slo
    for before_s, after_s in pairwise(request.emitted_at_s):
        gap_s = after_s - before_s
        if gap_s > slo.least_late_s:
            name = "pause" if gap_s > slo.longest_pause_s else "late token"
            args = {"gap_ms": _ms(gap_s)}
            yield {**track, "name": name, "ph": "n", "ts": _us(after_s), "args": args}
