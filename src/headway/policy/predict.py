"""How long a request's output will be: guesses that only shape plans, never correctness."""

from __future__ import annotations

from collections import deque
from typing import Protocol

from sortedcontainers import SortedList

from headway.request import Request


class Predictor(Protocol):
    """Predicts output lengths, in tokens."""

    def predict(self, request: Request) -> int:
        """Return the total output tokens expected, more than were generated already."""

    def learn(self, request: Request) -> None:
        """Take in a request that ran to its natural end."""


class MaxTokens(Predictor):
    """The client's own bound, as ORCA reserves (Yu et al., OSDI 2022, §4.2)."""

    def predict(self, request: Request) -> int:
        """Return the bound."""
        return request.max_output_tokens

    def learn(self, request: Request) -> None:
        """Nothing to learn from a bound."""


class SlidingHistogram(Predictor):
    """A quantile of recent lengths of the same class, given the tokens generated so far.

    Past-Future (arXiv 2507.10150) resamples lengths of the last 200 outputs. Differs: one
    window per class, a quantile instead of samples, and conditional on survival: a request
    that has run long is compared only with those that ran longer.
    """

    def __init__(self, quantile: float = 0.5, window: int = 300, min_samples: int = 8) -> None:
        self._quantile = quantile
        self._window = window
        self._min_samples = min_samples
        self._recent: dict[str, deque[int]] = {}
        self._sorted: dict[str, SortedList] = {}

    def learn(self, request: Request) -> None:
        """Remember the length of a finished request."""
        name = request.slo.class_name
        recent = self._recent.setdefault(name, deque(maxlen=self._window))
        lengths = self._sorted.setdefault(name, SortedList())
        if len(recent) == recent.maxlen:
            lengths.remove(recent[0])
        recent.append(request.num_output_tokens)
        lengths.add(request.num_output_tokens)

    def predict(self, request: Request) -> int:
        """Return the conditional quantile, within ``max_output_tokens``.

        Without enough history half of the remaining bound is assumed, at most 256 tokens.
        """
        so_far = request.num_output_tokens
        lengths = self._sorted.get(request.slo.class_name)
        guess = so_far + max(1, min(256, (request.max_output_tokens - so_far + 1) // 2))
        if lengths is not None and len(lengths) >= self._min_samples:
            longer_from = lengths.bisect_right(so_far)
            num_longer = len(lengths) - longer_from
            if num_longer >= 1:
                guess = lengths[longer_from + min(int(self._quantile * num_longer), num_longer - 1)]
        return max(min(int(guess), request.max_output_tokens), so_far + 1)
