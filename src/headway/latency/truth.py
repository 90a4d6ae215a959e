"""What a virtual step really takes: a profile, and how real machines stray from theirs.

A policy never sees a truth; it sees the durations that come out of it, one step at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from headway.errors import UserError
from headway.latency.model import StepShape
from headway.latency.profile import Profile

DRAWN_AT_ONCE = 1024
"""Random numbers drawn in one go: one call of the generator a step would cost ten times more."""


@dataclass(frozen=True, slots=True)
class Drift:
    """A slow or sudden change of speed: a clock throttled by heat, a neighbour that moved in.

    Attributes:
        kind: ``linear`` reaches *amount* after *steps* steps and stays; ``wave`` swings between
            plus and minus *amount* with a period of *steps*; ``jump`` sets in at step *steps*.
        amount: Relative change; 0.5 makes a step take half as long again. Above -1.
        steps: See *kind*; at least 1.
    """

    kind: Literal["linear", "wave", "jump"]
    amount: float
    steps: int

    def __post_init__(self) -> None:
        if self.kind not in ("linear", "wave", "jump"):
            raise UserError(f"drift must be linear, wave or jump, not {self.kind!r:.60}.")
        limit = 1.0 if self.kind == "wave" else math.inf
        if not -1.0 < self.amount < limit:
            raise UserError(
                f"The amount of a {self.kind} drift must lie between -1 and {limit:g},"
                f" not be {self.amount:g}."
            )
        if self.steps < 1:
            raise UserError(f"The steps of a drift must be at least 1, not {self.steps}.")

    def factor(self, step: int) -> float:
        """Return what the time of step number *step* (from 0) is multiplied by."""
        if self.kind == "linear":
            return 1.0 + self.amount * min(step / self.steps, 1.0)
        if self.kind == "wave":
            return 1.0 + self.amount * math.sin(2.0 * math.pi * step / self.steps)
        return 1.0 + self.amount if step >= self.steps else 1.0


@dataclass(frozen=True, slots=True)
class Hiccups:
    """Rare pauses of the host that have nothing to do with what a step computes.

    Attributes:
        chance: Share of the steps that have one.
        mean_s: Mean of their exponentially distributed length.
    """

    chance: float = 0.0
    mean_s: float = 0.05

    def __post_init__(self) -> None:
        if not 0.0 <= self.chance <= 1.0:
            raise UserError(f"The chance of a hiccup must be from 0 to 1, not {self.chance:g}.")
        if not 0.0 <= self.mean_s < math.inf:
            raise UserError(f"The mean_s of hiccups must be at least 0, not {self.mean_s:g}.")


NO_HICCUPS = Hiccups()


class Truth:
    """Seconds of a step, one call a step; the same arguments give the same sequence.

    Noise and hiccups are drawn from streams of their own: switching one on leaves the other as
    it was, so runs can be compared pair by pair.

    Args:
        scale: Multiplies every step: the band within which a profile is trusted is 0.8 to 1.2.
        noise: Standard deviation of the logarithm of a factor with mean 1.
        seed: Of noise and hiccups.

    Raises:
        UserError: The scale is not positive, or the noise negative or above 2.
    """

    def __init__(
        self,
        profile: Profile,
        scale: float = 1.0,
        noise: float = 0.0,
        drift: Drift | None = None,
        hiccups: Hiccups = NO_HICCUPS,
        seed: int = 0,
    ) -> None:
        if not 0.0 < scale < math.inf:
            raise UserError(f"The scale of step times must be above 0, not {scale:g}.")
        if not 0.0 <= noise <= 2.0:
            raise UserError(f"The noise of step times must be from 0 to 2, not {noise:g}.")
        if seed < 0:
            raise UserError(f"The seed must be at least 0, not {seed}.")
        self.profile = profile
        self._step_s = profile.cost.step_s
        self._scale = scale
        self._noise = noise
        self._drift = drift
        self._hiccups = hiccups
        for_noise, for_hiccups = np.random.SeedSequence(seed).spawn(2)
        self._noise_rng = np.random.default_rng(for_noise)
        self._hiccup_rng = np.random.default_rng(for_hiccups)
        self._factors: list[float] = []
        self._pauses_s: list[float] = []
        self._num_steps = 0
        self._is_plain = noise == 0.0 and drift is None and hiccups.chance == 0.0

    def __call__(self, shape: StepShape) -> float:
        """Return the seconds of the next step."""
        seconds = self._scale * self._step_s(shape)
        if self._is_plain:
            return seconds
        step = self._num_steps
        self._num_steps += 1
        at = step % DRAWN_AT_ONCE
        if at == 0:
            self._draw()
        if self._drift is not None:
            seconds *= self._drift.factor(step)
        return seconds * self._factors[at] + self._pauses_s[at]

    def _draw(self) -> None:
        """Draw the factors and pauses of the next steps."""
        z = self._noise_rng.standard_normal(DRAWN_AT_ONCE)
        # exp(-noise^2 / 2) is what makes the mean of a log-normal factor one.
        self._factors = np.exp(self._noise * z - self._noise**2 / 2.0).tolist()
        hit = self._hiccup_rng.random(DRAWN_AT_ONCE) < self._hiccups.chance
        lengths_s = self._hiccup_rng.exponential(self._hiccups.mean_s, DRAWN_AT_ONCE)
        self._pauses_s = (hit * lengths_s).tolist()
