"""How far above its prediction a step may land: a rank of recent ratios, nothing assumed.

Split conformal prediction (Vovk et al. 2005; Papadopoulos et al. 2002) on the ratio
measured / predicted. Differs: the calibration set is a sliding window, so a drift is
forgotten after ``window`` steps, and its ratios are taken against the model as it is *now*,
so that an error made while learning does not widen the margin for ever.
"""

from __future__ import annotations

import bisect
import math

import numpy as np
import numpy.typing as npt

NEAR_MISSES = (0.9, 0.95, 1.0, 1.05)
"""Where the tail is read, relative to the ratio asked for, so that a near miss counts too. Varied
in experiments/constants. Wider: risks are seen where there are none; narrower: none until a step
was that late."""

FAR = 1.8
"""Ratio that the guess below does not expect to see. Derived from it: one step in a million.
Larger: no difference; smaller: the guess's tail is cut."""

GUESSED_SPREAD = 0.12
"""Standard deviation of log(measured / predicted) assumed before steps were seen, near the 10 to 12
% of noise in LOG.md's first runs. Its value is in experiments/constants. Larger: short steps at the
start; smaller: gaps broken at the start."""

WINDOW_STEPS = 400
"""Steps remembered of each mode: somewhat more than a share of one in a hundred needs
(experiments/margin). Larger: a drift widens the bound for longer; smaller: the bound is the largest
ratio seen."""

LEAST_STEPS = 20
"""Steps from which the measured ratios count alone, and the weight of the guess before: one in
twenty can be measured by then. Varied in experiments/constants. Larger: caution lasts longer;
smaller: a lucky few decide."""

Vector = npt.NDArray[np.float64]


class RatioWindow:
    """The last steps of one mode and how they compare with the model.

    Args:
        window: Steps remembered.
        min_samples: Steps until which two standard deviations of the guess are answered at least.
    """

    def __init__(
        self,
        width: int,
        window: int = WINDOW_STEPS,
        min_samples: int = LEAST_STEPS,
    ) -> None:
        self._rows = np.zeros((window, width))
        self._seconds = np.ones(window)
        self._by_slot = np.ones(window)
        self._count = 0
        self._ratios: list[float] = []
        self._refitted: Vector | None = None
        self._prior = math.exp(2 * GUESSED_SPREAD)
        self._min_samples = min_samples

    def __len__(self) -> int:
        return min(self._count, len(self._seconds))

    def add(self, row: Vector, duration_s: float, predicted_s: float) -> None:
        """Take one step in, and the oldest out once the window is full."""
        self._settle()
        slot = self._count % len(self._seconds)
        if self._count >= len(self._seconds):
            del self._ratios[bisect.bisect_left(self._ratios, float(self._by_slot[slot]))]
        self._rows[slot] = row
        self._seconds[slot] = duration_s
        self._by_slot[slot] = duration_s / predicted_s
        self._count += 1
        bisect.insort(self._ratios, float(self._by_slot[slot]))

    def recompute(self, coefficients: Vector) -> None:
        """Compare the window with a refitted model, when somebody asks."""
        self._refitted = coefficients

    def _settle(self) -> None:
        if self._refitted is None:
            return
        count = len(self)
        predicted = np.maximum(self._rows[:count] @ self._refitted, 1e-6)
        self._refitted = None
        self._by_slot[:count] = self._seconds[:count] / predicted
        self._ratios = np.sort(self._by_slot[:count]).tolist()

    def forget(self) -> None:
        """Start over: the machine is not the one that was measured."""
        self._count = 0
        self._ratios = []
        self._refitted = None

    def upper(self, miss_rate: float) -> float:
        """Return the ratio exceeded by at most *miss_rate* of the steps.

        With too few samples for that rate the largest ratio seen is returned.
        """
        self._settle()
        count = len(self._ratios)
        if count == 0:
            return self._prior
        rank = math.ceil((count + 1) * (1.0 - miss_rate))
        ratio = self._ratios[min(rank, count) - 1]
        return ratio if count >= self._min_samples else max(ratio, self._prior)

    def exceeds(self, ratio: float) -> float:
        """Return the probability that a step takes more than *ratio* times its prediction.

        The share of the window beyond the ratio, counted at four points around it so that a
        near miss counts too, and mixed with a log-normal guess worth *min_samples* steps.
        """
        if ratio <= 0:
            return 1.0
        self._settle()
        ratios = self._ratios
        count = len(ratios)
        if ratio > FAR and not (ratios and ratios[-1] > ratio * NEAR_MISSES[0]):
            return 0.0  # The guess says less than one step in a million.
        within = sum([bisect.bisect_right(ratios, ratio * near) for near in NEAR_MISSES])
        beyond = count - within / len(NEAR_MISSES)
        guess = math.erfc(math.log(ratio) / (GUESSED_SPREAD * math.sqrt(2.0))) / 2
        return (beyond + self._min_samples * guess) / (count + self._min_samples)
