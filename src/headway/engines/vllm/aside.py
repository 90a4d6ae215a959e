"""Stepping aside: when a plan's prompt work comes to nothing, the next step is stock's own.

The stock loop knows features of vLLM that the core does not. Where it gives no token to anybody
the plan meant to serve, our picture of the engine is wrong somewhere, and one step with the whole
budget and everybody presented, in our order, is what an unsteered server would do. It ends every
stall we have not thought of; each is counted and told, because each is a fault of ours.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

logger = logging.getLogger("vllm.headway")

TELL_EVERY_S = 60.0
"""Seconds between two lines about it in the log."""


class Aside:
    """Whether the next step is stock's, and how many were.

    Attributes:
        is_next: The step that is scheduled next is stock's.
        planned: For whom nothing was done, when it is.
        num_steps: Steps that were.
    """

    def __init__(self) -> None:
        self.is_next = False
        self.planned: tuple[str, ...] = ()
        self.num_steps = 0
        self._told_s = -TELL_EVERY_S

    def judge(self, meant: Sequence[str], tokens: Mapping[str, int], *, stalled: bool) -> None:
        """Look at what became of a plan that was carried out whole.

        Args:
            meant: Requests that were to have prompt tokens, and that nothing hindered.
            tokens: What the stock loop gave, by request.
            stalled: Nothing runs, somebody could start, and the plan starts nobody.
        """
        nothing = bool(meant) and not any(name in tokens for name in meant)
        self.is_next = nothing or stalled
        self.planned = tuple(meant) if nothing else ()

    def take(self) -> bool:
        """Return whether this step is stock's, and count it."""
        if not self.is_next:
            return False
        self.is_next = False
        self.num_steps += 1
        now_s = time.monotonic()
        if now_s - self._told_s >= TELL_EVERY_S:
            self._told_s = now_s
            logger.warning(
                "Headway stepped aside: the engine started nothing of what was planned, so vLLM"
                " decides this step (%d so far). Please report what your server serves.",
                self.num_steps,
            )
        return True
