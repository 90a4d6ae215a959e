"""How many loads the no-harm tests draw: see ``test_no_harm.py``."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

LONG = int(os.environ.get("HEADWAY_LONG") or 0)

NUM_DRAWN = {0: 200, 1: 5_000}.get(LONG, LONG)
"""Loads of any kind and light ones, as many of the one as of the other."""

DRAWN = settings(
    max_examples=NUM_DRAWN // 2,
    derandomize=not LONG,
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.generate,),
    print_blob=False,
)
"""No shrinking: most of a scenario comes from one seed, which has no simpler neighbours."""
