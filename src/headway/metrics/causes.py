"""What a late request's seconds are charged to.

**What is late.** Each broken promise of a request has late spans: arrival to first token when it
exceeds ``ttft_s``; each gap above ``tbt_s`` when the gap promise as a whole is broken (fewer
than 99 % of the gaps kept); arrival to last token when it exceeds ``jct_s``. A span is late
by its length less the promise. Promises are counted one by one: a slow first token can also be
part of a late job, and is then in both.

**Without an end.** Of a request that was cut off (its client hung up, the engine failed, or it
ended without any token) the end stands in for the token that never came: who gives up after
60 s of a promised second was 59 s late. Who was refused, or rejected by a server, never waited
for a token and has no seconds.

**Whose fault.** Every instant of a late span belongs to exactly one cause (:data:`CAUSES`), by
what the request and the engine did then. The span's lateness is charged to the causes in
proportion to the seconds each took of it. Rejected: charging what happened after the due time
only, which blames the prompt for the wait before it; an order of blame, which hides the choice.

**Which way it errs.** A wait counts as ``kv_wait`` while fewer KV tokens are free than its prompt
has; a policy that waits for *reserved* room is charged ``queueing``. Everything from a preemption
to the next decode is ``preemption``, the prompt's second computation included, or ``swap`` when
the host kept its KV, the wait for its turn included. A preemption counts from the end of the last
step, not from the instant of the decision.

The rule is carried out in :mod:`headway.metrics.lateness_book`, while requests run;
:mod:`headway.metrics.lateness` tells it of runs that are over.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

CAUSES: Mapping[str, str] = {
    "elsewhere": "had not reached this server yet (headway serve --request-start)",
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

Split = dict[str, float]
"""Seconds by cause."""


def add(into: Split, seconds: Mapping[str, float], factor: float = 1.0) -> None:
    """Add seconds by cause, times *factor*, to others."""
    for cause, value in seconds.items():
        if value:
            into[cause] = into.get(cause, 0.0) + factor * value


def charge(into: Split, seconds: Mapping[str, float], late_s: float) -> None:
    """Charge lateness to causes in proportion to the seconds each took."""
    total_s = math.fsum(seconds.values())
    if total_s > 0:
        add(into, seconds, late_s / total_s)
    else:
        add(into, {"other": late_s})
