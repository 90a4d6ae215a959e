"""The journal: what a policy core hears and decides, in one list, for whoever wants to know.

The driver speaks to the journal as it would to the core. Readers are handed the entries some
steps at a time: a call for each costs more than what is done with it, and finds its code and data
pushed out of the processor's caches by the engine.
"""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Sequence
from multiprocessing.util import Finalize

from headway.policy.events import Arrived, Event, Finished, StepDone, StepScheduled
from headway.policy.live_requests import LiveRequests
from headway.policy.log import Entry
from headway.policy.plan import StepPlan
from headway.policy.quote import Quote, ServerLoad
from headway.policy.scheduler import Scheduler
from headway.policy.view import EngineView
from headway.slo import Slo

MOST_ENTRIES = 96
"""Entries handed on together: some thirty steps."""

EVERY_S = 0.5
"""Seconds between two calls of :meth:`Reader.tell` while the engine works."""


class Reader:
    """Who wants to know what happens; one that only reads need not tell or close anything.

    Attributes:
        reads_steps: Whether plans and steps are wanted too, or only arrivals and ends. Where nobody
            wants them, they are not kept.
    """

    reads_steps = True

    def read(self, entries: Sequence[Entry]) -> None:
        """Take in what happened, in order; nothing in an entry changes any more."""
        raise NotImplementedError

    def tell(self, at_s: float, *, is_idle: bool) -> None:
        """Pass on what was read: every half second, and when no request is left."""

    def close(self) -> None:
        """Nothing more will happen."""


class Journal:
    """A policy core with readers.

    Args:
        readers: In the order in which they read. They have read the arrival and the end of a
            request when :meth:`observe` returns.
    """

    def __init__(self, core: Scheduler, *readers: Reader) -> None:
        self.core = core
        self.live: LiveRequests = core.live
        """The core's live requests."""
        self._readers = readers
        self._keeps_steps = any(reader.reads_steps for reader in readers)
        self._entries: list[Entry] = []
        self._tell_at_s = -math.inf
        # A process of vLLM's may end without telling its scheduler.
        self._finalizer = Finalize(self, _end, args=(self._entries, readers), exitpriority=10)

    def plan(self, view: EngineView, now_s: float) -> StepPlan:
        """Return the core's plan."""
        if not self._keeps_steps:
            return self.core.plan(view, now_s)
        begun_s = time.perf_counter()
        plan = self.core.plan(view, now_s)
        self._entries.append((view, now_s, plan, time.perf_counter() - begun_s))
        return plan

    def observe(self, event: Event) -> None:
        """Let the core hear of *event*, and the readers when it is time."""
        is_end = isinstance(event, (Arrived, Finished))
        if is_end or self._keeps_steps:
            self._entries.append(event)
        self.core.observe(event)
        if isinstance(event, (StepScheduled, StepDone)) and event.at_s >= self._tell_at_s:
            self._tell(event.at_s, is_idle=False)  # Also before a step: it may take long.
        elif is_end:
            _hand(self._entries, self._readers)
            if isinstance(event, Finished) and not self.live.requests:
                self._tell(event.at_s, is_idle=True)  # No step may follow for a long time.
        elif len(self._entries) >= MOST_ENTRIES:
            _hand(self._entries, self._readers)

    def _tell(self, at_s: float, *, is_idle: bool) -> None:
        _hand(self._entries, self._readers)
        self._tell_at_s = at_s + EVERY_S
        for reader in self._readers:
            reader.tell(at_s, is_idle=is_idle)

    def quote(self, num_prompt_tokens: int, known_prefix: int, slo: Slo, now_s: float) -> Quote:
        """Return the core's quote, which is no entry: it changes nothing."""
        return self.core.quote(num_prompt_tokens, known_prefix, slo, now_s)

    def load(self, now_s: float) -> ServerLoad:
        """Return how busy the core is, which is no entry either."""
        return self.core.load(now_s)

    def validate(self) -> None:
        """Check the core's books; see its own ``validate``."""
        self.core.validate()

    def close(self) -> None:
        """Hand the rest on and close the readers; harmless when called again."""
        self._finalizer()


def _hand(entries: list[Entry], readers: Sequence[Reader]) -> None:
    for reader in readers:
        reader.read(entries)
    entries.clear()


def _end(entries: list[Entry], readers: Sequence[Reader]) -> None:
    _hand(entries, readers)
    for reader in readers:
        reader.close()


class PlanTimes(Reader):
    """Keeps how long plans took, in wall-clock seconds."""

    def __init__(self) -> None:
        self.seconds = array("d")

    def read(self, entries: Sequence[Entry]) -> None:
        """Take the plans' seconds."""
        self.seconds.extend(entry[3] for entry in entries if isinstance(entry, tuple))
