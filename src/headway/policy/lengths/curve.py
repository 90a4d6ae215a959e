"""A sample of output lengths as a survival curve, some of them known only from below."""

from __future__ import annotations

import bisect

import numpy as np
import numpy.typing as npt
from sortedcontainers import SortedList

ROUNDING = 1e-9
"""A product of shares misses a round number by less than this."""


class SurvivalCurve:
    """P(length > n) of a sample, by the product-limit estimate (Kaplan and Meier 1958).

    An output that was cut (it reached the client's bound, or the client hung up) says only that
    its length would have been at least so many tokens. Left out, cut outputs would bias the
    sample towards the short; counted as ends, likewise. Without any this is the plain share.

    Taking in or out is O(log n); the first question after that O(n), each other O(log n).
    """

    def __init__(self) -> None:
        # Twice the length, plus 1 when cut: plain numbers are ten times faster to read out than
        # pairs, and ends sort before cuts of the same length, which outlived them.
        self._sample: SortedList = SortedList()
        self._steps: tuple[list[int], list[float]] | None = None

    def __len__(self) -> int:
        return len(self._sample)

    def add(self, num_tokens: int, is_cut: bool) -> None:
        """Take a length in."""
        self._sample.add(2 * num_tokens + is_cut)
        self._steps = None

    def remove(self, num_tokens: int, is_cut: bool) -> None:
        """Take a length out again."""
        self._sample.remove(2 * num_tokens + is_cut)
        self._steps = None

    def num_longer(self, num_tokens: int) -> int:
        """Return how many of the sample are longer than *num_tokens*."""
        return len(self._sample) - int(self._sample.bisect_right(2 * num_tokens + 1))

    def quantile(self, p: float, so_far_tokens: int) -> int | None:
        """Return the least length with P(longer | longer than *so_far_tokens*) <= 1 - *p*.

        ``None`` when the sample does not reach that far: its longest were cut.
        """
        ends, negative = self._curve()
        alive = self._at(so_far_tokens)
        reached = bisect.bisect_left(negative, -((1.0 - p) * alive + ROUNDING))
        index = max(reached, bisect.bisect_right(ends, so_far_tokens))
        return ends[index] if index < len(ends) else None

    def survival(self, num_tokens: int, so_far_tokens: int) -> float:
        """Return P(longer than *num_tokens* | longer than *so_far_tokens*).

        1 when nothing in the sample is longer than *so_far_tokens*: it cannot tell.
        """
        alive = self._at(so_far_tokens)
        return min(self._at(num_tokens) / alive, 1.0) if alive > ROUNDING else 1.0

    def at(self, num_tokens: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return P(longer than each of *num_tokens*), same shape."""
        ends, negative = self._curve()
        index = np.searchsorted(np.array(ends), num_tokens, side="right")
        return np.append(1.0, -np.array(negative))[index]

    def _at(self, num_tokens: int) -> float:
        ends, negative = self._curve()
        index = bisect.bisect_right(ends, num_tokens)
        return -negative[index - 1] if index else 1.0

    def _curve(self) -> tuple[list[int], list[float]]:
        """Return lengths at which some ended, ascending, and minus the survival after each."""
        if self._steps is None:
            count = len(self._sample)
            sample = np.fromiter(self._sample, np.int64, count)
            ended = np.flatnonzero(sample % 2 == 0)
            at_risk = count - ended
            lengths = sample[ended] // 2
            alive = np.cumprod((at_risk - 1) / at_risk)
            last = np.flatnonzero(np.diff(lengths, append=-1))  # Of each run of equal lengths.
            self._steps = (lengths[last].tolist(), (-alive[last]).tolist())
        return self._steps
