"""Questions an operator asks, and their answer in PromQL."""

from __future__ import annotations

from collections.abc import Mapping

QUERIES: Mapping[str, str] = {
    "Attainment per class, last five minutes": (
        "sum by (slo_class) (rate(headway_requests_attained_total[5m]))"
        " / sum by (slo_class) (rate(headway_requests_promised_total[5m]))"
    ),
    "Goodput, kept requests per second": "sum(rate(headway_requests_attained_total[5m]))",
    "99th percentile of the wait for the first token": (
        "histogram_quantile(0.99, sum by (le, slo_class) (rate(headway_ttft_seconds_bucket[5m])))"
    ),
    "99th percentile of the longest pause of an answer": (
        "histogram_quantile(0.99, sum by (le, slo_class)"
        " (rate(headway_longest_pause_seconds_bucket[5m])))"
    ),
    "Seconds of lateness per second, by cause": (
        "sum by (cause) (rate(headway_lateness_seconds_total[5m]))"
    ),
    "Promises broken per second, by the broken part": (
        "sum by (slo_class, promise) (rate(headway_requests_broken_total[5m]))"
    ),
    "Share of promises kept, less the expected share": (
        "(sum(rate(headway_chance_kept_total[15m])) - sum(rate(headway_chance_told_total[15m])))"
        " / sum(rate(headway_chance_requests_total[15m]))"
    ),
    "How fast a class spends its error budget, last hour": (
        'max by (slo_class) (headway_error_budget_burn_rate{window="1h"})'
    ),
    "Share of the engine's time, by tenant": (
        "sum by (tenant) (rate(headway_tenant_engine_seconds_total[5m]))"
        " / on () group_left sum(rate(headway_tenant_engine_seconds_total[5m]))"
    ),
    "X-Request-Start headers ignored per second": (
        'sum(rate(headway_request_start_total{result="ignored"}[5m]))'
    ),
    "Share of steps beyond their bound": (
        "sum(rate(headway_steps_beyond_bound_total[5m]))"
        " / sum(rate(headway_steps_bounded_total[5m]))"
    ),
    "Share of the KV cache in use": (
        'sum(headway_kv_tokens{state="held"}) / sum(headway_kv_tokens{state=~"held|reserved|free"})'
    ),
}
"""Questions an operator asks, and their answer in PromQL."""
