"""What a Headway server counts of its own steps, between two looks at its ``/metrics``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from headway.bench.access import Access, start_of
from headway.bench.probe import MAX_BODY_BYTES, PROBE_TIMEOUT_S
from headway.metrics.tally import RATIO_BOUNDS, quantile

KINDS = ("swap", "recompute")
ERRORS = (0.05, 0.1, 0.2, 0.3, 0.5)
"""Relative errors that the buckets of ``headway_step_prediction_ratio`` can tell apart."""


@dataclass(frozen=True, slots=True)
class Counts:
    """Samples by name and by the label that tells them apart here, summed over the others."""

    values: Mapping[tuple[str, str], float] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> Counts:
        """Read Prometheus' text format; what is none has no counts."""
        values: dict[tuple[str, str], float] = {}
        try:
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    labels = sample.labels
                    key = (sample.name, labels.get("le") or labels.get("kind") or "")
                    values[key] = values.get(key, 0.0) + sample.value
        except ValueError:
            return cls()
        return cls(values)

    def since(self, before: Counts) -> Counts:
        """Return what was counted after *before*."""
        return Counts({key: v - before.values.get(key, 0.0) for key, v in self.values.items()})

    @property
    def are_headways(self) -> bool:
        """Whether the server shows Headway's metrics."""
        return ("headway_steps_aside_total", "") in self.values

    def total(self, name: str) -> float:
        """Return a count, 0 where there is none."""
        return self.values.get((name, ""), 0.0)

    def preempted(self) -> dict[str, int]:
        """Return how many requests lost their place, by what became of their KV."""
        values = self.values
        return {kind: round(values.get(("headway_preemptions_total", kind), 0.0)) for kind in KINDS}


@dataclass(frozen=True, slots=True)
class StepFigures:
    """How well the steps were foretold, and what planning them took.

    Attributes:
        num_steps: Steps that had a prediction.
        median_ratio: Seconds taken over seconds predicted.
        within: Share of steps by relative error.
        num_bounded: Steps promised not to take longer than a bound.
        beyond_share: Of those, the share that did.
        plan_s: Mean seconds of a plan.
        plan_share: Seconds of all plans over the seconds of all steps.
    """

    num_steps: int
    median_ratio: float
    within: Mapping[float, float]
    num_bounded: int
    beyond_share: float
    plan_s: float
    plan_share: float


def step_figures(counts: Counts) -> StepFigures | None:
    """Return the figures of the steps counted, ``None`` where there are none."""
    ratio = "headway_step_prediction_ratio"
    upto = [counts.values.get((f"{ratio}_bucket", f"{b:g}"), 0.0) for b in RATIO_BOUNDS]
    num_steps, step_s = counts.total(f"{ratio}_count"), counts.total("headway_step_seconds_sum")
    num_plans = counts.total("headway_plan_seconds_count")
    if num_steps <= 0 or step_s <= 0 or num_plans <= 0:
        return None
    per_bucket = [b - a for a, b in zip([0.0, *upto], [*upto, num_steps], strict=True)]
    at = dict(zip((f"{b:g}" for b in RATIO_BOUNDS), upto, strict=True))
    within = {e: (at[f"{1 + e:g}"] - at[f"{1 - e:g}"]) / num_steps for e in ERRORS}
    bounded = counts.total("headway_steps_bounded_total")
    plan_s = counts.total("headway_plan_seconds_sum")
    return StepFigures(
        round(num_steps),
        quantile(RATIO_BOUNDS, per_bucket, 0.5) or 0.0,
        within,
        round(bounded),
        counts.total("headway_steps_beyond_bound_total") / bounded if bounded else 0.0,
        plan_s / num_plans,
        plan_s / step_s,
    )


async def look(url: str, access: Access) -> Counts:
    """Return what the server counts now; nothing where it shows no metrics."""
    return Counts.parse(await _text(f"{url}/metrics", access))


async def features(url: str, access: Access) -> dict[str, Any]:
    """Return what the server tells of its engine at ``/headway/state``; empty where it does not."""
    try:
        found = json.loads(await _text(f"{url}/headway/state", access)).get("features")
    except (ValueError, AttributeError):
        return {}
    return found if isinstance(found, dict) else {}


async def _text(address: str, access: Access) -> str:
    try:
        async with access.session(PROBE_TIMEOUT_S) as session, session.get(address) as response:
            text = await start_of(response, MAX_BODY_BYTES)
            return text if response.status == 200 else ""
    except (aiohttp.ClientError, OSError):
        return ""
