"""What a machine's speed decides: the rate of a load, and how long the demo's promises are."""

from __future__ import annotations

import pytest

from headway.bench.speed import Speed, demo_book
from headway.slo import SloBook
from headway.workloads.realtext import SLO_FILE, demo_workload


@pytest.mark.parametrize(
    ("prompt_token_s", "output_token_s", "times"),
    [
        (0.0002, 0.002, 1.0),  # Nobody promises less to readers on a fast machine.
        (0.001, 0.008, 1.0),  # As fast as the promises want.
        (0.002, 0.004, 2.0),  # A thousand tokens of a prompt take two seconds of the one promised.
        (0.001, 0.014, 1.7),  # Three steps of eight take 0.336 s of 0.2; rounded up.
    ],
)
def test_a_slow_machine_promises_less(
    prompt_token_s: float, output_token_s: float, times: float
) -> None:
    """By the worse of first token and gaps, and never more than the demo's own promises."""
    assert Speed(prompt_token_s, output_token_s).slowness() == times


def test_every_promise_of_the_demo_grows_alike() -> None:
    """First tokens, gaps and ends of all classes; the default class stays."""
    own, longer = SloBook.load(SLO_FILE), demo_book(1.5)
    assert demo_book(1.0) == own
    assert longer.default == own.default
    for name, slo in own.classes.items():
        for what in ("ttft_s", "tbt_s", "jct_s"):
            before, after = getattr(slo, what), getattr(longer.classes[name], what)
            assert after == (None if before is None else pytest.approx(1.5 * before))


def test_a_load_is_a_share_of_the_engines_time() -> None:
    """At load one the requests of a second take a second."""
    speed, workload = Speed(0.001, 0.01), demo_workload(200, 3)
    rate_rps = speed.rate_rps(workload, 1.0)
    prompts = sum(r.num_prompt_tokens for r in workload) * 0.001
    outputs = sum(r.num_output_tokens for r in workload) * 0.01
    assert rate_rps * (prompts + outputs) / len(workload) == pytest.approx(1.0, abs=0.01)
    assert speed.rate_rps(workload, 0.5) == pytest.approx(rate_rps / 2, abs=0.01)
