"""Shares of promises that an operator wants kept: a class below its target weighs more.

The sum of promises is largest when the cheap ones are kept, whoever asked for the others. Where an
operator states a target for a class, or a tenant, its promises weigh more the longer it stays
below: dual ascent on the constraint "at least so many are kept", a little with each promise that
ends (Zinkevich, ICML 2003, for the steps). Differs: weights grow by a factor and not by a term, are
bounded, and a shortfall is forgotten slowly; where no weights reach all targets, they drive the
shortfalls towards inverse proportion to the operator's own weights (experiments/targets: partly).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from headway.policy.recent import NEWEST_WEIGHT
from headway.request import Request
from headway.slo import Slo

ASCENT = 0.3
"""Log-weight that one broken promise adds to its class, times the target (experiments/targets, also
with first steps as large as 1 that shrink to 0.1). Larger: weights swing, and less is kept of all;
smaller: a class stays below its target for hundreds of requests."""

FORGET = 0.01
"""Share of a log-weight that each ended promise removes, times ``ASCENT`` (experiments/targets).
Larger: a target is missed by more; smaller: old weights stay for longer."""

MOST_TIMES = 16.0
"""Largest factor on a promise's weight for its class's target, and for its tenant's
(experiments/targets). Larger: promises without a target are given up; smaller: targets are
missed."""


class Targets:
    """What promises count for the targets of their class and tenant.

    Attributes:
        times: By class and tenant with a target, what its promises weigh times their own weight;
            1 for everybody else.
    """

    def __init__(self) -> None:
        self.times: dict[str, float] = {}
        self._logs: dict[str, float] = {}
        self._mean_weight = 0.0
        self._mean_times = 1.0

    def arrived(self, slo: Slo) -> None:
        """Take in what a newcomer weighs: a multiplier counts against the others' mean."""
        if self.times:
            self._mean_times += NEWEST_WEIGHT * (self.times_of(slo) - self._mean_times)

    def ended(self, slo: Slo, *, is_kept: bool) -> None:
        """A promise was kept, or broken; it is told once."""
        groups = tuple(_groups(slo))
        if not groups:
            return
        weight = NEWEST_WEIGHT if self._mean_weight else 1.0
        self._mean_weight += weight * (slo.weight - self._mean_weight)
        for group, target in groups:
            log = self._logs.get(group, 0.0)
            short = (target - is_kept) * slo.weight / self._mean_weight
            self._logs[group] = max(log + ASCENT * (short - FORGET * log), 0.0)
        # Beyond the bound it is the distance between them that counts.
        most = math.log(MOST_TIMES)
        beyond = max(max(self._logs.values()) - most, 0.0)
        self.times = {g: math.exp(max(log - beyond, 0.0)) for g, log in self._logs.items()}

    def worth(self, request: Request) -> float:
        """Return what a promise counts: its own weight, times its multiplier over the mean one."""
        weight = request.slo.weight
        return weight * self.times_of(request.slo) / self._mean_times if self.times else weight

    def times_of(self, slo: Slo) -> float:
        """Return the product of what :attr:`times` has for a promise."""
        return math.prod(self.times.get(group, 1.0) for group, _ in _groups(slo))


def _groups(slo: Slo) -> Iterator[tuple[str, float]]:
    """Yield who is to keep what share of its promises: the class, the tenant."""
    if slo.target is not None:
        yield f"class {slo.class_name}", slo.target
    if slo.tenant_target is not None:
        yield f"tenant {slo.tenant}", slo.tenant_target
