"""What decodes that get a token every step share: counted once a step, not once a token."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from headway.metrics.causes import Split
from headway.metrics.tally import ClassTally

Shares = tuple[float, float, float]
"""Seconds of a gap in the step itself, in what of it was beyond its plan, and between steps."""

NO_SHARES: Shares = (0.0, 0.0, 0.0)

GroupKey = tuple[str, float | None, float]
"""Class, promised gap and longest pause."""


@dataclass(slots=True)
class InStep:
    """Decodes of one class, promised gap and longest pause that get a token every step.

    ``late_s`` sums, over their late gaps, the seconds above the promise, ``pause_late_s`` over
    those beyond the longest pause the seconds above that.
    """

    key: GroupKey
    tally: ClassTally
    tbt_s: float
    longest_pause_s: float
    count: int = 0
    num_late: int = 0
    late_s: Shares = NO_SHARES
    pause_late_s: Shares = NO_SHARES

    def waited(self, gap_s: float, took_s: float, beyond_s: float) -> None:
        """All of them waited *gap_s* for a token, *took_s* of it in a step."""
        self.tally.gap.add(gap_s, self.count)
        if gap_s > self.tbt_s:
            self.num_late += 1
            share = (gap_s - self.tbt_s) / gap_s
            self.late_s = _more(self.late_s, share, gap_s, took_s, beyond_s)
        if gap_s > self.longest_pause_s:
            share = (gap_s - self.longest_pause_s) / gap_s
            self.pause_late_s = _more(self.pause_late_s, share, gap_s, took_s, beyond_s)


@dataclass(slots=True)
class Mark:
    """A reading of the clocks when a request fell in step with the others."""

    at_s: float
    num_steps: int
    run_s: float
    beyond_s: float
    num_late: int
    late_s: Shares
    pause_late_s: Shares


class LongestGaps:
    """The longest gap of those in step since any step, without keeping every gap.

    Kept are the gaps that no later one reached, the longest first, by the number of their step.
    """

    def __init__(self) -> None:
        self._steps: list[int] = []
        self._gaps_s: list[float] = []

    def add(self, step: int, gap_s: float) -> None:
        """Those in step waited *gap_s* for the step of this number."""
        gaps_s, steps = self._gaps_s, self._steps
        while gaps_s and gaps_s[-1] <= gap_s:
            gaps_s.pop()
            steps.pop()
        gaps_s.append(gap_s)
        steps.append(step)

    def clear(self) -> None:
        """Nobody is in step: what was is nobody's."""
        self._steps.clear()
        self._gaps_s.clear()

    def since(self, step: int) -> float:
        """Return the longest gap from a step on; 0 without one."""
        index = bisect_left(self._steps, step)
        return self._gaps_s[index] if index < len(self._gaps_s) else 0.0


def since(now: Shares, then: Shares) -> Split:
    """Return by cause what was added between two readings."""
    own_s, error_s, between_s = (after - before for after, before in zip(now, then, strict=True))
    return {"long_step": own_s, "model_error": error_s, "other": between_s}


def _more(sum_s: Shares, share: float, gap_s: float, took_s: float, beyond_s: float) -> Shares:
    """Return *sum_s* with *share* of a gap's seconds."""
    own_s, error_s, between_s = sum_s
    return (
        own_s + share * (took_s - beyond_s),
        error_s + share * beyond_s,
        between_s + share * (gap_s - took_s),
    )
