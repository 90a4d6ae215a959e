"""A plan in the making for tests of parts: what it goes by is named where it matters."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from headway.latency.online import OnlineModel
from headway.policy.draft import Draft
from headway.policy.inputs import Inputs
from headway.policy.live_requests import LiveRequests
from headway.policy.planner import inputs_of
from headway.policy.prices import GapPrices
from headway.policy.scheduler import Scheduler
from headway.policy.swap_choice import AlwaysRecompute
from headway.policy.view import EngineView

GIVEN = {f.name for f in fields(Inputs)}


def draft_of(live: LiveRequests, view: EngineView, now_s: float = 0.0, **named: Any) -> Draft:
    """Return a new draft; *named* are attributes of it or of its inputs."""
    defaults = {"ref_s": now_s, "step": 0, "step_s": 0.05, "latency": OnlineModel()}
    given = {**defaults, "price": GapPrices()}
    given |= {name: value for name, value in named.items() if name in GIVEN}
    draft = Draft(Inputs(view=view, now_s=now_s, live=live, **given), AlwaysRecompute())
    for name in named.keys() - GIVEN:
        setattr(draft, name, named[name])
    return draft


def draft_for(core: Scheduler, view: EngineView, now_s: float) -> Draft:
    """Return the draft that *core* would begin its plan with."""
    return Draft(inputs_of(core.known, view, now_s), core.planner.swap)


def regive(draft: Draft, **given: Any) -> None:
    """Change what a draft goes by."""
    draft.given = replace(draft.given, **given)
