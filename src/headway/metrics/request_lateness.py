"""One request as the book of lateness follows it, and its lateness at its end. Spans in seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from headway.metrics.causes import Split
from headway.metrics.tally import ClassTally
from headway.slo import Slo


class Stage(Enum):
    """What a request is doing."""

    QUEUED = "queued"
    PREFILL = "prefill"
    DECODE = "decode"
    PREEMPTED = "preempted"


@dataclass(slots=True)
class Mark:
    """A reading of the clocks when a request fell in step with the others."""

    at_s: float
    run_s: float
    beyond_s: float
    num_late: int
    late_s: tuple[float, float, float]


@dataclass(slots=True)
class InStep:
    """Decodes of one class and one promised gap that get a token every step.

    ``late_s`` sums, over their late gaps, the seconds above the promise: in the step itself,
    in what of the step was beyond its plan, and between the steps.
    """

    tally: ClassTally
    tbt_s: float
    count: int = 0
    num_late: int = 0
    late_s: tuple[float, float, float] = (0.0, 0.0, 0.0)


@dataclass(slots=True)
class LiveLateness:
    """One live request: its stage, and its seconds by cause.

    ``open_s`` are the seconds since the last token (or the arrival) up to ``since_s``;
    ``spent_s`` all seconds before that. ``tbt_late_s`` holds what late gaps cost, which counts
    only when the gap promise as a whole is broken. ``lost_to`` is the cause a pause is charged to
    while the request is preempted: ``swap`` when its KV was kept on the host.
    """

    request_id: str
    slo: Slo
    tally: ClassTally
    arrived_at_s: float
    num_prompt_tokens: int
    since_s: float
    predicted_output_tokens: int = 0
    stage: Stage = Stage.QUEUED
    is_running: bool = False
    num_preemptions: int = 0
    lost_to: str = "preemption"
    beyond_at_start_s: float = 0.0
    run_at_lag_s: float = 0.0
    first_start_at_s: float | None = None
    first_token_at_s: float | None = None
    last_token_at_s: float | None = None
    num_late_gaps: int = 0
    open_s: Split = field(default_factory=dict)
    spent_s: Split = field(default_factory=dict)
    ttft_late_s: Split = field(default_factory=dict)
    tbt_late_s: Split = field(default_factory=dict)
    group: InStep | None = None
    mark: Mark | None = None


@dataclass(frozen=True, slots=True)
class Lateness:
    """How a request ended up against its promise; ``late_s`` by cause adds up to its lateness."""

    attained: bool
    ttft_s: float | None
    jct_s: float | None
    num_late_gaps: int
    num_gaps: int
    late_s: Mapping[str, float]

    @property
    def total_late_s(self) -> float:
        """Seconds late, all broken promises of the request together."""
        return math.fsum(self.late_s.values())
