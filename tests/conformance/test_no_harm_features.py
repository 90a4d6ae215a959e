"""No harm with the engine's features on: one at a time, and several at once.

The loads of ``test_no_harm.py`` on servers with several kinds of attention, adapters, grammars,
KV that lies elsewhere, draft tokens, prompts that may not be cut (``harm_features.py``). Each
feature alone is in ``test_features.py``. ``HEADWAY_LONG`` says how many are drawn, as there.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given

pytest.importorskip("vllm", reason="vLLM is not installed")

import harm_rules as rules
from harm_drawn import DRAWN
from harm_features import featured
from harm_runs import serve
from harm_scenarios import Scenario


def test_any_load(lab: Any) -> None:
    """Everything that stock serves is served, as fast, and as many promises are kept."""
    kept = np.zeros(2)
    ratios: list[float] = []
    asides = 0

    @DRAWN
    @given(featured())
    def check(scenario: Scenario) -> None:
        nonlocal asides
        pair = serve(lab, scenario)
        rules.assert_all_served(pair)
        asides += pair.our_run.scheduler.headway_aside.num_steps
        if rules.has_promises(pair):
            kept[:] += rules.num_kept(pair)
        else:
            ratios.append(rules.throughput_ratio(pair))

    check()
    mean = float(np.exp(np.mean(np.log(ratios))))
    print(f"\nKEPT promises: {kept[1]:.0f} where stock keeps {kept[0]:.0f}; asides: {asides}")
    print(f"KEPT throughput {mean:.4f} of stock's over {len(ratios)} loads, worst {min(ratios)}")
    assert kept[1] >= 0.99 * kept[0]
    assert mean >= 0.98


def test_light_load(lab: Any) -> None:
    """In light load no first token is later than by a step, whatever the server has on."""
    num_light = asides = 0

    @DRAWN
    @given(featured(light=True))
    def check(scenario: Scenario) -> None:
        nonlocal num_light, asides
        pair = serve(lab, scenario)
        rules.assert_all_served(pair)
        asides += pair.our_run.scheduler.headway_aside.num_steps
        if rules.is_light(pair):
            num_light += 1
            rules.assert_first_tokens(pair)
            rules.assert_promises_kept(pair)

    check()
    print(f"\nKEPT light loads: {num_light}; asides: {asides}")
    assert num_light >= 0.3 * DRAWN.max_examples
