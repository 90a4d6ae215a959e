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
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from headway.kv_layout import KvLayout
from headway.policy.lengths.survival import SurvivalCurve
from headway.request import Request

HORIZONS = np.array([1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192])
"""Steps ahead at which the future is looked at; it is smooth between them. Varied in
experiments/constants. More: plans cost more; fewer: the worst moment falls between two."""

NORMAL = NormalDist()

WINDOW = 300
"""Outputs of a class that are remembered. Its size is in experiments/constants; a full one at the
start is worth 2.5 points on ShareGPT turns, and -1.2 to 0.6 elsewhere (LOG.md, *Dead ends*).
Larger: a change of lengths is seen late; smaller: long outputs are seldom in it."""

GUESSED_SHARE = 0.25
"""Share of its bound that an output is guessed to take before any ended: bounds are generous. With
the whole of it a short overload refuses requests that could wait
(tests/conformance/test_promises.py). Larger: a young server starts too few; smaller: too many."""

MOST_GUESSED_TOKENS = 256.0
"""The most tokens guessed so, a chat's answer: many clients set a bound they never reach
(experiments/constants). Larger: a young server starts too few; smaller: too many."""

MOST_KNOWN = 4096
"""Results remembered by class, about a megabyte: every step asks about each waiting request.
Larger: more memory; smaller: the same is computed more often."""

Floats = npt.NDArray[np.float64]


class Lifetimes:
    """Output lengths by class, as survival functions over a sliding window.

    A constant hazard with a guessed mean, a share of the bound, counts as one more sample. Outputs
    that were cut (by the client's bound, or because it left) count as longer than they got.
    """

    def __init__(self) -> None:
        self._recent: dict[str, deque[tuple[int, bool]]] = {}
        self._curves: dict[str, SurvivalCurve] = {}
        self._pace: dict[str, float] = {}
        self._known: dict[str, dict[tuple[int, int], tuple[Floats, float]]] = {}

    def learn(self, class_name: str, num_output_tokens: int, is_cut: bool = False) -> None:
        """Remember the length of an output that has ended, or that was cut there."""
        recent = self._recent.setdefault(class_name, deque())
        curve = self._curves.setdefault(class_name, SurvivalCurve())
        if len(recent) == WINDOW:
            curve.remove(*recent.popleft())
        recent.append((num_output_tokens, is_cut))
        curve.add(num_output_tokens, is_cut)
        self._pace.pop(class_name, None)
        self._known.pop(class_name, None)

    def survive(self, class_name: str, so_far: Floats, bound: Floats) -> Floats:
        """Return P(still running h steps from now | alive now).

        Args:
            so_far: Tokens generated, shape (n,).
            bound: The clients' own limits, shape (n,).

        Returns:
            Shape (n, len(HORIZONS)).
        """
        ahead = so_far[:, None] + HORIZONS[None, :]
        scale = np.clip(GUESSED_SHARE * bound, 1.0, MOST_GUESSED_TOKENS)
        alive = np.exp(-HORIZONS[None, :] / scale[:, None])
        curve = self._curves.get(class_name)
        if curve is not None and len(curve):
            weight = len(curve) / (len(curve) + 1)
            now, then = curve.at(so_far)[:, None], curve.at(ahead)
            # Who outlived the whole window goes on at the window's own pace.
            pace = np.exp(-HORIZONS / self._pace_of(class_name))
            known = np.where(now > 0.0, then / np.where(now > 0.0, now, 1.0), pace[None, :])
            alive = weight * known + (1.0 - weight) * alive
        return np.where(ahead < bound[:, None], alive, 0.0)

    def _pace_of(self, class_name: str) -> float:
        """Return the mean of what is still to come of such outputs, in tokens."""
        if class_name not in self._pace:
            recent = self._recent[class_name]
            mean = sum(tokens for tokens, _ in recent) / len(recent)
            self._pace[class_name] = max(mean, 1.0)
        return self._pace[class_name]

    def of_one(self, class_name: str, so_far: int, bound: int) -> tuple[Floats, float]:
        """Return :meth:`survive` of one request, shape (len(HORIZONS),), and the tokens to come.

        The second is the mean number of tokens it will still generate, at least one.
        """
        known = self._known.setdefault(class_name, {})
        answer = known.get((so_far, bound))
        if answer is None:
            if len(known) >= MOST_KNOWN:
                known.clear()
            alive = self.survive(class_name, np.array([float(so_far)]), np.array([float(bound)]))[0]
            mean = float(np.trapezoid(np.append(1.0, alive), np.append(0, HORIZONS)))
            answer = known[so_far, bound] = (alive, max(mean, 1.0))
        return answer

    def mean_remaining(self, class_name: str, so_far: int, bound: int) -> float:
        """Return the tokens a request is expected to generate still, at least one."""
        return self.of_one(class_name, so_far, bound)[1]


