"""Load reports in ORCA's words (Open Request Cost Aggregation), for the header of an answer.

Names and meanings are those of ``xds/data/orca/v3/orca_load_report.proto``; how a header says them
is what Envoy reads (``source/common/orca/orca_parser.cc``): a format, a space, and either
``name=value`` pairs with commas between or JSON. Envoy drops a whole report for one name it does
not know or that is there twice, and for one value that is negative or no finite number.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

DIGITS = 6
"""Decimals of a value: microseconds, and one request in ten days."""


@dataclass(frozen=True, slots=True)
class OrcaReport:
    """One load report.

    Attributes:
        rps_fractional: Requests a second that reach the schedulers, whatever becomes of them.
        eps: Those of them a second that the server failed: refused (429) or ended by an error of
            the engine (5xx). Balancers subtract for errors so that a server which fails quickly
            does not look free. What only its client did wrong, or hung up on, is none.
        application_utilization: Share of the server that claims take; above 1 where not all fit.
        named_metrics: Everything else, by its name.
    """

    rps_fractional: float
    eps: float
    application_utilization: float
    named_metrics: Mapping[str, float]

    def text(self) -> str:
        """Return the header's value in the format ``TEXT``."""
        pairs = [f"{name}={value}" for name, value in self._fields()]
        pairs += [f"named_metrics.{name}={value}" for name, value in self._named()]
        return f"TEXT {', '.join(pairs)}"

    def json(self) -> str:
        """Return the header's value in the format ``JSON``."""
        return f"JSON {json.dumps({**dict(self._fields()), 'named_metrics': dict(self._named())})}"

    def _fields(self) -> Iterator[tuple[str, float]]:
        return _sound(
            {
                "rps_fractional": self.rps_fractional,
                "eps": self.eps,
                "application_utilization": self.application_utilization,
            }
        )

    def _named(self) -> Iterator[tuple[str, float]]:
        return _sound(self.named_metrics)


def _sound(values: Mapping[str, float]) -> Iterator[tuple[str, float]]:
    """Yield what a balancer accepts; the others would cost it the whole report."""
    for name, value in values.items():
        if math.isfinite(value) and value >= 0.0:
            yield name, round(value, DIGITS)
