"""A sample of output lengths as a survival curve, some of them known only from below."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from sortedcontainers import SortedList


class SurvivalCurve:
    """P(length > n) of a sample, by the product-limit estimate (Kaplan and Meier 1958).

    An output that was cut (it reached the client's bound, or the client hung up) says only that
    its length would have been at least so many tokens. Left out, cut outputs would bias the
    sample towards the short; counted as ends, likewise. Without any this is the plain share.

    Taking in or out is O(log n); the first question after that O(n), each other O(log n) a length.
    """

    def __init__(self) -> None:
        # Twice the length, plus 1 when cut: plain numbers are ten times faster to read out than
        # pairs, and ends sort before cuts of the same length, which outlived them.
        self._sample: SortedList = SortedList()
        self._steps: tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]] | None = None

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

    def at(self, num_tokens: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return P(longer than each of *num_tokens*), same shape."""
        ends, alive = self._curve()
        return alive[np.searchsorted(ends, num_tokens, side="right")]

    def _curve(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Return lengths at which some ended, ascending, and the survival before and after each."""
        if self._steps is None:
            count = len(self._sample)
            sample = np.fromiter(self._sample, np.int64, count)
            ended = np.flatnonzero(sample % 2 == 0)
            at_risk = count - ended
            lengths = sample[ended] // 2
            alive = np.cumprod((at_risk - 1) / at_risk)
            last = np.flatnonzero(np.diff(lengths, append=-1))  # Of each run of equal lengths.
            self._steps = (lengths[last], np.append(1.0, alive[last]))
        return self._steps
