"""The metrics of targets, error budgets and tenants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from headway.metrics import budgets
from headway.metrics.metric_spec import Json, MetricSpec, Samples


def _together(message: Json, kind: str) -> dict[str, Any]:
    """Return name → what :func:`budgets.together` makes of one scheduler's message."""
    age_s = message.get("age_s", 0.0)
    told = message.get("budgets", {}).get(kind, {})
    return {name: budgets.together([(one, age_s)]) for name, one in told.items()}


def _budget(kind: str, key: str) -> Callable[[Json], Samples]:
    """Read one figure of every group of a kind that has a target."""
    return lambda m: (((name,), row[key]) for name, row in _together(m, kind).items())


def _burn_rate(kind: str) -> Callable[[Json], Samples]:
    return lambda m: (
        ((name, window), rate)
        for name, row in _together(m, kind).items()
        for window, rate in row["burn_rate"].items()
    )


def _multipliers(message: Json) -> Samples:
    return (((group,), value) for group, value in message["now"].get("multipliers", {}).items())


def _tenants(key: str) -> Callable[[Json], Samples]:
    """Read one count of every tenant that is told."""
    return lambda m: (((n,), t[key]) for n, t in m["counts"].get("tenants", {}).items())


def _outcomes(message: Json) -> Samples:
    for name, tally in message["counts"].get("tenants", {}).items():
        yield from (((name, outcome), num) for outcome, num in tally["outcomes"].items())


def _tokens(message: Json) -> Samples:
    for name, tally in message["counts"].get("tenants", {}).items():
        yield from (((name, kind), tally[f"{kind}_tokens"]) for kind in ("prompt", "output"))


_LEFT = (
    "Share of the error budget (1 - target) of the last 28 days that is left: 1 while no promise is"
    " broken, below 0 when more are broken than the target allows. It starts afresh with the"
    " server, unless --budgets names a file."
)
_RATE = (
    "Share of the promises broken in the window, divided by the error budget (1 - target): at 1"
    " the budget lasts exactly; 0 if no promise ended. A window is at most a minute longer than"
    " its name."
)

AIMS: tuple[MetricSpec, ...] = (
    MetricSpec(
        "headway_slo_target", "gauge",
        "Share of the promises of a class that its operator wants kept; absent without a target.",
        ("slo_class",), _budget("class", "target"),
    ),
    MetricSpec(
        "headway_error_budget_left", "gauge", _LEFT,
        ("slo_class",), _budget("class", "budget_left"),
    ),
    MetricSpec(
        "headway_error_budget_burn_rate", "gauge", _RATE,
        ("slo_class", "window"), _burn_rate("class"),
    ),
    MetricSpec(
        "headway_tenant_slo_target", "gauge",
        "Share of the promises to a tenant that the operator wants kept; absent without a target.",
        ("tenant",), _budget("tenant", "target"),
    ),
    MetricSpec(
        "headway_tenant_error_budget_left", "gauge",
        "The same as headway_error_budget_left, of a tenant with a target.",
        ("tenant",), _budget("tenant", "budget_left"),
    ),
    MetricSpec(
        "headway_tenant_error_budget_burn_rate", "gauge",
        "The same as headway_error_budget_burn_rate, of a tenant with a target.",
        ("tenant", "window"), _burn_rate("tenant"),
    ),
    MetricSpec(
        "headway_target_multiplier", "gauge",
        "Current weight of a group with a target (class NAME or tenant NAME), as a multiple of its"
        " weight without one: above 1 while it is below its target.",
        ("group",), _multipliers,
    ),
    MetricSpec(
        "headway_tenant_requests_total", "counter",
        "Requests that ended, by tenant and outcome. The 50 tenants with the most requests appear"
        " by name, the rest together as others; none are the requests without a tenant. Absent"
        " until a request names a tenant. A tenant that newly appears by name begins at 0.",
        ("tenant", "outcome"), _outcomes,
    ),
    MetricSpec(
        "headway_tenant_requests_promised_total", "counter",
        "Of those, the requests with a promise.", ("tenant",), _tenants("promised"),
    ),
    MetricSpec(
        "headway_tenant_requests_attained_total", "counter",
        "Of those, the requests that kept everything they were promised.",
        ("tenant",), _tenants("attained"),
    ),
    MetricSpec(
        "headway_tenant_tokens_total", "counter",
        "Tokens of the requests that ended: prompt (of started requests, computed or found in a"
        " cache) and output.",
        ("tenant", "kind"), _tokens,
    ),
    MetricSpec(
        "headway_tenant_engine_seconds_total", "counter",
        "Seconds of the engine's steps, divided by the tokens that each tenant had in a step:"
        " prompts to the token, the rest in equal parts to the decodes that get a token every"
        " step. The parts add up to the steps' time, less a token when a decode resumes that"
        " was out of step.",
        ("tenant",), _tenants("engine_s"),
    ),
)  # fmt: skip
