"""What open starts count as, against the shares worked out one instant at a time."""

from __future__ import annotations

import numpy as np
import pytest

from headway.metrics.chance import outcomes


def slow(
    lasted_s: list[float], is_closed: list[bool], kept: list[float], age_s: float
) -> tuple[float, float]:
    """Return the share known at an age, and the share kept of who is open then.

    At each instant an equal share of whoever got that far closes; the open ones are as the others.
    """
    left, known, kept_later = 1.0, 0.0, 0.0
    for instant_s in sorted({t for t, closed in zip(lasted_s, is_closed, strict=True) if closed}):
        got_there = sum(t >= instant_s for t in lasted_s)
        closing = [i for i, t in enumerate(lasted_s) if t == instant_s and is_closed[i]]
        each = left / got_there
        if instant_s <= age_s:
            known += each * len(closing)
        else:
            kept_later += each * sum(kept[i] for i in closing)
        left -= each * len(closing)
    return known, (kept_later + left) / (1.0 - known) if known < 1.0 - 1e-9 else 0.0


@pytest.mark.parametrize("seed", range(30))
def test_outcomes(seed: int) -> None:
    """With ties, with many open, with none, and with one."""
    rng = np.random.default_rng(seed)
    num = int(rng.integers(1, 40))
    age_s = np.round(rng.exponential(3.0, num), 1)
    took_s = np.round(rng.exponential((0.5, 3.0, 30.0)[seed % 3], num), 1)
    is_closed = took_s <= age_s
    lasted_s = np.minimum(took_s, age_s)
    kept = (rng.random(num) < 0.6).astype(float)
    known, becomes = outcomes(age_s, lasted_s, is_closed, kept)
    lists = (lasted_s.tolist(), is_closed.tolist(), kept.tolist())
    slowly = [slow(*lists, float(age)) for age in age_s]
    assert known.tolist() == pytest.approx([k for k, _ in slowly], abs=1e-9)
    assert becomes[is_closed].tolist() == kept[is_closed].tolist()
    expected = [share for (_, share), closed in zip(slowly, is_closed, strict=True) if not closed]
    assert becomes[~is_closed].tolist() == pytest.approx(expected, abs=1e-9)


def test_who_is_known_late_is_not_forgotten() -> None:
    """All lose after 1 s or are kept after 10 s, half of each; at 5 s only losses are known."""
    starts = np.arange(100.0) / 10.0
    took_s = np.where(np.arange(100) % 2 == 0, 1.0, 10.0)
    age_s = 10.0 - starts
    is_closed = took_s <= age_s
    kept = (took_s == 10.0).astype(float)
    known, becomes = outcomes(age_s, np.minimum(took_s, age_s), is_closed, kept)
    mean = float((known * becomes).sum() / known.sum())
    assert mean == pytest.approx(0.5, abs=0.03)
