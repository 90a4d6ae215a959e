"""The scheduler's side of everything visible: what is counted, and who is told of it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

from headway.engines.counted import Counted
from headway.engines.vllm.account import account_of
from headway.engines.vllm.budget_file import BudgetFile, path_of
from headway.engines.vllm.channel import CHANNEL_VARIABLE, Sender
from headway.policy.scheduler import Scheduler
from headway.request import Request

logger = logging.getLogger("vllm.headway")


class Watch(Counted):
    """Counts what a core hears and decides, and tells those who look.

    Args:
        core: The core.
        sender: Where snapshots and the stories of broken promises go.
        engine: The name of this scheduler among several (data parallel rank).
        recorded: Lines of the recording so far, where there is one.
        budgets: Where error budgets outlive this process, if they do.
        features: Tells what the engine was found to have; asked once, when somebody looks.
    """

    def __init__(
        self,
        core: Scheduler,
        sender: Sender,
        engine: str = "0",
        recorded: Mapping[str, int] | None = None,
        budgets: Path | None = None,
        features: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        # Of one instant: a clock that is set later does not tear a window apart.
        super().__init__(core, unix_at_zero_s=time.time() - time.monotonic())
        self._budgets: BudgetFile | None = None
        if budgets is not None:
            self._budgets = BudgetFile(budgets, self.observed.budgets, time.time())
        self._sender = sender
        self._engine = engine
        self._recorded = recorded
        self._features = cache(features)
        self._request_starts = {"used": 0, "ignored": 0}
        self._explained: set[str] = set()
        self.accounts: dict[str, dict[str, Any]] = {}
        """What the clients of explained requests that have ended are told, until it is sent."""

    def explain(self, request_id: str) -> None:
        """Keep the account of a live request, for its client, when it ends."""
        self._explained.add(request_id)

    def forwarded(self, request_id: str, start: str, reached_at_s: float) -> None:
        """Count what became of a proxy's word on when a live request started.

        Args:
            start: ``"used"`` or ``"ignored"``.
            reached_at_s: When the request reached this server.
        """
        self._request_starts[start] += 1
        self.observed.book.reached(request_id, reached_at_s)

    def ended(self, request: Request, broken: dict[str, Any] | None) -> None:
        """Keep what somebody asked to be told."""
        request_id, lateness = request.request_id, self.observed.lateness
        if request_id in self._explained and lateness is not None:
            self.accounts[request_id] = account_of(lateness, request.slo)
        self._explained.discard(request_id)
        if broken is not None and self._sender.has_readers:
            broken.update(engine=self._engine, unix_s=time.time())
            self._sender.keep(broken)

    def tell(self, at_s: float, *, is_idle: bool) -> None:
        """Keep the budgets, and send a snapshot, if anybody looks."""
        if self._budgets is not None:
            self._budgets.tell(at_s + self.observed.unix_at_zero_s)
        if not self._sender.find_readers():
            return
        core = self._core
        times = core.known.targets.times
        snapshot = self.observed.snapshot(core.live, at_s, times, core.load(at_s))
        snapshot["engine"] = self._engine
        snapshot["unix_s"] = time.time()
        snapshot["features"] = self._features()
        snapshot["length_coverage_target"] = core.known.lengths.coverage_target
        snapshot["counts"]["request_starts"] = dict(self._request_starts)
        snapshot["counts"]["dropped"] = dict(self._sender.dropped)
        if self._recorded is not None:
            snapshot["counts"]["recorded"] = dict(self._recorded)
        self._sender.send(snapshot, is_last=is_idle)

    def close(self) -> None:
        """Keep the budgets, and let go of the channel."""
        if self._budgets is not None:
            self._budgets.close(time.monotonic() + self.observed.unix_at_zero_s)
        self._sender.close()


def watch_of(
    core: Scheduler,
    scheduler: Any,
    recorded: Mapping[str, int] | None = None,
    budgets: str | None = None,
) -> Watch | None:
    """Return what watches *core*, when the environment names a channel.

    Args:
        scheduler: vLLM's, that *core* plans for.
        budgets: The setting of that name.

    Raises:
        UserError: The channel's folder cannot be used, or another server uses it.
    """
    folder = os.environ.get(CHANNEL_VARIABLE)
    if not folder:
        if budgets is not None:
            logger.warning(
                "Error budgets are counted only where they are shown: name a folder in %s.",
                CHANNEL_VARIABLE,
            )
        return None
    from headway.engines.vllm.features import features_of

    engine = str(scheduler.vllm_config.parallel_config.data_parallel_index)
    path = None if budgets is None else path_of(budgets, engine)
    features = partial(features_of, scheduler)
    return Watch(core, Sender(folder, engine), engine, recorded, path, features)
