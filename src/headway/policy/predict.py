"""How long a request's output will be: guesses that only shape plans, never correctness.

A :class:`Predictor` answers with one number. A :class:`LengthDistribution` answers with a
distribution, so that whoever asks chooses how sure to be; :class:`AtQuantile` makes a predictor
of one. What they learn from is in :mod:`.lengths`, :mod:`.padding` and :mod:`.learned`.
"""

from __future__ import annotations

import math
import zlib
from collections import deque
from collections.abc import Mapping
from statistics import NormalDist
from typing import Protocol

import numpy as np
from sortedcontainers import SortedList

from headway.errors import UserError
from headway.request import Request

MODEST_GUESS_TOKENS = 256
"""Nothing known, an output is guessed to go on for this long, or for half of what is allowed."""


class Predictor(Protocol):
    """Predicts output lengths, in tokens."""

    @property
    def coverage_target(self) -> float | None:
        """Share of outputs that predictions are meant to cover, or ``None``: a mean, a guess."""
        return None

    def predict(self, request: Request) -> int:
        """Return the total output tokens expected, more than were generated already."""

    def learn(self, request: Request) -> None:
        """Take in a request that ran to its natural end, or to its bound."""

    def learn_cut(self, request: Request) -> None:
        """Take in a request that left early; most predictors make nothing of it."""
        return  # An empty body would make it abstract to mypy.


class LengthDistribution(Protocol):
    """Predicts how a request's output length is distributed, given the tokens it has already.

    All sizes are totals, in output tokens. What is asked about is the output this server will
    generate: it ends at ``max_output_tokens`` even where the model would go on.
    """

    def quantile(self, request: Request, p: float) -> int:
        """Return the least length that is not exceeded with probability *p*, from 0 to 1.

        Always more than was generated. At most ``max_output_tokens``, which is the answer for
        ``p = 1`` because nothing else is certain.
        """

    def survival(self, request: Request, num_tokens: int) -> float:
        """Return the probability that the output will exceed *num_tokens*."""

    def learn(self, request: Request) -> None:
        """Take in a request that ran to its natural end, or to its bound."""

    def learn_cut(self, request: Request) -> None:
        """Take in a request that left early: it would have been longer than it is."""


def within(request: Request, num_tokens: int) -> int:
    """Return *num_tokens* as a length *request* can still have: ahead of it, within its bound."""
    return max(min(num_tokens, request.max_output_tokens), request.num_output_tokens + 1)


def is_beyond(request: Request, num_tokens: int) -> float | None:
    """Return the survival where no history is needed, else ``None``.

    1 up to what was generated already (a live request has at least one more token to come), 0
    from the bound on.
    """
    if num_tokens <= request.num_output_tokens:
        return 1.0
    return 0.0 if num_tokens >= request.max_output_tokens else None


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


class AtQuantile(Predictor):
    """One quantile of a distribution, as a predictor.

    Args:
        p: Probability that the prediction is not exceeded, 0 to 1.
    """

    def __init__(self, lengths: LengthDistribution, p: float = 0.5) -> None:
        self._lengths = lengths
        self._p = p

    @property
    def coverage_target(self) -> float:
        """See :class:`Predictor`."""
        return self._p

    def predict(self, request: Request) -> int:
        """Return the quantile."""
        return self._lengths.quantile(request, self._p)

    def learn(self, request: Request) -> None:
        """Pass the length on."""
        self._lengths.learn(request)


class Memoryless(LengthDistribution):
    """What is assumed before anything is known: an end as likely after every token.

    The median of what is still to come is half of what the bound allows, at most
    :data:`MODEST_GUESS_TOKENS`: a bound of 100k tokens says little about most outputs.
    """

    def quantile(self, request: Request, p: float) -> int:
        """See :class:`LengthDistribution`."""
        if p >= 1.0:
            return within(request, request.max_output_tokens)
        more = _half_life_tokens(request) * -math.log2(1.0 - p)
        return within(request, request.num_output_tokens + math.ceil(more - 1e-9))

    def survival(self, request: Request, num_tokens: int) -> float:
        """See :class:`LengthDistribution`."""
        known = is_beyond(request, num_tokens)
        if known is not None:
            return known
        ahead = num_tokens - request.num_output_tokens
        return float(0.5 ** (ahead / _half_life_tokens(request)))

    def learn(self, request: Request) -> None:
        """Nothing: this is what holds without history."""

    def learn_cut(self, request: Request) -> None:
        """Nothing."""


def _half_life_tokens(request: Request) -> int:
    ahead = request.max_output_tokens - request.num_output_tokens
    return max(1, min(MODEST_GUESS_TOKENS, (ahead + 1) // 2))


class Oracle(Predictor, LengthDistribution):
    """The true lengths, for simulations; or a predictor of a known quality.

    Args:
        lengths: Request id to true output tokens. A bound below that still applies.
        spread: Standard deviation of the error's logarithm. 0 knows the truth. Above 0 each
            request gets a guess that is off by a log-normal factor, always the same for one
            request, and the quantiles are those of the truth given that guess.
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

    def quantile(self, request: Request, p: float) -> int:
        """See :class:`LengthDistribution`; without spread any *p* below 1 gives the truth."""
        if p >= 1.0:
            return within(request, request.max_output_tokens)
        if not self._spread:
            return self.predict(request)
        normal = NormalDist(math.log(self._guess(request)), self._spread)
        passed = normal.cdf(math.log(max(request.num_output_tokens, 1e-9)))
        level = passed + p * (1.0 - passed)
        if level <= 0.0 or level >= 1.0:  # Far out in a tail, where the arithmetic ends.
            return within(request, request.num_output_tokens + 1)
        return within(request, math.ceil(math.exp(min(normal.inv_cdf(level), 50.0))))

    def survival(self, request: Request, num_tokens: int) -> float:
        """See :class:`LengthDistribution`."""
        known = is_beyond(request, num_tokens)
        if known is not None:
            return known
        if not self._spread:
            return float(self.predict(request) > num_tokens)
        normal = NormalDist(math.log(self._guess(request)), self._spread)
        passed = normal.cdf(math.log(max(request.num_output_tokens, 1e-9)))
        if passed >= 1.0:
            return 0.0
        return (1.0 - normal.cdf(math.log(num_tokens))) / (1.0 - passed)

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
        guess = so_far + _half_life_tokens(request)
        if lengths is not None and len(lengths) >= self._min_samples:
            longer_from = lengths.bisect_right(so_far)
            num_longer = len(lengths) - longer_from
            if num_longer >= 1:
                guess = lengths[longer_from + min(int(self._quantile * num_longer), num_longer - 1)]
        return within(request, int(guess))
