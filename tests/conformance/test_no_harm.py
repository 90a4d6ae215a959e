"""No harm: whatever stock vLLM serves, Headway serves, and nobody in light load is worse off.

Small loads of every kind, drawn by hypothesis (``harm_scenarios.py``), are served by stock vLLM's
scheduler and by Headway's (``harm_runs.py``), and compared (``harm_rules.py``). ``make test`` draws
the same 200 each time; ``HEADWAY_LONG=1`` draws 5,000 new ones, which takes a quarter of an hour,
and a larger number so many. The first line is for the release in the lock, the second for others:

    HEADWAY_LONG=1 python -m pytest tests/conformance/test_no_harm.py
    HEADWAY_LONG=500 scripts/try_release.py 0.33.0 tests/conformance/test_no_harm.py

One that fails is printed as the code that makes it: it goes into ``KEPT``, reduced.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given

pytest.importorskip("vllm", reason="vLLM is not installed")

import harm_rules as rules
from harm_drawn import DRAWN
from harm_kept import KEPT, OPEN, Kept
from harm_runs import Pair, serve
from harm_scenarios import Scenario, scenarios

THROUGHPUT_WITHIN = 0.02
"""The bound of experiments/one_flag, for all drawn loads together."""

LEAST_RATIO = 0.5
"""Of one load: a few requests on a cache for one or two end in another order, no more."""


def check_light(pair: Pair) -> None:
    """Check what holds in light load."""
    rules.assert_all_served(pair)
    if rules.is_light(pair):
        rules.assert_first_tokens(pair)
        rules.assert_promises_kept(pair)


def test_any_load(lab: Any) -> None:
    """Everything is served; without promises as fast as stock, and with room to the instant.

    Of all promises together no fewer are kept than stock keeps, less one in a hundred.
    """
    ratios: list[float] = []
    kept = np.zeros(2)

    @DRAWN
    @given(scenarios())
    def check(scenario: Scenario) -> None:
        pair = serve(lab, scenario)
        rules.assert_all_served(pair)
        if rules.has_promises(pair):
            kept[:] += rules.num_kept(pair)
            return
        if rules.has_room(scenario):
            rules.assert_unchanged(pair)
            return
        ratios.append(rules.throughput_ratio(pair))
        assert ratios[-1] >= LEAST_RATIO

    check()
    mean = float(np.exp(np.mean(np.log(ratios))))
    print(f"\nKEPT throughput without promises: {mean:.4f} of stock's over {len(ratios)} loads,")
    print(f"KEPT the worst {min(ratios):.3f}, the best {max(ratios):.3f}")
    print(f"KEPT promises: {kept[1]:.0f} where stock keeps {kept[0]:.0f}")
    assert mean >= 1.0 - THROUGHPUT_WITHIN
    assert kept[1] >= 0.99 * kept[0]


def test_light_load(lab: Any) -> None:
    """No first token is later than by a step, and whoever kept a promise on stock keeps it."""
    num_light = 0

    @DRAWN
    @given(scenarios(light=True))
    def check(scenario: Scenario) -> None:
        nonlocal num_light
        pair = serve(lab, scenario)
        check_light(pair)
        num_light += rules.is_light(pair)

    check()
    print(f"\nKEPT light loads: {num_light}")
    assert num_light >= 0.5 * DRAWN.max_examples


@pytest.mark.parametrize("kept", KEPT, ids=lambda kept: kept.name)
def test_kept(lab: Any, kept: Kept, request: pytest.FixtureRequest) -> None:
    """A load that failed once does not fail again."""
    if kept.is_open:
        request.applymarker(pytest.mark.xfail(reason=OPEN, strict=True))
    pair = serve(lab, kept.scenario)
    assert rules.is_light(pair) is kept.is_light, "it is no longer the load that it was"
    check_light(pair)
    stock, ours = rules.num_kept(pair)
    assert kept.is_light or ours >= stock
