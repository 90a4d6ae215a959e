"""The step-time model learned from the steps themselves. Nothing to profile, nothing to tune.

Recursive least squares in information form (Ljung, System Identification, §11.2) with
exponential forgetting. Differs: decode-only and mixed steps are forgotten separately, so an
hour of decoding does not erase what is known of prefill; coefficients are kept non-negative
(NNLS, Lawson & Hanson 1974), which makes the prediction monotone in every size; errors are
relative to the prediction, so short steps count as much as long ones; directions the traffic
never visits keep the proportions of the roofline, scaled by what was measured.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from headway.latency.conformal import RatioWindow
from headway.latency.laptop import LAPTOP
from headway.latency.model import FEATURES, LatencyModel, StepShape, linear_s
from headway.latency.roofline import Roofline

FORGET = 0.995
"""Weight kept of what was learned as each step of the same mode ends, and of the best rate of work
as each request does: about the last 200 speak (experiments/constants). Larger: a drift is learned
late; smaller: noise moves the prediction, and an idle hour lowers the rate."""

PRIOR_STEPS = 0.5
"""Weight of the roofline's guess in real steps, kept for ever, as a pull on each coefficient; as
measured steps the guess outweighed all others (LOG.md, first table). Larger: a wrong guess stays;
smaller: coefficients that the traffic never shows become arbitrary."""

REFIT_EVERY = 8
"""Steps between two refits once warm; every step is fitted before :data:`WARM_STEPS`. Varied in
experiments/constants. Larger: a change is learned late; smaller: steps cost more of the scheduler's
time."""

WARM_STEPS = 32
"""Steps of one mode, each of which is fitted: a long answer says nothing of prompts. 24 or 40
change one paper's rule by 0.3 and -0.1 points over 24 seeds (LOG.md, *Agents, turns and Mooncake*).
Larger: more fits; smaller: the guess is believed for longer."""

ALLOWED = math.log(1.15)
"""Error (as a logarithm) of a step that is no sign of a change, above a machine's noise.
experiments/margin measures it together with the next three. Larger: a small change goes unnoticed;
smaller: noise is called a change."""

LOUDEST = 0.25
"""The most that one step counts (a logarithm), so that a hiccup is no change: eight far-off steps
are one. Larger: a few hiccups forget what was learned; smaller: changes are noticed late."""

CHANGED = 2.0
"""Sum of the steps of one mode (logarithms), all to one side, that means the machine changed;
twelve far-off steps in a row, the rule before, missed the margin on two profiles of ten. Larger:
noticed late; smaller: noise is called a change."""

KEEP = 0.02
"""Weight left to the past after a change: a few steps' worth, so that a fit stays possible. Larger:
the old machine is believed for longer; smaller: the first steps after it decide everything."""

SCALE_WEIGHT = 0.01
"""Least weight of the newest step in measured over guessed: about the last hundred count. Varied in
experiments/constants. Larger: one odd step moves values that the traffic never shows; smaller: they
follow late."""

Vector = npt.NDArray[np.float64]


class OnlineModel(LatencyModel):
    """Begins with a roofline's guess; every step it is shown corrects it."""

    def __init__(self, roofline: Roofline | None = None) -> None:
        self._roofline = roofline or LAPTOP
        self._prior = np.array(self._roofline.coefficients())
        width = len(FEATURES)
        self._gram = {mixed: np.zeros((width, width)) for mixed in (False, True)}
        self._moment = {mixed: np.zeros(width) for mixed in (False, True)}
        self._ratios = {mixed: RatioWindow(width) for mixed in (False, True)}
        self._weight = dict.fromkeys((False, True), 0.0)
        self._unread: dict[bool, list[tuple[Vector, float, float]]] = {False: [], True: []}
        self._one_sided = {mixed: [0.0, 0.0] for mixed in (False, True)}
        self._log_scale = 0.0
        self._num_steps = 0
        self._num_mixed_steps = 0
        self._num_steps_unconfirmed = 0
        self._coefficients: tuple[float, ...] = ()
        self._fit()

    @property
    def coefficients(self) -> dict[str, float]:
        """Seconds per unit of each of :data:`~headway.latency.model.FEATURES`."""
        return dict(zip(FEATURES, self._coefficients, strict=True))

    @property
    def num_steps(self) -> int:
        """Steps learned from."""
        return self._num_steps

    @property
    def num_mixed_steps(self) -> int:
        """Steps with prompt tokens learned from."""
        return self._num_mixed_steps

    @property
    def is_warm(self) -> bool:
        """Whether :data:`WARM_STEPS` steps with prompts were learned from."""
        return self._num_mixed_steps >= WARM_STEPS

    @property
    def num_steps_unconfirmed(self) -> int:
        """Steps since one with prompt tokens took as long as predicted, or longer."""
        return self._num_steps_unconfirmed

    def predict_s(self, shape: StepShape) -> float:
        """Return the expected seconds of a step of this shape."""
        return linear_s(self._coefficients, shape)

    def margin(self, mixed: bool, miss_rate: float) -> float:
        """Return the factor that covers all but *miss_rate* of recent steps of this mode."""
        return self._ratios[mixed].upper(miss_rate)

    def exceeds(self, mixed: bool, ratio: float) -> float:
        """Return the probability that a step of this mode lasts over *ratio* x predicted."""
        return self._ratios[mixed].exceeds(ratio)

    def observe(self, shape: StepShape, duration_s: float) -> None:
        """Learn from one finished step of *duration_s* seconds (ignored unless positive)."""
        if not duration_s > 0:
            return
        predicted_s = max(self.predict_s(shape), 1e-6)
        mixed = shape.is_mixed
        features = np.array(shape.features())
        self._ratios[mixed].add(features, duration_s, predicted_s)
        self._notice_change(mixed, duration_s / predicted_s)
        self._rescale(shape, duration_s)
        # Relative to the larger of the two: neither a hiccup nor a wild guess gets leverage.
        unit_s = max(duration_s, predicted_s)
        self._unread[mixed].append((features, unit_s, duration_s / unit_s))
        self._num_steps += 1
        self._num_mixed_steps += mixed
        is_confirmed = mixed and duration_s >= predicted_s * math.exp(-ALLOWED)
        self._num_steps_unconfirmed = 0 if is_confirmed else self._num_steps_unconfirmed + 1
        num_of_mode = self._num_mixed_steps if mixed else self._num_steps
        if num_of_mode <= WARM_STEPS or self._num_steps % REFIT_EVERY == 0:
            self._fit()

    def _read(self, mixed: bool) -> None:
        """Take the steps since the last fit into the equations, all at once: that is cheaper."""
        unread = self._unread[mixed]
        if not unread:
            return
        features, units_s, durations = zip(*unread, strict=True)
        rows = np.array(features) / np.array(units_s)[:, None]
        kept = FORGET ** np.arange(len(unread) - 1, -1, -1)
        past = FORGET ** len(unread)
        weighed = rows * kept[:, None]
        self._gram[mixed] = past * self._gram[mixed] + weighed.T @ rows
        self._moment[mixed] = past * self._moment[mixed] + weighed.T @ np.array(durations)
        self._weight[mixed] = past * self._weight[mixed] + float(kept.sum())
        unread.clear()

    def _notice_change(self, mixed: bool, ratio: float) -> None:
        """Forget the past when steps keep landing to one side of the prediction.

        Page's cumulative sums (1954), one for longer and one for shorter, each step's say bounded.
        """
        error, sums = math.log(ratio), self._one_sided[mixed]
        for side, sign in enumerate((1.0, -1.0)):
            say = min(sign * error - ALLOWED, LOUDEST)
            sums[side] = max(sums[side] + say, 0.0)
        if max(sums) >= CHANGED and self._num_steps > WARM_STEPS:
            for mode in (False, True):
                self._read(mode)
                self._gram[mode] *= KEEP
                self._moment[mode] *= KEEP
                self._weight[mode] *= KEEP
                self._ratios[mode].forget()
                self._one_sided[mode] = [0.0, 0.0]

    def _rescale(self, shape: StepShape, duration_s: float) -> None:
        """Track measured / roofline, so that the guess keeps only its proportions."""
        rate = max(1.0 / (self._num_steps + 1), SCALE_WEIGHT)
        error = math.log(duration_s / self._roofline.predict_s(shape)) - self._log_scale
        self._log_scale += rate * error

    def _fit(self) -> None:
        """Solve the non-negative least squares of the weighted normal equations."""
        self._read(False)
        self._read(True)
        prior = self._prior * math.exp(self._log_scale)
        gram = self._gram[False] + self._gram[True]
        moment = self._moment[False] + self._moment[True]
        num_steps = max(self._weight[False] + self._weight[True], 1.0)
        # Each coefficient is pulled to the guess as hard as PRIOR_STEPS average steps pull;
        # one that no step has exercised stays at the guess.
        pull = PRIOR_STEPS * np.diag(gram) / num_steps + 1e-12 / (prior + 1e-12) ** 2
        # What the guess knows nothing of is an extra of steps with prompts. It is taken for nothing
        # until steps of several sizes show it: else it takes all the time of steps that are alike,
        # and a short step seems to last as long as they did.
        unknown, num_mixed = prior == 0.0, max(self._weight[True], 1.0)
        pull[unknown] = PRIOR_STEPS * np.diag(gram)[unknown] / num_mixed + 1e-12
        gram = gram + np.diag(pull)
        moment = moment + pull * prior
        # Unit diagonal first: columns differ by ten orders of magnitude.
        unit = 1.0 / np.sqrt(np.maximum(np.diag(gram), 1e-300))
        scaled = gram * unit[:, None] * unit[None, :]
        root = np.linalg.cholesky(scaled + 1e-9 * np.eye(len(unit)))
        target = np.linalg.solve(root, moment * unit)
        solution, _ = nnls(root.T, target)
        coefficients = solution * unit
        self._coefficients = tuple(coefficients.tolist())
        for window in self._ratios.values():
            window.recompute(coefficients)
