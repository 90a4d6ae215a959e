"""One request as the book of lateness follows it, and its lateness at its end. Spans in seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

from headway.metrics.causes import CAUSES, Split, add, charge
from headway.metrics.in_step import InStep, Mark
from headway.metrics.tally import ClassTally
from headway.metrics.tenant_counts import TenantTally
from headway.request import GAPS_KEPT_PERCENT
from headway.slo import Slo


class Stage(Enum):
    """What a request is doing."""

    QUEUED = "queued"
    PREFILL = "prefill"
    DECODE = "decode"
    PREEMPTED = "preempted"


@dataclass(slots=True)
class LiveLateness:
    """One live request: its stage, and its seconds by cause.

    ``open_s`` are the seconds since the last token (or the arrival) up to ``since_s``;
    ``spent_s`` all seconds before that, ``first_spent_s`` those before the first token.
    ``tbt_late_s`` holds what late gaps cost, which counts only when fewer than 99 % of them are
    kept; ``pause_late_s`` what pauses cost, which counts when only they broke the promise.
    ``longest_gap_s`` leaves out what it shares with others while in step. ``lost_to`` is the cause
    a pause is charged to while the request is preempted: ``swap`` when its KV was kept on the host.
    ``elsewhere_s`` passed before it reached this server.
    ``payer`` counts what its tenant gets; ``None`` where no tenant is known of.
    """

    request_id: str
    slo: Slo
    tally: ClassTally
    arrived_at_s: float
    num_prompt_tokens: int
    since_s: float
    predicted_output_tokens: int = 0
    elsewhere_s: float = 0.0
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
    longest_gap_s: float = 0.0
    open_s: Split = field(default_factory=dict)
    spent_s: Split = field(default_factory=dict)
    ttft_late_s: Split = field(default_factory=dict)
    tbt_late_s: Split = field(default_factory=dict)
    pause_late_s: Split = field(default_factory=dict)
    first_spent_s: Split = field(default_factory=dict)
    group: InStep | None = None
    mark: Mark | None = None
    payer: TenantTally | None = None


@dataclass(frozen=True, slots=True)
class Lateness:
    """How a request ended up against its promise; ``late_s`` by cause adds up to its lateness.

    ``broke`` says what of the promise time broke, in the names of ``tally.PROMISES``;
    ``longest_gap_s`` is ``None`` without a gap. Of an answer that was cut off, its end stands in
    for the next token.
    """

    attained: bool
    broke: tuple[str, ...]
    ttft_s: float | None
    jct_s: float | None
    num_late_gaps: int
    num_gaps: int
    longest_gap_s: float | None
    tpot_s: float | None
    late_s: Mapping[str, float]

    @property
    def total_late_s(self) -> float:
        """Seconds late, all broken promises of the request together."""
        return math.fsum(self.late_s.values())


def judged(live: LiveLateness, num_gaps: int, *, ended_well: bool) -> Lateness:
    """Return how a request ended up that has ended, and is out of step.

    Args:
        num_gaps: Its tokens after the first, and the end of one that was cut off.
        ended_well: Its answer came to its natural end.
    """
    slo, first_s, last_s = live.slo, live.first_token_at_s, live.last_token_at_s
    late_s = dict.fromkeys(CAUSES, 0.0)
    broke: list[str] = []
    if live.ttft_late_s:
        broke.append("ttft")
        add(late_s, live.ttft_late_s)
    kept, is_frozen = num_gaps - live.num_late_gaps, live.longest_gap_s > slo.longest_pause_s
    if slo.tbt_s is not None and 100 * kept < GAPS_KEPT_PERCENT * num_gaps:
        broke.append("tbt")
        add(late_s, live.tbt_late_s)
    elif is_frozen:
        add(late_s, live.pause_late_s)
    if is_frozen:
        broke.append("pause")
    tpot_s = None
    if first_s is not None and last_s is not None and num_gaps:
        tpot_s = (last_s - first_s) / num_gaps
        if slo.tpot_s is not None and tpot_s > slo.tpot_s:
            broke.append("tpot")
            since_s = {c: s - live.first_spent_s.get(c, 0.0) for c, s in live.spent_s.items()}
            charge(late_s, since_s, num_gaps * (tpot_s - slo.tpot_s))
    lived_s = 0.0 if last_s is None else last_s - live.arrived_at_s
    if slo.jct_s is not None and lived_s > slo.jct_s:
        broke.append("jct")
        charge(late_s, live.spent_s, lived_s - slo.jct_s)
    return Lateness(
        attained=ended_well and first_s is not None and not broke,
        broke=tuple(broke),
        ttft_s=None if first_s is None else first_s - live.arrived_at_s,
        jct_s=None if last_s is None else last_s - live.arrived_at_s,
        num_late_gaps=live.num_late_gaps,
        num_gaps=num_gaps,
        longest_gap_s=live.longest_gap_s if num_gaps else None,
        tpot_s=tpot_s,
        late_s=late_s,
    )
