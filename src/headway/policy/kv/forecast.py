"""How much KV will be in use, as a distribution: no length is guessed, every length is weighed.

Each resident holds what it holds now plus one token a step, for as long as it lives; how long
that is follows the lengths its class has shown, given the tokens it has already generated. The sum
over independent residents has a mean and a variance at every future step, which is all a
decision needs. A curve of quantiles has neither: the sum of medians is not the median of the sum,
and with a hundred residents their errors cancel.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from headway.request import Request

HORIZONS = np.array([1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192])
"""Steps ahead at which the future is looked at; it is smooth between them."""

Floats = npt.NDArray[np.float64]


class Lifetimes:
    """Output lengths by class, as survival functions over a sliding window.

    Until a class has shown *min_samples* lengths, a constant hazard with a mean of a quarter of
    the bound, at most 256 tokens, stands in for as many samples as are missing.
    """

    def __init__(self, window: int = 300, min_samples: int = 20) -> None:
        self._window = window
        self._min_samples = min_samples
        self._recent: dict[str, deque[int]] = {}
        self._sorted: dict[str, npt.NDArray[np.int64]] = {}

    def learn(self, class_name: str, num_output_tokens: int) -> None:
        """Remember the length of a request that ran to its natural end."""
        recent = self._recent.setdefault(class_name, deque(maxlen=self._window))
        recent.append(num_output_tokens)
        self._sorted.pop(class_name, None)

    def survive(self, class_name: str, so_far: Floats, bound: Floats) -> Floats:
        """Return P(still running h steps from now | alive now).

        Args:
            so_far: Tokens generated, shape (n,).
            bound: The clients' own limits, shape (n,).

        Returns:
            Shape (n, len(HORIZONS)).
        """
        lengths = self._lengths(class_name)
        weight = min(len(lengths) / self._min_samples, 1.0)
        ahead = so_far[:, None] + HORIZONS[None, :]
        scale = np.clip(bound / 4.0, 1.0, 256.0)
        alive = np.exp(-HORIZONS[None, :] / scale[:, None])
        if weight > 0.0:
            count = len(lengths)
            longer_now = count - np.searchsorted(lengths, so_far, side="right")
            longer_then = count - np.searchsorted(lengths, ahead, side="right")
            # Who outlived the whole window goes on at the window's own pace.
            known = longer_then / np.maximum(longer_now, 1)[:, None]
            pace = np.exp(-HORIZONS / max(float(lengths.mean()) / 2.0, 1.0))
            known = np.where(longer_now[:, None] > 0, known, pace[None, :])
            alive = weight * known + (1.0 - weight) * alive
        return np.where(ahead < bound[:, None], alive, 0.0)

    def mean_remaining(self, class_name: str, so_far: int, bound: int) -> float:
        """Return the tokens a request is expected to generate still, at least one."""
        alive = self.survive(class_name, np.array([float(so_far)]), np.array([float(bound)]))[0]
        return max(float(np.trapezoid(np.append(1.0, alive), np.append(0, HORIZONS))), 1.0)

    def _lengths(self, class_name: str) -> npt.NDArray[np.int64]:
        found = self._sorted.get(class_name)
        if found is None:
            recent = self._recent.get(class_name, ())
            found = np.sort(np.fromiter(recent, np.int64, len(recent)))
            self._sorted[class_name] = found
        return found


class Forecast:
    """Mean and variance of the KV in use at each of :data:`HORIZONS`, in tokens."""

    def __init__(self, lifetimes: Lifetimes, slop_tokens: float) -> None:
        self._lifetimes = lifetimes
        self._slop_tokens = slop_tokens
        self.mean: Floats = np.zeros(len(HORIZONS))
        self.variance: Floats = np.zeros(len(HORIZONS))
        self.num_residents = 0
        self.held_tokens = 0.0

    def add(self, requests: Iterable[Request]) -> None:
        """Count requests in that run, or that a plan under way admits."""
        by_class: dict[str, list[Request]] = {}
        for request in requests:
            by_class.setdefault(request.slo.class_name, []).append(request)
        for class_name, members in by_class.items():
            held = np.array([float(max(r.prefill_target_tokens, r.num_tokens)) for r in members])
            mean, variance = self._usage(class_name, members, held)
            self.mean = self.mean + mean
            self.variance = self.variance + variance
            self.num_residents += len(members)
            self.held_tokens += float(held.sum())

    def _usage(
        self, class_name: str, members: list[Request], held: Floats
    ) -> tuple[Floats, Floats]:
        so_far = np.array([float(r.num_output_tokens) for r in members])
        bound = np.array([float(r.max_output_tokens) for r in members])
        alive = self._lifetimes.survive(class_name, so_far, bound)
        use = held[:, None] + HORIZONS[None, :] + self._slop_tokens
        return (use * alive).sum(axis=0), (use * use * alive * (1.0 - alive)).sum(axis=0)

    def excess(self, capacity: float) -> float:
        """Return the expected tokens by which the worst moment ahead exceeds *capacity*."""
        return expected_excess(self.mean, self.variance, capacity)

    def excess_with(self, request: Request, capacity: float) -> float:
        """Return the same if *request* were admitted too."""
        held = np.array([float(request.num_tokens)])
        mean, variance = self._usage(request.slo.class_name, [request], held)
        return expected_excess(self.mean + mean, self.variance + variance, capacity)

    def steps_until(self, num_tokens: float, capacity: float) -> float:
        """Return after how many steps *num_tokens* more are expected to fit; ``inf`` if never."""
        fits = np.flatnonzero(self.mean + num_tokens <= capacity)
        return float(HORIZONS[fits[0]]) if len(fits) else math.inf


def expected_excess(mean: Floats, variance: Floats, capacity: float) -> float:
    """Return the largest over the horizons of E[(U - capacity)+] for a normal U.

    The unit normal loss function of inventory theory (Silver, Pyke & Peterson, ch. 7).
    """
    deviation = np.sqrt(np.maximum(variance, 1.0))
    z = (capacity - mean) / deviation
    density = np.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
    beyond = 0.5 * _erfc(z / math.sqrt(2.0))
    return float(np.max(deviation * (density - z * beyond)))


def _erfc(x: Floats) -> Floats:
    """Return the complementary error function of a short array."""
    return np.array([math.erfc(value) for value in x.tolist()])
