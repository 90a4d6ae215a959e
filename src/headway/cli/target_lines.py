"""Whether runs kept what the operator aims at: a line below a table, and the same for JSON."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headway.metrics import define

KINDS = {"class": "per_class", "tenant": "per_tenant"}
"""Who may have a target, and where a run's summary has their figures."""


@dataclass(frozen=True, slots=True)
class TargetOutcome:
    """What runs of one kind kept of a target.

    Attributes:
        kind: A key of :data:`KINDS`.
        kept: Mean share of the promises kept, over the runs.
    """

    kind: str
    name: str
    target: float
    kept: float

    @property
    def is_met(self) -> bool:
        """Whether the target was kept or exceeded."""
        return define.target_met(self.kept, self.target)

    def document(self) -> dict[str, Any]:
        """Return the same, ready for JSON."""
        return {
            self.kind: self.name,
            "target": self.target,
            "promises_kept": self.kept,
            "target_met": self.is_met,
        }

    def __str__(self) -> str:
        verdict = "met" if self.is_met else "missed"
        aim = f"{100 * self.target:.4g}%"
        return f"{self.kind} {self.name} kept {self.kept:.1%} of its promises, {aim} {verdict}"


def outcomes_of(runs: Sequence[Mapping[str, Any]]) -> list[TargetOutcome]:
    """Return what came of every target, over *runs* that differ in their seed only."""
    return [
        TargetOutcome(kind, name, target, sum(kept) / len(kept))
        for kind, place in KINDS.items()
        for name, (target, kept) in _kept_in(runs, place).items()
    ]


def _kept_in(
    runs: Sequence[Mapping[str, Any]], place: str
) -> dict[str, tuple[float, Sequence[float]]]:
    found: dict[str, tuple[float, list[float]]] = {}
    for run in runs:
        for name, figures in run.get(place, {}).items():
            if figures.get("promises_kept") is not None:
                kept = found.setdefault(name, (figures["target"], []))[1]
                kept.append(figures["promises_kept"])
    return dict(found)


def target_lines(
    groups: Sequence[tuple[str, Sequence[Mapping[str, Any]]]],
) -> Iterator[str]:
    """Yield a line for each label and its runs, where anybody has a target."""
    for label, runs in groups:
        if outcomes := outcomes_of(runs):
            yield f"Targets, {label}: {'; '.join(map(str, outcomes))}."
