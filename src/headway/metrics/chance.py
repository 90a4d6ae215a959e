"""The chance that a promise will be kept: told as its request starts, learned from those before it.

In are requests whose plan says what speaks against their promise as they first start. Kept is what
the book of lateness says was kept. Of requests that never start, and of those that a client or an
engine ends before anything was late, nothing is learned. A chance decides nothing: no policy knows.

Against a promise speak how few steps its first token has to spare, and what would be computed again
if its KV went, beside the pause allowed. What they weigh is a logistic regression over the newest
starts, in steps by the bound of Böhning & Lindsay (1988), which do not overshoot. A broken promise
is known when it looks broken, sooner than an end, or later: so starts of one age count alike, by
how much is known at that age.

What was told too much or too little in a decile pulls its next chances to its lower or upper edge:
so calibration is won whatever the traffic does (Foster 1999; Vovk et al. 2005). Differs: never out
of the decile, for a chance should say what the plan sees.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from headway.metrics.deciles import DECILES, Calibration, decile_of
from headway.metrics.request_lateness import Lateness, LiveLateness
from headway.policy.plan import Chunk, StartRisk
from headway.request import GAPS_KEPT_PERCENT

RECENT = 40.0
"""Starts after which one counts for half (LOG.md, *Expected against kept*). Larger: chances lag
behind a load that grows; smaller: they follow luck."""

REMEMBERED = 512
"""Starts that are learned from; 256 tell too little where as many run at once, 1,024 are no better
(there too). Larger: more to compute; smaller: what takes long is not seen."""

LEARNED_EVERY = 8
"""Starts between two steps of the weights: one takes as long as everything else of eight starts
together. Larger: chances lag; smaller: the engine waits for what decides nothing."""

TAIL = 0.1
"""Power of the expected preemptions that the risk of each grows with: a forecast is too sure of its
tails (there too). Larger: only a full cache is a risk; smaller: one half full is as much of one."""

GUESS = ((4.0, 0.3), (-3.5, 1.0), (-90.0, 1.6))
"""Weights before any start, of a constant, of a late first token and of lost KV, and how hard each
is held (its precision); fitted to the loads of experiments/calibration. Larger weights: a young
server tells higher chances; larger precisions: it learns more slowly."""

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


def is_kept(lateness: Lateness, *, ended_well: bool) -> bool | None:
    """Return whether a promise was kept; ``None`` where it was cut off before it was broken."""
    return lateness.attained if ended_well or lateness.broke else None


def looks_broken(live: LiveLateness, at_s: float) -> bool:
    """Return whether a request that has not ended broke its promise, as far as can be told."""
    slo, last_s = live.slo, live.last_token_at_s
    if live.ttft_late_s or live.longest_gap_s > slo.longest_pause_s:
        return True
    if slo.jct_s is not None and at_s > live.arrived_at_s + slo.jct_s:
        return True
    if last_s is None:
        return slo.ttft_s is not None and at_s > live.arrived_at_s + slo.ttft_s
    if live.mark is None and at_s > last_s + slo.longest_pause_s:
        return True
    forgiven = (100 - GAPS_KEPT_PERCENT) * live.predicted_output_tokens / 100
    return slo.tbt_s is not None and live.num_late_gaps > forgiven


class Chances:
    """Tells chances, and learns from what becomes of them.

    Args:
        live: The book's live requests.
    """

    def __init__(self, live: Mapping[str, LiveLateness]) -> None:
        self._live = live
        self.calibration = Calibration()
        self._guess, self._held = np.array(GUESS).T
        self._weights = self._guess
        self._planned: dict[str, StartRisk] = {}
        self._open: dict[str, tuple[int, float]] = {}  # The number of a start, and its chance.
        self._broken: set[str] = set()  # Those of the open ones that look so.
        self._owed = [0.0] * DECILES  # Promises kept less those that were told.
        self._num_started = 0
        self._num_learned = 0
        # A ring of starts. One that is open takes for ever, one that tells nothing never was.
        self._risks = np.zeros((REMEMBERED, len(GUESS)))
        self._at_s, self._took_s = (np.full(REMEMBERED, math.inf) for _ in range(2))
        self._kept = np.zeros(REMEMBERED)

    def planned(self, chunks: Iterable[Chunk]) -> None:
        """A plan was made with these chunks."""
        self._planned = {c.request_id: c.risk for c in chunks if c.risk is not None}

    def started(self, admitted: Iterable[str], at_s: float) -> None:
        """The engine started these requests; those whose risks were planned are told a chance."""
        if not self._planned:
            return
        for request_id in admitted:
            risk = self._planned.pop(request_id, None)
            if risk is None or request_id not in self._live:
                continue
            if self._num_started >= self._num_learned + LEARNED_EVERY:
                self._num_learned = self._num_started
                self._learn(at_s)
            risks, place = risks_of(risk), self._num_started % REMEMBERED
            chance = self._pulled(float(logistic(self._weights @ risks)))
            self._risks[place], self._at_s[place], self._took_s[place] = risks, at_s, math.inf
            self._open[request_id] = self._num_started, chance
            self._num_started += 1

    def ended(self, request_id: str, at_s: float, kept: bool | None) -> float | None:
        """A request left; return the chance it was told, ``None`` where it was told none."""
        if request_id not in self._open:
            return None
        number, chance = self._open.pop(request_id)
        looked_broken = request_id in self._broken
        self._broken.discard(request_id)
        if kept is not None:
            self.calibration.add(chance, kept)
        open_chance = 0.0 if looked_broken else chance
        self._owed[decile_of(chance)] += (chance if kept is None else kept) - open_chance
        if self._num_started - number > REMEMBERED:
            return chance  # Another has its place.
        place = number % REMEMBERED
        if kept is None:
            self._at_s[place] = math.inf
        elif kept or not looked_broken:
            self._took_s[place], self._kept[place] = at_s - self._at_s[place], kept
        return chance

    def _learn(self, now_s: float) -> None:
        """Move the weights to what starts so far say, from where they are."""
        self._look(now_s)
        here = np.flatnonzero(self._at_s < math.inf)
        age_s, is_closed = now_s - self._at_s[here], self._took_s[here] < math.inf
        if not is_closed.any():
            return
        known, kept = outcomes(
            age_s, np.minimum(self._took_s[here], age_s), is_closed, self._kept[here]
        )
        num_since = (self._num_started - 1 - here) % REMEMBERED
        counts, risks = known * 2.0 ** (-num_since / RECENT), self._risks[here]
        bound = np.diag(self._held) + (risks.T * counts * 2.0**-2) @ risks
        for _ in range(LEARNED_EVERY):
            slope = risks.T @ (counts * (kept - logistic(risks @ self._weights)))
            slope += self._held * (self._guess - self._weights)
            self._weights = self._weights + np.linalg.solve(bound, slope)

    def _look(self, now_s: float) -> None:
        """Take in which promises of open starts look broken: their ends may be long in coming."""
        for request_id, (number, chance) in self._open.items():
            if request_id not in self._broken and looks_broken(self._live[request_id], now_s):
                self._broken.add(request_id)
                self._owed[decile_of(chance)] -= chance
                if self._num_started - number <= REMEMBERED:
                    place = number % REMEMBERED
                    self._took_s[place], self._kept[place] = now_s - self._at_s[place], 0.0

    def _pulled(self, chance: float) -> float:
        """Return a chance nearer to an edge of its decile, by the promises owed to it."""
        decile = decile_of(chance)
        owed = self._owed[decile]
        edge = (decile + (owed > 0.0)) / DECILES
        return chance + (edge - chance) * abs(owed) / (1.0 + abs(owed))


def risks_of(risk: StartRisk) -> Floats:
    """Return what speaks against a promise: 1, its first token's risk, its KV's (0 to 1)."""
    lost = risk.redo_pauses / (1.0 + risk.redo_pauses)
    return np.array([1.0, 1.0 / (1.0 + risk.steps_to_spare), min(risk.victims, 1.0) ** TAIL * lost])


def logistic(x: Floats | float) -> Floats:
    """Return the chance of these log-odds."""
    chance: Floats = (1.0 + np.tanh(np.asarray(x) / 2)) / 2
    return chance


def outcomes(
    age_s: Floats, lasted_s: Floats, is_closed: Bools, kept: Floats
) -> tuple[Floats, Floats]:
    """Return how much is known of starts of each age, and what becomes of each: 1 where it is kept.

    Cumulative incidence of two ends with open starts as censored (Aalen & Johansen 1978). One that
    is open counts as those did that lasted longer; who outlives all of them is kept.

    Args:
        lasted_s: Until it was closed, or its age.
        kept: What became of those that are closed.
    """
    order = np.lexsort((~is_closed, lasted_s))
    ends = is_closed[order] / np.arange(len(order), 0, -1)
    stays = np.append(1.0, np.cumprod(1.0 - ends))
    keeps = np.append(0.0, np.cumsum(stays[:-1] * ends * kept[order]))
    place = np.searchsorted(lasted_s[order], age_s, side="right")
    later = (keeps[-1] - keeps[place] + stays[-1]) / np.maximum(stays[place], 1e-9)
    return 1.0 - stays[place], np.where(is_closed, kept, later)
