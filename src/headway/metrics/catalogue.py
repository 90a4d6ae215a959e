"""What a server tells of itself: every metric's name, unit, help, and where it is read from.

Names and units follow https://prometheus.io/docs/practices/naming/. This table is the one source of
``/metrics`` and of ``docs/reference/metrics.md`` (:mod:`headway.metrics.prometheus`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from headway.metrics import deciles
from headway.metrics.aims_catalogue import AIMS
from headway.metrics.metric_spec import Json, MetricSpec, Samples
from headway.metrics.tally import (
    GAP_BOUNDS_S,
    PAUSE_BOUNDS_S,
    PLAN_BOUNDS_S,
    RATIO_BOUNDS,
    STEP_BOUNDS_S,
    TTFT_BOUNDS_S,
)


def _classes(value: Callable[[Json], Any]) -> Callable[[Json], Samples]:
    """Read one value of every class."""
    return lambda m: (((n,), value(c)) for n, c in m["counts"]["classes"].items())


def _promised_classes(key: str) -> Callable[[Json], Samples]:
    """Read one count of every class that ever promised something."""
    return lambda m: (
        ((n,), c[key]) for n, c in m["counts"]["classes"].items() if c["promise"] or c["promised"]
    )


def _class_split(key: str) -> Callable[[Json], Samples]:
    """Read a table of every class: one sample an entry."""
    return lambda m: (
        ((n, entry), value)
        for n, c in m["counts"]["classes"].items()
        for entry, value in c[key].items()
    )


def _table(part: str, key: str) -> Callable[[Json], Samples]:
    """Read a table: one sample an entry."""
    return lambda m: (((entry,), value) for entry, value in m[part].get(key, {}).items())


def _one(part: str, *keys: str) -> Callable[[Json], Samples]:
    """Read one number, or a histogram."""

    def read(message: Json) -> Samples:
        value: Any = message[part]
        for key in keys:
            value = value[key]
        yield (), value

    return read


def _shadow(key: str) -> Callable[[Json], Samples]:
    """Read one figure of the shadow, once there is one; a table has a row a policy."""

    def read(message: Json) -> Samples:
        value = message.get("shadow", {}).get(key)
        if isinstance(value, list):
            yield from (((row["policy"], row["role"]), row[key]) for row in value)
        elif value is not None:
            yield (), value

    return read


def _coverage_target(message: Json) -> Samples:
    """Read the share that predictions aim at, where they aim at one."""
    target = message.get("length_coverage_target")
    if target is not None:
        yield (), target


_METRICS: tuple[MetricSpec, ...] = (
    MetricSpec(
        "headway_requests_offered_total", "counter",
        "Requests that reached the scheduler.", ("slo_class",), _classes(lambda c: c["offered"]),
    ),
    MetricSpec(
        "headway_requests_ended_total", "counter",
        "Requests that ended, by outcome: finished, refused (429), rejected (can never be"
        " served), aborted (the client hung up), failed.",
        ("slo_class", "outcome"), _class_split("outcomes"),
    ),
    MetricSpec(
        "headway_requests_promised_total", "counter",
        "Requests with a promise that ended, whatever their outcome: what attainment is a"
        " share of.",
        ("slo_class",), _promised_classes("promised"),
    ),
    MetricSpec(
        "headway_requests_attained_total", "counter",
        "Requests that finished and kept everything they were promised; its rate is goodput.",
        ("slo_class",), _promised_classes("attained"),
    ),
    MetricSpec(
        "headway_attained_tokens_total", "counter",
        "Output tokens of the requests that kept their promise; its rate is token goodput.",
        ("slo_class",), _promised_classes("attained_tokens"),
    ),
    MetricSpec(
        "headway_requests_late_total", "counter",
        "Requests that broke their promise by a number of seconds (refused ones have none). A"
        " request that was cut off is late by its wait beyond the promise until then.",
        ("slo_class",), _promised_classes("late"),
    ),
    MetricSpec(
        "headway_requests_broken_total", "counter",
        "Requests by the part of their promise that was broken: ttft, tbt (fewer than 99 % of the"
        " gaps in time), pause (a gap longer than allowed), tpot, jct. A request that broke several"
        " parts counts in each.",
        ("slo_class", "promise"), _class_split("broke"),
    ),
    MetricSpec(
        "headway_lateness_seconds_total", "counter",
        "Seconds by which promises were broken, by cause; the causes add up to the lateness.",
        ("slo_class", "cause"), _class_split("late_s"),
    ),
    MetricSpec(
        "headway_ttft_seconds", "histogram",
        "From the arrival at the server to the first token.",
        ("slo_class",), _classes(lambda c: c["ttft"]), TTFT_BOUNDS_S,
    ),
    MetricSpec(
        "headway_token_gap_seconds", "histogram",
        "Between two deliveries of tokens of one request.",
        ("slo_class",), _classes(lambda c: c["gap"]), GAP_BOUNDS_S,
    ),
    MetricSpec(
        "headway_longest_pause_seconds", "histogram",
        "The longest gap of each answer that ended.",
        ("slo_class",), _classes(lambda c: c["pause"]), PAUSE_BOUNDS_S,
    ),
    MetricSpec(
        "headway_preemptions_total", "counter",
        "Running requests that were preempted, by what really happened to their KV: swap"
        " (the host keeps it) or recompute (discarded, whatever was planned).",
        ("kind",), _table("counts", "preemptions"),
    ),
    MetricSpec(
        "headway_steps_aside_total", "counter",
        "Steps that the engine decided alone because it did nothing of a plan's prompt work. Each"
        " is a fault in Headway's model of the engine; please report it.",
        (), _one("counts", "asides"),
    ),
    MetricSpec(
        "headway_request_start_total", "counter",
        "Requests with an X-Request-Start header on a server with --request-start: used, or"
        " ignored because it is not a time, is in the future or is more than an hour ago.",
        ("result",), _table("counts", "request_starts"),
    ),
    MetricSpec(
        "headway_kv_tokens", "gauge",
        "The KV cache in tokens. held + reserved + free is the whole cache; reserved is free room"
        " that running requests are predicted to need, lent is what they will need beyond it. An"
        " idle server holds nothing.",
        ("state",), _table("now", "kv"),
    ),
    MetricSpec(
        "headway_requests_running", "gauge",
        "Requests that hold KV.", (), _one("now", "running"),
    ),
    MetricSpec(
        "headway_requests_waiting", "gauge",
        "Requests that wait, preempted ones included.", (), _one("now", "waiting"),
    ),
    MetricSpec(
        "headway_pressure", "gauge",
        "Load of the server: 0 when idle, about 1 when one more claim just fits, more when not all"
        " fit. The larger of two shares: of the time that prompts have until they are due, and of"
        " the KV cache that all requests will hold. Routers choose a server by it.",
        (), _one("now", "load", "pressure"),
    ),
    MetricSpec(
        "headway_prefill_backlog_seconds", "gauge",
        "Seconds of prefill for all prompts that wait or are in progress.",
        (), _one("now", "load", "prefill_backlog_s"),
    ),
    MetricSpec(
        "headway_computed_tokens_total", "counter",
        "Tokens computed: prompts, decodes, and tokens computed again.",
        (), _one("counts", "tokens", "computed"),
    ),
    MetricSpec(
        "headway_output_tokens_total", "counter",
        "Tokens sent out.", (), _one("counts", "tokens", "output"),
    ),
    MetricSpec(
        "headway_step_seconds", "histogram",
        "Time of a step of the engine; mixed steps compute prompts too.",
        ("mode",), _table("counts", "steps"), STEP_BOUNDS_S,
    ),
    MetricSpec(
        "headway_step_prediction_ratio", "histogram",
        "Seconds a step took, divided by the seconds predicted for it: the model's error.",
        ("mode",), _table("counts", "ratios"), RATIO_BOUNDS,
    ),
    MetricSpec(
        "headway_steps_bounded_total", "counter",
        "Steps that were planned with an upper bound.", ("mode",), _table("counts", "bounded"),
    ),
    MetricSpec(
        "headway_steps_beyond_bound_total", "counter",
        "Steps that took longer than their bound: violations of the margin.",
        ("mode",), _table("counts", "beyond"),
    ),
    MetricSpec(
        "headway_length_predictions_total", "counter",
        "Finished answers, by whether the length predicted on arrival covered them. For a policy"
        " that predicts a mean, such as the default one, about half should be covered; a policy"
        " that aims at another share states it in headway_length_coverage_target.",
        ("result",), _table("counts", "lengths"),
    ),
    MetricSpec(
        "headway_length_coverage_target", "gauge",
        "Share of answers that the length predicted on arrival should cover; absent for a policy"
        " that predicts a mean.",
        (), _coverage_target,
    ),
    MetricSpec(
        "headway_chance_requests_total", "counter",
        "Requests whose promise was kept or broken, by the chance estimated when they started;"
        " decile is the lower edge of the chances. Requests that never start have no chance, and"
        " those whose client hung up first are left out.",
        ("decile",), deciles.by_decile("num"),
    ),
    MetricSpec(
        "headway_chance_kept_total", "counter",
        "Of those, the promises that were kept, as headway_requests_attained_total counts.",
        ("decile",), deciles.by_decile("kept"),
    ),
    MetricSpec(
        "headway_chance_told_total", "counter",
        "Sum of their estimated chances: the number of promises that should be kept.",
        ("decile",), deciles.by_decile("told"),
    ),
    MetricSpec(
        "headway_chance_calibration_error", "gauge",
        "The largest difference between the estimated and the kept share, over the deciles with 100"
        " requests or more since the start; absent until there is one. Below 0.05 the"
        " chances can be believed.",
        (), deciles.error_in,
    ),
    MetricSpec(
        "headway_plan_seconds", "histogram",
        "Time that the policy took to plan a step.", (), _one("counts", "plan"), PLAN_BOUNDS_S,
    ),
    MetricSpec(
        "headway_messages_dropped_total", "counter",
        "Messages from the scheduler that were dropped, by reason. reader_slow is a snapshot,"
        " whose counts the next one includes; backlog_full and too_large lose the story of a late"
        " request.",
        ("reason",), _table("counts", "dropped"),
    ),
    MetricSpec(
        "headway_recorded_lines_total", "counter",
        "Lines of the recording (--record): kept, or dropped because its writer was too slow or"
        " gone.",
        ("result",), _table("counts", "recorded"),
    ),
    MetricSpec(
        "headway_shadow_attainment", "gauge",
        "Share of the last minutes' promises that a policy keeps when that traffic is simulated"
        " on this machine: the running policy, and the shadow (--shadow). Compare the two with"
        " each other, not with live attainment.",
        ("policy", "role"), _shadow("attainment"),
    ),
    MetricSpec(
        "headway_shadow_requests", "gauge",
        "Requests with a promise in that traffic.", (), _shadow("num_promised"),
    ),
    MetricSpec(
        "headway_shadow_cpu_seconds_total", "counter",
        "CPU time of the process that simulates; its rate stays below 0.03.",
        (), _shadow("cpu_s"),
    ),
)  # fmt: skip

METRICS: tuple[MetricSpec, ...] = (*_METRICS, *AIMS)
