"""What a recording says about the lengths of the outputs that were served."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from headway.policy.events import Arrived, Event, Finished, StepDone
from headway.request import Request


@dataclass(frozen=True, slots=True)
class Served:
    """One request that was served: the request at its end, when it came and when it left."""

    request: Request
    arrived_at_s: float
    ended_at_s: float
    is_whole: bool

    @property
    def num_output_tokens(self) -> int:
        """Its length, or how far it came when it is not whole."""
        return self.request.num_output_tokens


def served(events: Iterable[Event]) -> list[Served]:
    """Return the requests of a recording that came to an end, in order of arrival.

    Whole are those that stopped by themselves or at their bound; refused, failed and aborted
    ones are not.
    """
    live: dict[str, tuple[Request, float]] = {}
    found: list[Served] = []
    for event in events:
        if isinstance(event, Arrived):
            live[event.request_id] = event.request(), event.at_s
        elif isinstance(event, StepDone):
            for request_id, num_tokens in event.num_new_tokens.items():
                if request_id in live:
                    live[request_id][0].num_output_tokens += num_tokens
        elif isinstance(event, Finished) and event.request_id in live:
            request, at_s = live.pop(event.request_id)
            whole = event.reason in ("stopped", "length") and request.num_output_tokens > 0
            found.append(Served(request, at_s, event.at_s, whole))
    return sorted(found, key=lambda one: (one.arrived_at_s, one.request.arrived_at_s))
