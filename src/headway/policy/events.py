"""What a driver tells the core. ``Scheduler.observe(event)`` is the only way state changes.

Instants are seconds of the driver's own clock; the core never reads one itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from headway.request import Request
from headway.slo import Slo


@dataclass(frozen=True, slots=True)
class Arrived:
    """A request reached the engine.

    ``arrived_at_s`` is when the client's request reached the server, at or before ``at_s``.
    """

    at_s: float
    request_id: str
    arrived_at_s: float
    num_prompt_tokens: int
    max_output_tokens: int
    slo: Slo

    def request(self) -> Request:
        """Return the request as it is when it arrives: nothing computed, nothing decided."""
        return Request(
            self.request_id,
            self.slo,
            self.arrived_at_s,
            self.num_prompt_tokens,
            self.max_output_tokens,
        )


@dataclass(frozen=True, slots=True)
class StepScheduled:
    """The engine settled what the next step computes (its own word, not the plan's).

    Attributes:
        num_scheduled_tokens: Tokens computed this step, per request.
        admitted: Requests that began or resumed, with the tokens found in a cache.
        preempted: Requests that lost their place since the last step, in order.
        swapped: Those of them whose KV the host really keeps; the others are recomputed.
    """

    at_s: float
    num_scheduled_tokens: Mapping[str, int]
    admitted: Mapping[str, int] = field(default_factory=dict)
    preempted: tuple[str, ...] = ()
    swapped: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StepDone:
    """The oldest step in flight ended; ``num_new_tokens`` were emitted, per request."""

    at_s: float
    num_new_tokens: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Finished:
    """A request left the engine.

    By ``stopped``, ``length``, ``aborted``, ``refused``, ``rejected`` (a mistake), or ``error``.
    """

    at_s: float
    request_id: str
    reason: str


Event = Arrived | StepScheduled | StepDone | Finished
