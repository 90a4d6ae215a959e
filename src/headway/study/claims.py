"""A paper's claims, held against finished tables: what is reached, against whom, by which reading.

Papers say "up to": the largest gain over loads. Here it is taken against the best of a group of
rivals *at the same load*, so that no weak rival flatters. A published range says the least against
the strongest rival and the most against the weakest, both at the load where the gain is largest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from headway.study.gains import Gain, Unit, largest
from headway.study.paper_grid import Figure, Row

Outcome = Literal[
    "reached",
    "reached only against the day's baselines",
    "reached only against today's vLLM",
    "not reached",
]
"""What reaches most comes first."""

DECIMALS: Mapping[Unit, int] = {"factor": 2, "points": 1, "percent": 1}
"""Shown of a gain. A gain that shows as the published figure has reached it."""

Tables = Mapping[str, Sequence[Row]]
"""Rows by the name of the table."""


@dataclass(frozen=True, slots=True)
class ClaimReading:
    """One way to understand a claim, where its terms are not defined.

    Attributes:
        name: As tables show it.
        figure: What is compared; ``None`` is the capacity, the rate with 90 % kept.
        table: Of the experiment, whose loads are gone through.
    """

    name: str
    figure: Figure | None
    table: str = "main"


@dataclass(frozen=True, slots=True)
class PaperClaim:
    """One number of an abstract, or a range.

    Attributes:
        text: What is claimed to be better.
        published: The figure in *unit*; of a range the most.
        readings: The first is the one that the words suggest.
        least: The least of a range.
        near: The policy that ours is said to come near to: the load counts at which it comes least
            near, and *published* is how far it may stay behind.
    """

    text: str
    published: float
    unit: Unit
    readings: tuple[ClaimReading, ...]
    least: float | None = None
    near: str | None = None


@dataclass(frozen=True, slots=True)
class Against:
    """One policy by one reading against a group of rivals.

    Attributes:
        best: The gain over the strongest of them.
        weakest: The gain over the weakest; ``None`` where it is not asked for.
    """

    best: Gain
    weakest: Gain | None
    is_reached: bool


@dataclass(frozen=True, slots=True)
class Finding:
    """A claim by one reading; ``None`` against whom nothing was measured."""

    reading: ClaimReading
    day: Against | None = None
    today: Against | None = None
    near: Against | None = None

    @property
    def outcome(self) -> Outcome | None:
        """What the figures say; ``None`` where one of them is missing."""
        if self.near is not None:
            return "reached" if self.near.is_reached else "not reached"
        if self.day is None or self.today is None:
            return None
        if self.day.is_reached:
            if self.today.is_reached:
                return "reached"
            return "reached only against the day's baselines"
        return "reached only against today's vLLM" if self.today.is_reached else "not reached"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A claim for one policy, by each of its readings."""

    claim: PaperClaim
    policy: str
    findings: tuple[Finding, ...]

    @property
    def shown(self) -> Finding | None:
        """The reading that reaches most, then the largest gain; ``None`` where none has figures."""
        judged = [one for one in self.findings if one.outcome is not None]
        return max(judged, key=_rank, default=None)

    @property
    def num_alike(self) -> int:
        """How many readings reach as much as the one shown."""
        return sum(
            self.shown is not None and f.outcome == self.shown.outcome for f in self.findings
        )

    @property
    def num_judged(self) -> int:
        """How many readings have figures."""
        return sum(f.outcome is not None for f in self.findings)

    def document(self) -> dict[str, Any]:
        """Return plain values, fit for JSON."""
        claim, shown = self.claim, self.shown
        return {
            "claim": claim.text,
            "published": claim.published,
            "published_least": claim.least,
            "unit": claim.unit,
            "policy": self.policy,
            "reading": shown and shown.reading.name,
            "verdict": shown and shown.outcome,
            "readings": [
                {
                    "reading": one.reading.name,
                    "table": one.reading.table,
                    "outcome": one.outcome,
                    **{side: _plain(getattr(one, side)) for side in ("day", "today", "near")},
                }
                for one in self.findings
            ],
        }


def verdicts(
    claims: Sequence[PaperClaim],
    tables: Tables,
    policies: Sequence[str],
    of_their_day: Sequence[str],
    of_today: Sequence[str],
) -> list[Verdict]:
    """Return a verdict for each claim and each of *policies*.

    Args:
        of_their_day: The baselines as the papers had them, each a rival of its own.
        of_today: One rival, vLLM, in several settings: the best of them at each load.
    """
    return [
        Verdict(
            claim,
            policy,
            tuple(
                _finding(claim, reading, tables, policy, of_their_day, of_today)
                for reading in claim.readings
            ),
        )
        for claim in claims
        for policy in policies
    ]


def _finding(
    claim: PaperClaim,
    reading: ClaimReading,
    tables: Tables,
    policy: str,
    of_their_day: Sequence[str],
    of_today: Sequence[str],
) -> Finding:
    rows = tables.get(reading.table, ())

    def against(rivals: Sequence[str], over: Literal["strongest", "weakest"]) -> Gain | None:
        return largest(rows, reading.figure, claim.unit, policy, rivals, over=over)

    if claim.near is not None:
        worst = largest(rows, reading.figure, claim.unit, policy, [claim.near], at="worst")
        return Finding(reading, near=_judged(claim, worst, None))
    weakest = against(of_their_day, "weakest") if claim.least is not None else None
    return Finding(
        reading,
        day=_judged(claim, against(of_their_day, "strongest"), weakest),
        today=_judged(claim, against(of_today, "strongest"), None),
    )


def _judged(claim: PaperClaim, best: Gain | None, weakest: Gain | None) -> Against | None:
    if best is None:
        return None
    wanted = claim.published if claim.least is None else claim.least
    is_reached = _reaches(best, wanted, claim.unit)
    if weakest is not None:
        is_reached = is_reached and _reaches(weakest, claim.published, claim.unit)
    return Against(best, weakest, is_reached)


def _reaches(gain: Gain, wanted: float, unit: Unit) -> bool:
    return round(gain.gain, DECIMALS[unit]) >= wanted


def _rank(finding: Finding) -> tuple[int, float]:
    against = finding.near or finding.day
    worst_first = get_args(Outcome)[::-1]
    return worst_first.index(finding.outcome), against.best.gain if against else 0.0


def _plain(against: Against | None) -> dict[str, Any] | None:
    return None if against is None else asdict(against)
