"""One scenario served by stock vLLM and by Headway, and what both did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any

from feature_lab import FeatureRun
from harm_features import engine_of, extras_of
from harm_scenarios import H100, Scenario
from hypothesis import reject

from headway import registry
from headway.engines.sim.run import SimRun
from headway.engines.virtual import Outcome, VirtualEngine
from headway.engines.vllm.model_roofline import roofline
from headway.latency.online import OnlineModel
from headway.latency.truth import Truth

MOST_STEPS = 30_000
"""Of one run; more is a server that stands still."""


@dataclass
class Pair:
    """Both runs of a scenario."""

    scenario: Scenario
    stock: Mapping[str, Outcome]
    ours: Mapping[str, Outcome]
    stock_run: Any
    our_run: Any

    @property
    def names(self) -> list[str]:
        """The scenario's own requests, by arrival; the traffic before is not among them."""
        return [name for name in self.stock if name.startswith("r")]

    def step_around_s(self, name: str) -> float:
        """Return the longest step of stock's since a server was last idle before a request ended.

        Whoever is a step later may keep the next a step longer, so neighbours' steps count too.
        """
        theirs, ours = self.stock[name], self.ours[name]
        from_s = theirs.call.arrived_at_s
        for before in reversed(self.names[: self.names.index(name)]):
            ended_s = max(self.stock[before].ended_at_s, self.ours[before].ended_at_s)
            if ended_s < from_s:
                break
            from_s = self.stock[before].call.arrived_at_s
        return self.longest_step_s(from_s, max(theirs.ended_at_s, ours.ended_at_s))

    def longest_step_s(self, from_s: float, to_s: float) -> float:
        """Return the longest step of stock's that runs in a span."""
        rows = self.stock_run.rows
        around = (r.ends_s - r.begins_s for r in rows if r.ends_s >= from_s and r.begins_s <= to_s)
        return max(around, default=0.0)


def serve(lab: Any, scenario: Scenario) -> Pair:
    """Serve a scenario twice; nothing hangs that does not on stock."""
    engine = {
        "num_blocks": scenario.num_blocks + 1,  # vLLM keeps one as its null block.
        "max_num_batched_tokens": scenario.budget,
        "max_num_seqs": scenario.max_num_seqs,
        "asynchronous": scenario.asynchronous,
        "prefix_caching": scenario.caching,
        **(engine_of(scenario.features) if scenario.features is not None else {}),
    }
    truth = Truth(H100, scale=scenario.scale)
    calls = scenario.calls()
    extras = extras_of(scenario)
    stock = FeatureRun(lab.Engine(**engine), truth, extras, keep_steps=True)
    try:
        served = stock.run(calls, MOST_STEPS)
    except RuntimeError:
        reject()  # Stock stands still: with a cache this small, nobody it admitted can go on.
    if scenario.on_sim:
        core = registry.build(
            **{"name": "headway", **_core_settings(scenario)},
            latency=OnlineModel(roofline(stock.scheduler.vllm_config)),
        )
        ours = SimRun(VirtualEngine(**{**engine, "num_blocks": scenario.num_blocks}), truth, core)
        bound(core)
        return Pair(scenario, served, ours.run(calls), stock, ours)
    settings = scenario.headway()
    ours = FeatureRun(lab.Engine(**engine, headway=settings), truth, extras, keep_steps=True)
    outcomes = ours.run(calls, MOST_STEPS)
    lab.is_clean(ours)
    return Pair(scenario, served, outcomes, stock, ours)


def bound(core: Any) -> None:
    """Make a core plan no more than :data:`MOST_STEPS`: our own engine would go on for ever."""
    plan, numbers = core.plan, count()

    def bounded(*args: Any) -> Any:
        assert next(numbers) < MOST_STEPS, f"still {core.live.requests}"
        return plan(*args)

    core.plan = bounded


def _core_settings(scenario: Scenario) -> dict[str, Any]:
    settings = scenario.headway()
    return {"overload": settings["overload"], "options": settings.get("options")}
