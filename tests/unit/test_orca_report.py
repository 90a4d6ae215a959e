"""Load reports as balancers read them: read back by the rules of ORCA's proto and of Envoy."""

from __future__ import annotations

import json
import math

import pytest

from headway.metrics.orca_report import OrcaReport

FIELDS = {"cpu_utilization", "mem_utilization", "application_utilization", "rps_fractional", "eps"}
"""The numbers of ``orca_load_report.proto`` that a balancer reads; it refuses any other name."""

NAMED = "named_metrics."

REPORT = OrcaReport(
    rps_fractional=2.5,
    eps=0.1,
    application_utilization=1.25,
    named_metrics={"kv_cache_usage_perc": 0.5, "headway_pressure": 1.25},
)


def read(value: str) -> tuple[dict[str, float], dict[str, float]]:
    """The fields and the named metrics of a header, as Envoy 1.40 takes them.

    A format and one space; TEXT is pairs with commas between, spaces around them are dropped, and
    the value begins after the first ``=``. A whole report is refused for one fault.
    """
    form, _, rest = value.partition(" ")
    assert form in ("TEXT", "JSON")
    if form == "JSON":
        document = json.loads(rest, parse_constant=pytest.fail)
        named = document.pop("named_metrics", {})
        rows = [*document.items(), *((NAMED + name, number) for name, number in named.items())]
    else:
        rows = []
        for pair in rest.split(","):
            name, equals, text = pair.strip().partition("=")
            assert equals
            assert text.strip() == text != ""
            rows.append((name, float(text)))
    names = [name for name, _ in rows]
    assert len(names) == len(set(names)), "a name twice"
    for name, number in rows:
        assert name in FIELDS or (name.startswith(NAMED) and name != NAMED), name
        assert isinstance(number, float)
        assert math.isfinite(number)
        assert number >= 0.0
    return (
        {name: number for name, number in rows if name in FIELDS},
        {name.removeprefix(NAMED): number for name, number in rows if name not in FIELDS},
    )


@pytest.mark.parametrize("value", [REPORT.text(), REPORT.json()])
def test_both_formats_say_the_same(value: str) -> None:
    """Rates, the utilization beyond 1, and every named metric."""
    fields, named = read(value)
    assert fields == {"rps_fractional": 2.5, "eps": 0.1, "application_utilization": 1.25}
    assert named == {"kv_cache_usage_perc": 0.5, "headway_pressure": 1.25}


def test_the_text_is_written_as_vllm_writes_it() -> None:
    """A prefix, and pairs with a comma and a space between."""
    assert REPORT.text() == (
        "TEXT rps_fractional=2.5, eps=0.1, application_utilization=1.25,"
        " named_metrics.kv_cache_usage_perc=0.5, named_metrics.headway_pressure=1.25"
    )


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -1e-9])
def test_a_value_that_would_cost_the_report_is_left_out(bad: float) -> None:
    """The other values arrive."""
    report = OrcaReport(1.0, bad, 0.5, {"good": 2.0, "bad": bad})
    for value in (report.text(), report.json()):
        fields, named = read(value)
        assert fields == {"rps_fractional": 1.0, "application_utilization": 0.5}
        assert named == {"good": 2.0}


@pytest.mark.parametrize("value", [0.0, 1e-7, 1e-5, 1 / 3, 12345678.125, 1e15])
def test_numbers_survive(value: float) -> None:
    """Small and large ones, to six decimals."""
    report = OrcaReport(value, 0.0, value, {"x": value})
    for text in (report.text(), report.json()):
        fields, named = read(text)
        assert fields["rps_fractional"] == named["x"] == pytest.approx(value, abs=1e-6)
