"""``pastfuture``: admit by the peak of the KV cache's predicted future.

Past-Future (arXiv 2507.10150 §3): in every plan the length of each running and each queued
request is drawn from the last 200 outputs, given what it generated already; the queue is
admitted in order while the peak of the future usage stays within 95 % of the cache. Differs:
before the first output is known the client's bound is taken; half a block a request is added
for blocks not yet full; prompts are chunked by the engine's budget.
"""

from __future__ import annotations

from collections import deque

import numpy as np
import numpy.typing as npt

from headway.kit.options import positive_count, share
from headway.kit.parts import Parts
from headway.kit.simple import AllFeasible, ByArrival, FixedChunk, Youngest
from headway.policy.admit import Gate
from headway.policy.batch import InOrder
from headway.policy.draft import Draft
from headway.policy.predict import Predictor
from headway.request import Request

Float = npt.NDArray[np.float64]


def future_peak(held_tokens: Float, remaining_tokens: Float) -> float:
    """Return the most tokens ever held if each request grows by one a step until it ends.

    Past-Future (arXiv 2507.10150): with requests in order of decreasing remaining length,
    usage peaks when some request ends, and then the *i* longest are all still there:
    ``max_i (held_1 + … + held_i + i * remaining_i)``. Shapes ``[requests]``.
    """
    if not len(held_tokens):
        return 0.0
    longest_first = np.argsort(-remaining_tokens, kind="stable")
    held = np.cumsum(held_tokens[longest_first])
    count = np.arange(1, len(held) + 1)
    return float(np.max(held + count * remaining_tokens[longest_first]))


class RecentLengths(Predictor):
    """The lengths of the last outputs, of all classes together, and draws from them.

    Args:
        window: Outputs remembered.
        seed: Of the draws, which are part of the rule: the same events give the same plans.
    """

    def __init__(self, window: int = 200, seed: int = 0) -> None:
        self._recent: deque[int] = deque(maxlen=window)
        self._sorted: npt.NDArray[np.int64] = np.empty(0, np.int64)
        self._rng = np.random.default_rng(seed)

    def learn(self, request: Request) -> None:
        """Remember the length of a finished request."""
        self._recent.append(request.num_output_tokens)
        self._sorted = np.sort(np.fromiter(self._recent, np.int64, len(self._recent)))

    def predict(self, request: Request) -> int:
        """Return the median of the lengths above what was generated, or the bound."""
        return int(self._lengths([request], 0.5)[0])

    def draw(self, requests: list[Request]) -> Float:
        """Return one drawn total length a request, longer than what it generated already."""
        return self._lengths(requests, self._rng.random(len(requests)))

    def _lengths(self, requests: list[Request], quantile: float | Float) -> Float:
        """Return conditional quantiles; the client's bound where nothing was longer."""
        so_far = np.array([r.num_output_tokens for r in requests], np.int64)
        bound = np.array([r.max_output_tokens for r in requests], np.int64)
        longer_from = np.searchsorted(self._sorted, so_far, side="right")
        num_longer = len(self._sorted) - longer_from
        if not len(self._sorted):
            bounds: Float = np.maximum(bound, so_far + 1).astype(np.float64)
            return bounds
        rank = longer_from + (quantile * num_longer).astype(np.int64)
        drawn = self._sorted[np.minimum(rank, len(self._sorted) - 1)]
        lengths = np.where(num_longer > 0, np.minimum(drawn, bound), bound)
        totals: Float = np.maximum(lengths, so_far + 1).astype(np.float64)
        return totals


class PastFuture(Gate):
    """Start a request only if the future's peak stays below the cache minus a reserve.

    Lengths are drawn anew for everybody in every plan. A request that alone exceeds the
    cache starts when nobody else runs.
    """

    def __init__(self, history: RecentLengths, reserve_share: float = 0.05) -> None:
        self._history = history
        self._reserve_share = reserve_share
        self._is_new = True
        self._held: Float = np.empty(0)
        self._remaining: Float = np.empty(0)

    def begin(self, draft: Draft) -> None:
        """Forget the last plan."""
        self._is_new = True

    def fits(self, draft: Draft, request: Request) -> bool:
        """Return whether *request* fits; who did is counted for the rest of this plan."""
        if self._is_new:
            running = [r for r in draft.given.live.running() if r.request_id not in draft.gone]
            self._is_new = False
            self._held, self._remaining = self._usage(draft, running)
        held, remaining = self._usage(draft, [request])
        held = np.concatenate([self._held, held])
        remaining = np.concatenate([self._remaining, remaining])
        most = draft.given.capacity_tokens * (1.0 - self._reserve_share)
        if len(held) > 1 and future_peak(held, remaining) > most:
            return False
        self._held, self._remaining = held, remaining
        return True

    def _usage(self, draft: Draft, requests: list[Request]) -> tuple[Float, Float]:
        """Return tokens held and still to come; half a block each for partly filled ones."""
        if not requests:
            return np.empty(0), np.empty(0)
        num_tokens = np.array([r.num_tokens for r in requests], np.float64)
        so_far = np.array([r.num_output_tokens for r in requests], np.float64)
        remaining = self._history.draw(requests) - so_far
        most = num_tokens + np.maximum(remaining, 0.0)
        aside = np.array([draft.given.layout.aside_tokens(int(n)) for n in most], np.float64)
        return num_tokens + aside + draft.given.layout.block_size_tokens / 2, remaining


def parts(window: int = 200, reserve_share: float = 0.05, seed: int = 0) -> Parts:
    """Starts whom the drawn future of the cache has room for; promises decide nothing.

    Args:
        window: Outputs remembered.
        reserve_share: Share of the cache kept free of predictions.
        seed: Of the draws.
    """
    history = RecentLengths(positive_count("window", window), seed)
    return Parts(
        predictor=history,
        feasibility=AllFeasible(),
        prioritizer=ByArrival(),
        chunker=FixedChunk(),
        gate=PastFuture(history, share("reserve_share", reserve_share, may_be_0=True)),
        batcher=InOrder(may_pass=0),
        preemptor=Youngest(),
        heeds_promises=False,
    )
