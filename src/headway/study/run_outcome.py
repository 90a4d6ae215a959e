"""What an engine hands back to a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from headway.engines.sim.fleet import FleetResult
from headway.engines.virtual import Outcome, StepRow
from headway.metrics.deciles import DecileRow


@dataclass(slots=True)
class RunOutcome:
    """Outcomes by request, the steps where they were kept, and what the run cost.

    ``num_asides`` counts steps that the engine decided alone; ``None`` where none can be.
    ``chances`` were told of promises, by request; ``calibration`` compares them with what was kept.
    ``fleet`` has what each server did, where they were several.
    """

    outcomes: Mapping[str, Outcome]
    rows: Sequence[StepRow]
    capacity_tokens: int
    num_recomputed: int
    num_swapped: int
    plan_us: Mapping[str, float | None]
    num_asides: int | None = None
    chances: Mapping[str, float] = field(default_factory=dict)
    calibration: Sequence[DecileRow] = ()
    fleet: FleetResult | None = None


def quantiles_us(plan_s: Sequence[float]) -> dict[str, float | None]:
    """Return median and 99th percentile in microseconds; ``None`` without a plan."""
    if not len(plan_s):
        return {"p50": None, "p99": None}
    p50, p99 = np.percentile(plan_s, [50, 99]) * 1e6
    return {"p50": round(float(p50), 1), "p99": round(float(p99), 1)}
