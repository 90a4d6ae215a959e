"""What a preset is made of."""

from __future__ import annotations

import math
from dataclasses import dataclass

from headway.policy.admit import Feasibility, Gate
from headway.policy.batch import Batcher
from headway.policy.chunk import Chunker
from headway.policy.predict import Predictor
from headway.policy.preempt import Preemptor
from headway.policy.prioritize import Prioritizer


@dataclass(slots=True)
class Parts:
    """What a preset is made of; each part can be switched on its own.

    ``max_wait_s`` bounds how long a request may wait for its next token. A preset that heeds no
    promises treats every request as if it had none.
    """

    predictor: Predictor
    feasibility: Feasibility
    prioritizer: Prioritizer
    chunker: Chunker
    gate: Gate
    batcher: Batcher
    preemptor: Preemptor
    max_wait_s: float = math.inf
    heeds_promises: bool = True
