"""The catalogue of metrics in Prometheus' text format, and as a page of the docs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from headway.metrics.catalogue import METRICS
from headway.metrics.causes import CAUSES
from headway.metrics.metric_spec import Json, MetricSpec
from headway.metrics.queries import QUERIES


class _MessageCollector(Collector):
    """Hands the metrics of some messages to prometheus_client."""

    def __init__(self, messages: Mapping[str, Json]) -> None:
        self._messages = messages

    def collect(self) -> Iterable[Metric]:
        for described in METRICS:
            yield _family(described, self._messages)


def exposition(messages: Mapping[str, Json]) -> bytes:
    """Return the text format (0.0.4) of the latest message of every engine."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_MessageCollector(messages))
    return generate_latest(registry)


def _family(described: MetricSpec, messages: Mapping[str, Json]) -> Metric:
    labels = ("engine", *described.labels)
    if described.kind == "histogram":
        histogram = HistogramMetricFamily(described.name, described.help, labels=labels)
        for values, sample in _samples(described, messages):
            histogram.add_metric(values, _buckets(described.bounds, sample), sample["sum"])
        return histogram
    of_kind = CounterMetricFamily if described.kind == "counter" else GaugeMetricFamily
    family = of_kind(described.name, described.help, labels=labels)
    for values, sample in _samples(described, messages):
        family.add_metric(values, sample)
    return family


def _samples(
    described: MetricSpec, messages: Mapping[str, Json]
) -> Iterator[tuple[tuple[str, ...], Any]]:
    for engine, message in sorted(messages.items()):
        for values, sample in described.read(message):
            yield (engine, *values), sample


def _buckets(bounds: Sequence[float], snapshot: Json) -> list[tuple[str, float]]:
    """Return (upper bound, cumulative count) pairs, the last one ``+Inf``."""
    names = [*(f"{bound:g}" for bound in bounds), "+Inf"]
    return list(zip(names, accumulate(snapshot["counts"]), strict=True))


def reference() -> str:
    """Return the page ``docs/reference/metrics.md``."""
    lines = [
        "# Metrics",
        "",
        "Headway adds these metrics to the server's own `/metrics`, beside vLLM's. This page is",
        "written from the code: `python -m headway.metrics.prometheus` prints it.",
        "",
        "Every metric has the label `engine`: `0`, or the data parallel rank. `slo_class` is the",
        "class of the promise: one of the SLO file's, `custom` for a request that brought its own",
        "numbers, `none` without a promise. `tenant` is the tenant's name in the SLO file; an API",
        "key appears only under that name. All units are seconds and tokens. Counters start at 0",
        "with the server.",
        "",
        "| metric | kind | labels | meaning |",
        "|---|---|---|---|",
    ]
    for m in METRICS:
        labels = ", ".join(f"`{label}`" for label in m.labels) or "–"
        lines.append(f"| `{m.name}` | {m.kind} | {labels} | {m.help} |")
    lines += [
        "",
        "## Causes of lateness",
        "",
        "`headway_lateness_seconds_total` splits each late span (arrival to first token, between",
        "two tokens, arrival to last token) by what the request and the engine did meanwhile. If a",
        "request was cut off, its end stands in for the token that never came. A refused request",
        "has no seconds.",
        "",
        *(f"- `{cause}`: {meaning}" for cause, meaning in CAUSES.items()),
        "",
        "## Questions and queries",
        "",
        *(f"- {question}: `{query}`" for question, query in QUERIES.items()),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(reference(), end="")
