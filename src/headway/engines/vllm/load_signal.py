"""The scheduler's side of load reports: says how busy it is, to whoever in this server asks.

A reader of the journal beside :mod:`headway.engines.vllm.watch`, for servers that nobody watches:
it counts two rates, and works out the load only while somebody listens on its channel, which an
HTTP server does from the first request on that wants a report.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from headway.engines.journal import Reader
from headway.engines.vllm.channel import LOAD_CHANNEL_VARIABLE, Sender
from headway.metrics.server_load import RecentRate
from headway.metrics.tally import outcome_of
from headway.policy.events import Arrived, Finished
from headway.policy.log import Entry
from headway.policy.scheduler import Scheduler

ERRORS = ("refused", "failed")
"""Outcomes that are the server's failure; see :class:`~headway.metrics.orca_report.OrcaReport`."""


class LoadSignal(Reader):
    """Tells how busy a scheduler is.

    Args:
        engine: The name of this scheduler among several (data parallel rank).
    """

    reads_steps = False

    def __init__(self, core: Scheduler, sender: Sender, engine: str = "0") -> None:
        self._core = core
        self._sender = sender
        self._engine = engine
        self._requests = RecentRate()
        self._errors = RecentRate()

    def read(self, entries: Sequence[Entry]) -> None:
        """Count arrivals and errors."""
        for entry in entries:
            if isinstance(entry, Arrived):
                self._requests.add(entry.at_s)
            elif isinstance(entry, Finished) and outcome_of(entry.reason) in ERRORS:
                self._errors.add(entry.at_s)

    def tell(self, at_s: float, *, is_idle: bool) -> None:
        """Send the load, if anybody listens."""
        if not self._sender.find_readers():
            return
        live = self._core.live
        message = {
            "kind": "load",
            "engine": self._engine,
            "is_idle": is_idle,
            "load": asdict(self._core.load(at_s)),
            "waiting": live.num_waiting + len(live.hindered),
            "rps": self._requests.per_s(at_s),
            "eps": self._errors.per_s(at_s),
        }
        self._sender.send(message, is_last=is_idle)

    def close(self) -> None:
        """Let go of the channel."""
        self._sender.close()


def load_signal_of(core: Scheduler, vllm_config: Any) -> LoadSignal | None:
    """Return what tells the load of *core*, when the environment names a channel for it.

    Raises:
        UserError: The channel's folder cannot be used, or another server uses it.
    """
    folder = os.environ.get(LOAD_CHANNEL_VARIABLE)
    if not folder:
        return None
    engine = str(vllm_config.parallel_config.data_parallel_index)
    return LoadSignal(core, Sender(folder, engine), engine)
