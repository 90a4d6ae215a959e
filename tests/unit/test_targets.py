"""A class below its target weighs more; where no weights reach all, its own weight decides."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from headway import registry
from headway.policy.events import Arrived, Finished, StepDone, StepScheduled
from headway.policy.plan import SharedPrices
from headway.policy.targets import MOST_TIMES, Targets
from headway.policy.view import EngineView
from headway.request import Request
from headway.slo import Slo

CODE = Slo(ttft_s=0.5, tbt_s=0.1, class_name="code", target=0.95)
CHAT = Slo(ttft_s=1.0, tbt_s=0.1, class_name="chat", target=0.9)
PLAIN = Slo(ttft_s=1.0, class_name="plain")


def worth(targets: Targets, slo: Slo) -> float:
    return targets.worth(Request("r", slo, 0.0, 10, 10))


def end(targets: Targets, slo: Slo, kept: str) -> None:
    """Tell of a row of promises: a plus was kept, a minus broken."""
    for sign in kept:
        targets.ended(slo, is_kept=sign == "+")


def test_without_a_target_a_promise_counts_what_it_counted() -> None:
    """To the last bit, whatever became of others like it."""
    targets = Targets()
    end(targets, replace(PLAIN, weight=0.3), "-+--")
    targets.arrived(PLAIN)
    assert not targets.times
    assert worth(targets, replace(PLAIN, weight=0.3)) == 0.3


def test_broken_promises_of_a_class_make_the_next_ones_count_more() -> None:
    """And kept ones less, down to what they counted at first."""
    targets = Targets()
    end(targets, CODE, "--")
    above = worth(targets, CODE) / worth(targets, PLAIN)
    assert above == pytest.approx(math.exp(0.57), rel=1e-2)
    end(targets, CODE, "+" * 20)
    assert 1.0 <= worth(targets, CODE) / worth(targets, PLAIN) < above
    end(targets, CODE, "+" * 60)
    assert targets.times == {"class code": 1.0}


def test_above_the_bound_the_distance_between_classes_counts() -> None:
    """Two hopeless targets: neither outweighs the rest without end, nor each other by chance."""
    targets = Targets()
    end(targets, CODE, "-" * 500)
    end(targets, replace(CHAT, target=0.95), "-" * 490)
    assert targets.times["class code"] == pytest.approx(MOST_TIMES)
    assert 1.0 < targets.times["class chat"] <= MOST_TIMES


def test_a_heavier_class_is_as_short_at_a_smaller_shortfall() -> None:
    """Where no weights reach both targets, twice the weight settles at half the shortfall."""
    targets = Targets()
    double = replace(CHAT, weight=2.0)
    for i in range(6000):  # Of ten, code misses its target by 4 points, chat by half of it.
        sign = "-" if i % 10 == 9 else "+"
        end(targets, replace(CODE, target=0.94), sign)
        end(targets, replace(double, target=0.92), sign)
    assert targets.times["class code"] == pytest.approx(targets.times["class chat"], rel=0.35)


def test_a_tenant_s_target_counts_beside_its_class_s() -> None:
    """Both are below: the product."""
    targets = Targets()
    slo = replace(CODE, tenant="acme", tenant_target=0.9)
    end(targets, slo, "---")
    both = targets.times["class code"] * targets.times["tenant acme"]
    assert worth(targets, slo) / worth(targets, PLAIN) == pytest.approx(both)


def test_weights_count_against_the_others_mean() -> None:
    """Where all claims are of one class its multiplier changes nothing in the end."""
    targets = Targets()
    end(targets, CODE, "---")
    for _ in range(500):
        targets.arrived(CODE)
    assert worth(targets, CODE) == pytest.approx(1.0)


def served(kept: bool, reason: str) -> dict[str, float]:
    """Serve one promise of the class, late or not, and return what its class counts then."""
    core = registry.build("headway")
    core.observe(Arrived(0.0, "r", 0.0, 10, 100, CODE))
    if not kept:
        core.plan(EngineView(100, 100, 16, 8, 64), 0.6)  # Its first token was due at 0.5 s.
    core.observe(StepScheduled(0.6, {"r": 10}, {"r": 0}))
    core.observe(StepDone(0.61 if not kept else 0.4, {"r": 1}))
    core.observe(Finished(0.7, "r", reason))
    return dict(core.known.targets.times)


def test_what_becomes_of_a_promise_is_told_once() -> None:
    """Kept, broken, or nobody's fault."""
    assert served(True, "stopped") == {"class code": 1.0}
    assert served(False, "stopped")["class code"] == pytest.approx(math.exp(0.285), rel=1e-3)
    assert served(False, "refused")["class code"] == pytest.approx(math.exp(0.285), rel=1e-3)
    assert served(True, "refused")["class code"] == pytest.approx(math.exp(0.285), rel=1e-3)
    assert served(True, "aborted") == {}


def test_a_plan_s_line_says_what_promises_count() -> None:
    """As far as there is a target."""
    core = registry.build("headway")
    for i in range(3):
        core.observe(Arrived(0.0, f"r{i}", 0.0, 10, 100, CODE))
    core.observe(Finished(0.1, "r0", "refused"))
    prices = core.plan(EngineView(100, 100, 16, 8, 64), 0.2).prices
    assert isinstance(prices, SharedPrices)
    assert prices.times["class code"] > 1.0
