"""Distributions of token counts, given by a few of their quantiles."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist

import numpy as np

LOGNORMAL_PROBABILITIES = (0.0005, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.9995)
"""Where a log-normal is pinned down; the first and last stand for its ends, so it is bounded."""


@dataclass(frozen=True, slots=True)
class LengthDistribution:
    """A length distribution: known quantiles, joined by straight lines in the logarithm.

    Published statistics of a trace are quantiles, so this repeats them exactly and has nothing
    to fit. Between two of them lengths are log-uniform.

    Attributes:
        knots: Pairs of probability and tokens, both increasing, from probability 0 to 1.
    """

    knots: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        probabilities = [p for p, _ in self.knots]
        if probabilities[0] != 0.0 or probabilities[-1] != 1.0:
            raise ValueError("the knots must run from probability 0 to 1")
        if any(a[0] >= b[0] or a[1] > b[1] for a, b in pairwise(self.knots)):
            raise ValueError("the knots must increase")
        if self.knots[0][1] < 1:
            raise ValueError("a length is at least one token")

    @property
    def mean_tokens(self) -> float:
        """Return the exact mean of the distribution, before rounding to whole tokens."""
        total = 0.0
        for (p, low), (q, high) in pairwise(self.knots):
            total += (q - p) * (low if high == low else (high - low) / math.log(high / low))
        return total

    def sample(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Return *count* independent lengths, whole tokens of at least 1; shape ``(count,)``."""
        ps, tokens = zip(*self.knots, strict=True)
        drawn = np.exp(np.interp(rng.random(count), ps, np.log(tokens)))
        tokens_drawn: np.ndarray = np.maximum(np.rint(drawn), 1).astype(np.int64)
        return tokens_drawn

    def scaled(self, factor: float) -> LengthDistribution:
        """Return the same distribution with every length times *factor*, never below 1 token."""
        return LengthDistribution(tuple((p, max(tokens * factor, 1.0)) for p, tokens in self.knots))


def lognormal(mean_tokens: float, sigma: float) -> LengthDistribution:
    """Return a bounded log-normal with this mean and this deviation of the logarithm.

    For data of which only the mean is published. The median is ``mean * exp(-sigma**2 / 2)``
    up to the bounds; the whole is scaled so that the mean is exact.
    """
    median = mean_tokens * math.exp(-sigma * sigma / 2)
    tokens = [median * math.exp(sigma * NormalDist().inv_cdf(p)) for p in LOGNORMAL_PROBABILITIES]
    ends = (0.0, *LOGNORMAL_PROBABILITIES[1:-1], 1.0)
    shape = LengthDistribution(tuple(zip(ends, tokens, strict=True)))
    return shape.scaled(mean_tokens / shape.mean_tokens)