class Forecast:
    """Mean, variance and most of the KV in use at each of :data:`HORIZONS`, in tokens."""

    def __init__(self, lifetimes: Lifetimes, layout: KvLayout) -> None:
        self._lifetimes = lifetimes
        self._layout = layout
        self.mean: Floats = np.zeros(len(HORIZONS))
        self.variance: Floats = np.zeros(len(HORIZONS))
        self.most: Floats = np.zeros(len(HORIZONS))
        self.num_residents = 0
        self.held_tokens = 0.0
        self._victims: tuple[float, float] | None = None

    def add(self, requests: Iterable[Request]) -> None:
        """Count requests in that run, or that a plan under way admits."""
        by_class: dict[str, list[Request]] = {}
        for request in requests:
            by_class.setdefault(request.slo.class_name, []).append(request)
        self._victims = None
        for class_name, members in by_class.items():
            tokens = [max(r.prefill_target_tokens, r.num_tokens) for r in members]
            so_far = np.array([float(r.num_output_tokens) for r in members])
            bound = np.array([float(r.max_output_tokens) for r in members])
            alive = self._lifetimes.survive(class_name, so_far, bound)
            use = self._layout.usual_tokens(np.array(tokens, float)[:, None] + HORIZONS[None, :])
            self.mean = self.mean + (use * alive).sum(axis=0)
            self.variance = self.variance + (use * use * alive * (1.0 - alive)).sum(axis=0)
            self.most = self.most + (use * (alive > 0.0)).sum(axis=0)
            self.num_residents += len(members)
            self.held_tokens += float(sum(map(self._layout.held_tokens, tokens)))

    @property
    def victim_tokens(self) -> float:
        """What a victim gives back: the mean a resident holds."""
        return max(self.held_tokens / max(self.num_residents, 1), 1.0)

    def victims(self, capacity: float) -> float:
        """Return how many must be preempted, expected, at the worst moment ahead."""
        if self._victims is None or self._victims[0] != capacity:
            found = expected_victims(
                self.mean, self.variance, self.most, capacity, self.victim_tokens
            )
            self._victims = capacity, found
        return self._victims[1]

    def victims_with(self, request: Request, capacity: float) -> float:
        """Return the same if *request* were admitted too."""
        alive, _ = self._lifetimes.of_one(
            request.slo.class_name, request.num_output_tokens, request.max_output_tokens
        )
        use = self._layout.usual_tokens(request.num_tokens + HORIZONS) - request.num_held_tokens
        mean = use * alive
        return expected_victims(
            self.mean + mean,
            self.variance + mean * use * (1.0 - alive),
            self.most + use * (alive > 0.0),
            capacity,
            self.victim_tokens,
        )

    def steps_until(self, num_tokens: float, capacity: float) -> float:
        """Return after how many steps *num_tokens* more are expected to fit; ``inf`` if never."""
        fits = np.flatnonzero(self.mean + num_tokens <= capacity)
        return float(HORIZONS[fits[0]]) if len(fits) else math.inf


def expected_victims(
    mean: Floats, variance: Floats, most: Floats, capacity: float, victim_tokens: float
) -> float:
    """Return the largest over the horizons of the expected number of victims.

    The use U is normal, cut at *most*: a sum of a handful has no tail beyond all of them living
    on. Tokens beyond *capacity* come from the unit normal loss (Silver, Pyke & Peterson, ch. 7).
    """
    worst = 0.0
    for mu, square, top in zip(mean.tolist(), variance.tolist(), most.tolist(), strict=True):
        if top <= capacity:
            continue
        deviation = math.sqrt(max(square, 1.0))
        low, high = (capacity - mu) / deviation, (top - mu) / deviation
        excess = deviation * (unit_loss(low) - unit_loss(high))
        worst = max(worst, excess / victim_tokens)
    return worst


def unit_loss(z: float) -> float:
    """Return E[(Z - z)+] of a standard normal Z."""
    return max(NORMAL.pdf(z) - z * NORMAL.cdf(-z), 0.0)
