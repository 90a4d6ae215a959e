"""The scheduler's side of everything visible: a core that is watched, otherwise the same object."""

from __future__ import annotations

import os
import time
from typing import Any

from headway.engines.vllm.account import account_of
from headway.engines.vllm.brief import MOST_TOLD, Told
from headway.engines.vllm.channel import CHANNEL_VARIABLE, Sender
from headway.engines.vllm.recorder import LiveRecorder
from headway.metrics.observed import Observed
from headway.policy.events import Arrived, Event, Finished, StepDone, SteppedAside, StepScheduled
from headway.policy.live import LiveRequests
from headway.policy.plan import StepPlan
from headway.policy.view import EngineView

EVERY_S = 0.5
"""Seconds between two snapshots while the engine works; one more when it falls idle."""


class Watched:
    """A policy core (or its recorder) whose events and plans are counted and told.

    Args:
        inner: The core.
        sender: Where snapshots and the stories of broken promises go.
        engine: The name of this scheduler among several (data parallel rank).
    """

    def __init__(self, inner: Any, sender: Sender, engine: str = "0") -> None:
        self._inner = inner
        self._recorder = inner if isinstance(inner, LiveRecorder) else None
        self._core = inner if self._recorder is None else self._recorder.core
        self._heard: list[Told] = [] if self._recorder is None else self._recorder.brief.told
        self._sender = sender
        self._engine = engine
        self._next_s = 0.0
        self._explained: set[str] = set()
        self.accounts: dict[str, dict[str, Any]] = {}
        """What the clients of explained requests that have ended are told, until it is sent."""
        self.live: LiveRequests = inner.live
        """The inner core's live requests."""
        self.observed = Observed(inner.name, inner.overload)

    def plan(self, view: EngineView, now_s: float) -> StepPlan:
        """Return the core's plan, timed."""
        begun_s = time.perf_counter()
        plan: StepPlan = self._core.plan(view, now_s)
        self._heard.append((view, now_s, plan, time.perf_counter() - begun_s))
        return plan

    def observe(self, event: Event) -> None:
        """Let the core hear of *event*, count it, and tell the readers when it is time."""
        if isinstance(event, Finished):
            self._finished(event)
            return
        self._heard.append(event)
        self._core.observe(event)
        if isinstance(event, StepDone):
            if event.at_s >= self._next_s:
                self._tell(event.at_s)
            elif len(self._heard) >= MOST_TOLD:
                self._count()
        elif isinstance(event, Arrived):
            self._count()

    def explain(self, request_id: str) -> None:
        """Keep the account of a live request, for its client, when it ends."""
        self._explained.add(request_id)

    def _count(self) -> None:
        """Count, and record, what was heard since the last time."""
        observed = self.observed
        for heard in self._heard:
            if isinstance(heard, tuple):
                observed.planned(heard[2], heard[0], heard[3])
            elif isinstance(heard, StepDone):
                observed.done(heard)
            elif isinstance(heard, StepScheduled):
                observed.scheduled(heard)
            elif isinstance(heard, SteppedAside):
                observed.num_asides += 1
            elif isinstance(heard, Arrived):
                request = self.live.requests[heard.request_id]
                observed.arrived(heard, request.predicted_output_tokens)
        if self._recorder is None:
            self._heard.clear()
        else:
            self._recorder.brief.hand()

    def _finished(self, event: Finished) -> None:
        request = self.live.requests.get(event.request_id)
        self._heard.append(event)
        self._core.observe(event)
        self._count()
        if request is None:
            return
        broken = self.observed.finished(event, request)
        is_explained = event.request_id in self._explained
        self._explained.discard(event.request_id)
        if is_explained and self.observed.verdict is not None:
            self.accounts[event.request_id] = account_of(self.observed.verdict, request.slo)
        if broken is not None and self._sender.has_readers:
            broken.update(engine=self._engine, unix_s=time.time())
            self._sender.keep(broken)
        if not self.live.requests:
            self._tell(event.at_s, is_last=True)  # No step may follow for a long time.

    def _tell(self, at_s: float, *, is_last: bool = False) -> None:
        self._count()
        self._next_s = at_s + EVERY_S
        if self._recorder is not None:
            self._recorder.send()
        if not self._sender.find_readers():
            return
        snapshot = self.observed.snapshot(self.live, at_s)
        snapshot["engine"] = self._engine
        snapshot["unix_s"] = time.time()
        snapshot["length_coverage_target"] = self.parts.predictor.coverage_target
        snapshot["counts"]["dropped"] = dict(self._sender.dropped)
        recorded = getattr(self._inner, "recorded", None)
        if recorded is not None:
            snapshot["counts"]["recorded"] = dict(recorded)
        self._sender.send(snapshot, is_last=is_last)

    def close(self) -> None:
        """Let go of the channel, and of what the inner core holds."""
        self._sender.close()
        if self._recorder is not None:
            self._recorder.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


def watched(core: Any, vllm_config: Any) -> Any:
    """Return *core*, watched when the environment names a channel.

    Raises:
        UserError: The channel's folder cannot be used, or another server uses it.
    """
    folder = os.environ.get(CHANNEL_VARIABLE)
    if not folder:
        return core
    engine = str(vllm_config.parallel_config.data_parallel_index)
    return Watched(core, Sender(folder, engine), engine)
