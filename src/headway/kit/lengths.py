"""Output lengths as one number: the client's bound, a quantile of the recent ones, the truth."""

from __future__ import annotations

import math
import zlib
from collections import deque
from collections.abc import Mapping

import numpy as np
from sortedcontainers import SortedList

from headway.errors import UserError
from headway.policy.predict import Predictor, within
from headway.request import Request

MODEST_GUESS_TOKENS = 256
"""Nothing known, an output is guessed to go on for this long, or for half of what is allowed."""


class MaxTokens(Predictor):
    """The client's own bound, as ORCA reserves (Yu et al., OSDI 2022, §4.2)."""

    @property
    def coverage_target(self) -> float:
        """See :class:`Predictor`."""
        return 1.0

    def predict(self, request: Request) -> int:
        """Return the bound."""
        return request.max_output_tokens

    def learn(self, request: Request) -> None:
        """Nothing to learn from a bound."""


class Oracle(Predictor):
    """The true lengths, for simulations; or guesses of a known quality.

    Args:
        lengths: Request id to true output tokens. A bound below that still applies.
        spread: Standard deviation of the error's logarithm. 0 knows the truth. Above 0 each
            request gets a guess that is off by a log-normal factor, always the same for one
            request.
        seed: Of the errors; they do not depend on the order in which requests are asked about.
    """

    def __init__(self, lengths: Mapping[str, int], spread: float = 0.0, seed: int = 0) -> None:
        self._lengths = lengths
        self._spread = spread
        self._seed = seed
        self._guesses: dict[str, float] = {}

    def predict(self, request: Request) -> int:
        """Return the guess: the truth when the spread is 0."""
        return within(request, round(self._guess(request)))

    def learn(self, request: Request) -> None:
        """Forget the guess; the truth was known before."""
        self._guesses.pop(request.request_id, None)

    def learn_cut(self, request: Request) -> None:
        """Forget the guess."""
        self._guesses.pop(request.request_id, None)

    def _guess(self, request: Request) -> float:
        name = request.request_id
        if name not in self._lengths:
            raise UserError(f"The oracle was given no length for the request {name!r:.60}.")
        if not self._spread:
            return float(self._lengths[name])
        if name not in self._guesses:
            rng = np.random.default_rng([self._seed, zlib.crc32(name.encode())])
            error = math.exp(self._spread * float(rng.standard_normal()))
            self._guesses[name] = max(self._lengths[name] * error, 1.0)
        return self._guesses[name]


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

    @property
    def coverage_target(self) -> float:
        """See :class:`Predictor`."""
        return self._quantile

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

        Without enough history half of the remaining bound is assumed, at most
        :data:`MODEST_GUESS_TOKENS`.
        """
        so_far = request.num_output_tokens
        lengths = self._sorted.get(request.slo.class_name)
        ahead = request.max_output_tokens - so_far
        guess = so_far + max(1, min(MODEST_GUESS_TOKENS, (ahead + 1) // 2))
        if lengths is not None and len(lengths) >= self._min_samples:
            longer_from = lengths.bisect_right(so_far)
            num_longer = len(lengths) - longer_from
            if num_longer >= 1:
                guess = lengths[longer_from + min(int(self._quantile * num_longer), num_longer - 1)]
        return within(request, int(guess))
