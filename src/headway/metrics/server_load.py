"""How busy a server is, from what its schedulers say: what routers choose a server by."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

from headway.metrics.orca_report import OrcaReport
from headway.policy.quote import ServerLoad

RATE_WINDOW_S = 10.0
"""Seconds over which requests and errors a second are counted. A server of language models may
serve one request a second: a shorter window is mostly noise, a longer one tells of another load."""

LEAST_UTILIZATION = 0.05
"""The least utilization that is reported. Envoy drops a report of 0, and divides by it: with next
to nothing here, the server that happened to be idle for an instant would get all requests."""

SILENCE_S = 30.0
"""Seconds after which a scheduler that last spoke of work is not believed any more: no step is that
long, so its words do not arrive. Larger: a router goes longer by what was true once; smaller: a
server with steps of many seconds has no report in the middle of one."""

IDLE = ServerLoad(0.0, 0.0, 0.0)
"""The load of a server that has nothing to do."""


class RecentRate:
    """Events a second over the last :data:`RATE_WINDOW_S`."""

    def __init__(self) -> None:
        self._at_s: deque[float] = deque()

    def add(self, at_s: float) -> None:
        """Count an event; instants do not decrease."""
        self._at_s.append(at_s)
        self._forget(at_s)

    def per_s(self, now_s: float) -> float:
        """Return events a second until *now_s*."""
        self._forget(now_s)
        return len(self._at_s) / RATE_WINDOW_S

    def _forget(self, now_s: float) -> None:
        while self._at_s and self._at_s[0] <= now_s - RATE_WINDOW_S:
            self._at_s.popleft()


def mean_load(loads: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Return the load of a server whose engines have *loads*, fields of :class:`ServerLoad`.

    Their mean: the server gives a request to the engine with the least to do, so what it can take
    yet is what all of them can take together. The freest engine alone would say less than that
    from the second request on, and a router sends many before it hears again.
    """
    rows = list(loads)
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]} if rows else {}


class HeardLoads:
    """The latest words of all schedulers of one server; instants are the reader's clock."""

    def __init__(self) -> None:
        self._heard: dict[str, tuple[float, Mapping[str, Any]]] = {}

    def take(self, message: Mapping[str, Any], now_s: float) -> None:
        """Take in one message of :class:`~headway.engines.vllm.load_signal.LoadSignal`."""
        if message.get("kind") == "load":
            self._heard[message["engine"]] = (now_s, message)

    def report(self, now_s: float) -> OrcaReport | None:
        """Return the load report, ``None`` where nothing is known.

        A scheduler that works speaks twice a second. The last word of one that fell idle says that
        it is, and stays true; its requests a second pass out of the window meanwhile.
        """
        messages = []
        rps = eps = 0.0
        for heard_at_s, message in self._heard.values():
            age_s = now_s - heard_at_s
            if not message["is_idle"] and age_s > SILENCE_S:
                continue
            messages.append(message)
            left = max(1.0 - age_s / RATE_WINDOW_S, 0.0) if message["is_idle"] else 1.0
            rps += message["rps"] * left
            eps += message["eps"] * left
        if not messages:
            return None
        load = mean_load(message["load"] for message in messages)
        return OrcaReport(
            rps_fractional=rps,
            eps=eps,
            application_utilization=max(load["pressure"], LEAST_UTILIZATION),
            named_metrics={
                "kv_cache_usage_perc": load["kv_share"],
                "num_requests_waiting": float(sum(message["waiting"] for message in messages)),
                "headway_pressure": load["pressure"],
                "headway_prefill_backlog_seconds": load["prefill_backlog_s"],
            },
        )
