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
    Of the prompt ``num_found_tokens`` are in the prefix cache, ``num_held_tokens`` of them held
    by running requests; see :class:`PrefixFound`. ``last_try`` is how likely a refusal of it is
    its client's last word: 1 where this server alone is asked, 0 where another one is asked next.
    """

    at_s: float
    request_id: str
    arrived_at_s: float
    num_prompt_tokens: int
    max_output_tokens: int
    slo: Slo
    num_found_tokens: int = 0
    num_held_tokens: int = 0
    last_try: float = 1.0

    def request(self) -> Request:
        """Return the request as it is when it arrives: nothing computed, nothing decided."""
        request = Request(
            self.request_id,
            self.slo,
            self.arrived_at_s,
            self.num_prompt_tokens,
            self.max_output_tokens,
        )
        request.num_found_tokens = self.num_found_tokens
        request.num_held_tokens = self.num_held_tokens
        request.last_try = self.last_try
        return request


@dataclass(frozen=True, slots=True)
class PrefixFound:
    """What waiting requests would find in the prefix cache has changed.

    An event and no field of the view: only what changed is told, so a recording stays small.

    ``tokens`` has, per request, the tokens found (not to be computed, never all of them) and those
    of them that running requests hold (which cost no free block). ``coming`` has, per request that
    lacks next what a prompt in progress computes next, that prompt's request and with how many
    tokens both begin alike.
    """

    at_s: float
    tokens: Mapping[str, tuple[int, int]]
    coming: Mapping[str, tuple[str, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CannotStart:
    """For which waiting requests it has changed whether the engine could start them.

    ``why`` has, per request, what it waits for (its KV is being loaded, its grammar compiled, all
    adapters' slots are taken), or an empty text once it could start. ``num_loaded_tokens`` has
    the tokens of KV that such a request holds already, where it holds any.
    """

    at_s: float
    why: Mapping[str, str]
    num_loaded_tokens: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SteppedAside:
    """A plan's prompt work came to nothing: the engine decides the next step alone.

    ``planned`` are the requests that were to have prompt tokens, none where nobody was to start
    although somebody could.
    """

    at_s: float
    planned: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class StepScheduled:
    """The engine settled what the next step computes (its own word, not the plan's).

    Attributes:
        num_scheduled_tokens: Tokens computed this step, per request; none where all must wait,
            which is no step: what comes after follows on nothing.
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


Event = Arrived | PrefixFound | CannotStart | SteppedAside | StepScheduled | StepDone | Finished
