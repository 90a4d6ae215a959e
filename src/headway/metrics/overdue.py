"""Who is overdue right now: live requests beyond the due time of a promise, for people to see."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from typing import Any

from headway.metrics.request_lateness import LiveLateness

MOST_SHOWN = 8


def overdue(live: Iterable[LiveLateness], at_s: float) -> tuple[int, list[dict[str, Any]]]:
    """Return how many requests are overdue, and the most overdue of them as JSON's types.

    Overdue is who has no first token after ``ttft_s``, waits longer than ``tbt_s`` for the next
    one (or the longest pause, where no gap is promised), or is older than ``jct_s``; of several,
    the due time that passed first counts. What was late and has come is not, nor is a mean per
    token, which later tokens can mend: that is told when the request ends. No text of a prompt is
    in it.

    Returns:
        A number, and at most :data:`MOST_SHOWN` rows, the most overdue first: ``id``, ``class``,
        ``breaks`` (``ttft``, ``tbt``, ``pause`` or ``jct``), ``late_s`` beyond that promise,
        ``stage`` and ``lived_s`` since the arrival.
    """
    found: list[tuple[float, str, str, LiveLateness]] = []
    for one in live:
        slo, late_s, breaks = one.slo, 0.0, ""
        last_s = one.last_token_at_s
        if last_s is None:
            if slo.ttft_s is not None:
                late_s, breaks = at_s - one.arrived_at_s - slo.ttft_s, "ttft"
        elif one.mark is None:  # In step, its last token is new.
            breaks = "pause" if slo.tbt_s is None else "tbt"
            late_s = at_s - last_s - slo.least_late_s
        if slo.jct_s is not None and at_s - one.arrived_at_s - slo.jct_s > late_s:
            late_s, breaks = at_s - one.arrived_at_s - slo.jct_s, "jct"
        if late_s > 0:
            found.append((late_s, one.request_id, breaks, one))
    return len(found), [
        {
            "id": request_id,
            "class": one.slo.class_name,
            "breaks": breaks,
            "late_s": late_s,
            "stage": one.stage.value,
            "lived_s": at_s - one.arrived_at_s,
        }
        for late_s, request_id, breaks, one in heapq.nlargest(MOST_SHOWN, found)
    ]
