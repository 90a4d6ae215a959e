"""Engine features for the no-harm test: drawn onto a load, and carried out."""

from __future__ import annotations

import math
from dataclasses import replace
from random import Random
from typing import Any

from fake_connector import TRANSFER
from feature_lab import Extra
from harm_scenarios import BLOCK, Features, Scenario, prompt_ms, scenarios
from hypothesis import strategies as st

GROUPS = (
    ("full", "full"),
    ("full", "sliding:128"),
    ("full", "sliding:1024", "sliding:1024", "sliding:1024"),
    ("full", "local:512"),
    ("full", "state", "state"),
    ("sliding:512",),
)

LONGEST = 32_768
"""Tokens of the longest prompt and output where a step must hold a whole prompt."""

NAMES = ("groups", "num_slots", "grammars", "connector", "num_drafts", "whole")


@st.composite
def featured(draw: st.DrawFn, light: bool = False) -> Scenario:
    """Return a load on a server with one feature or several."""
    scenario = draw(scenarios(light))
    rng = Random(draw(st.integers(0, 2**32 - 1)))
    chosen = set(rng.sample(NAMES, rng.choice((1, 1, 1, 2, 3))))
    groups = rng.choice(GROUPS) if "groups" in chosen else ("full",)
    has_states = "state" in groups  # vLLM caches no prefixes then, and loads none.
    features = Features(
        seed=rng.randrange(2**16),
        groups=groups,
        num_slots=rng.choice((1, 2)) if "num_slots" in chosen else 0,
        grammars="grammars" in chosen,
        connector="connector" in chosen and not has_states,
        num_drafts=rng.choice((1, 3)) if "num_drafts" in chosen else 0,
        whole="whole" in chosen,
    )
    return replace(
        scenario,
        on_sim=False,
        caching=scenario.caching and not has_states,
        asynchronous=scenario.asynchronous and not features.num_drafts,
        budget=LONGEST if features.whole else scenario.budget,
        num_blocks=scenario.num_blocks + _more_blocks(scenario, features),
        features=features,
    )


def _more_blocks(scenario: Scenario, features: Features) -> int:
    """Return the blocks that the groups beside the first take of what the scenario has room for."""
    num_together = min(len(scenario.asks), 4)
    more = 0
    budget = LONGEST if features.whole else scenario.budget
    for kind in features.groups[1:]:
        name, _, tokens = kind.partition(":")
        if name == "full":
            more += scenario.num_blocks
        elif name == "state":
            more += 4 * num_together
        else:
            at_first = math.ceil((int(tokens) + 2 * budget) / BLOCK) + 2
            more += min(at_first, scenario.num_blocks) + num_together * int(tokens) // BLOCK
    return more + (2 * 512 // BLOCK if features.groups == ("sliding:512",) else 0)


def engine_of(features: Features) -> dict[str, Any]:
    """Return the arguments of the engine."""
    return {
        "groups": features.groups,
        "max_loras": features.num_slots,
        "num_drafts": features.num_drafts,
        "transfer": TRANSFER if features.connector else None,
        "chunked_prefill": not features.whole,
        **({"max_model_len": LONGEST} if features.whole else {}),
    }


def extras_of(scenario: Scenario) -> dict[str, Extra]:
    """Return what each request uses, the same for stock and for us."""
    features = scenario.features
    if features is None:
        return {}
    rng = Random(features.seed)
    extras: dict[str, Extra] = {}
    for i, ask in enumerate(scenario.asks):
        whole_s = scenario.scale * prompt_ms(ask.prompt) / 1000
        remote = ask.prompt // BLOCK * BLOCK if rng.random() < 0.5 else 0
        extras[f"r{i:02d}"] = Extra(
            adapter=rng.choice((0, 1, 2, 3)) if features.num_slots else 0,
            compile_s=rng.choice((None, None, 0.0, whole_s, 4 * whole_s))
            if features.grammars
            else None,
            remote_tokens=rng.choice((remote, remote // 2 // BLOCK * BLOCK))
            if features.connector
            else 0,
            load_s=rng.choice((0.0, 0.1, 1.0)) * whole_s,
            num_unknown=rng.choice((0, 0, 0, 2)),
        )
    return extras
