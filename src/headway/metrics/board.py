"""What a reader knows of a server: the latest counts, the last minutes, the broken promises.

Takes the messages of :mod:`headway.metrics.scheduler_counts` in, from one scheduler or several, and
answers what the page, ``headway top``, ``headway explain`` and ``/metrics`` ask. Pure: whoever
drives it says what time it is.
"""

from __future__ import annotations

import bisect
import math
import re
from collections import deque
from collections.abc import Mapping
from typing import Any

from headway.metrics.aims_rows import budget_of, tenant_rows
from headway.metrics.causes import CAUSES
from headway.metrics.deciles import whole_of
from headway.metrics.server_load import mean_load
from headway.metrics.tally import (
    GAP_BOUNDS_S,
    PAUSE_BOUNDS_S,
    PLAN_BOUNDS_S,
    RATIO_BOUNDS,
    TTFT_BOUNDS_S,
    combine,
    quantile,
)

HISTORY_S = 600.0
"""Seconds of past the board keeps, for the timeline."""

WINDOW_S = 300.0
"""What "now" means for shares and quantiles: the last five minutes."""

BROKEN_KEPT = 512
"""Broken promises remembered; the page shows the newest of them."""

BROKEN_SHOWN = 30

LATE_SHOWN = 8
"""Of those who are late right now, the latest; each scheduler tells as many."""

SAME_POINT_S = 0.25
"""Snapshots within this, from several schedulers, make one point of the timeline; the newest point
may still grow."""

PAST_EVERY_S = 5.0
"""Seconds between two whole counts that are kept to compare with."""

OF_ONE = ("late", "multipliers", "load")
"""Of the present, what is not the sum of what several schedulers say: :meth:`Board.late` has who is
late, and the load is their mean."""

SHADOW_KEPT_S = 1800.0
"""Seconds after which a shadow that was not heard of again has no figure any more."""

Json = dict[str, Any]


class Board:
    """Everything readers were told, bounded in size."""

    def __init__(self) -> None:
        self.latest: dict[str, Json] = {}
        self.broken: deque[Json] = deque(maxlen=BROKEN_KEPT)
        self.num_broken = 0
        self._shadows: dict[str, Json] = {}
        self._past: deque[tuple[float, Json]] = deque()
        self._points: deque[Json] = deque()
        self._begun_unix_s = -math.inf
        self._base: Json = {}
        self._newest: Json = {}

    # -- messages in ------------------------------------------------------------------------

    def take(self, message: Mapping[str, Any]) -> bool:
        """Take one message in; return whether it was understood."""
        kind, engine, unix_s = (message.get(k) for k in ("kind", "engine", "unix_s"))
        if not isinstance(engine, str) or not isinstance(unix_s, int | float):
            return False
        if kind == "counts" and isinstance(message.get("counts"), Mapping):
            self.latest[engine] = dict(message)
            self._remember(float(unix_s), message["now"]["longest_step_s"])
            return True
        if kind == "broken" and isinstance(message.get("by_cause_s"), Mapping):
            self.broken.append(dict(message))
            self.num_broken += 1
            return True
        if kind == "shadow" and isinstance(message.get("attainment"), list):
            self._shadows[engine] = dict(message)
            return True
        return False

    def _remember(self, unix_s: float, longest_step_s: float) -> None:
        """Add what is known now to the past, and drop what is too old.

        A point's steps are all of those between it and the point before, so that is its
        longest step too: *longest_step_s* of one message is of a part of them.
        """
        counts = self.counts()
        # Milliseconds: the same for every API server of one engine, and larger after a restart.
        number = int(unix_s * 1e3)
        if self._points and unix_s - self._begun_unix_s < SAME_POINT_S:
            merged = self._points.pop()
            number = merged["number"]
            longest_step_s = max(longest_step_s, merged["longest_step_s"])
        else:
            self._begun_unix_s = unix_s  # Or messages of many would follow for ever.
            self._base, self._newest = self._newest or counts, counts
        gone = _since(counts, self._base)
        # A message that was lost took the longest of its steps along; their mean is known.
        longest_step_s = max(longest_step_s, gone["mean_step_s"] or 0.0)
        point = {"number": number, "unix_s": unix_s, **self.now(), **gone}
        self._points.append({**point, "longest_step_s": longest_step_s})
        self._newest = counts
        while self._points[0]["unix_s"] < unix_s - HISTORY_S:
            self._points.popleft()
        if not self._past or unix_s - self._past[-1][0] >= PAST_EVERY_S:
            self._past.append((unix_s, counts))
        while len(self._past) > 1 and self._past[1][0] < unix_s - WINDOW_S:
            self._past.popleft()  # One older than the window stays, to count from.

    # -- answers out ------------------------------------------------------------------------

    def told(self, now_unix_s: float) -> dict[str, Json]:
        """Return the latest message of every scheduler, with what its shadow found lately."""
        lately = {
            engine: shadow
            for engine, shadow in self._shadows.items()
            if shadow["unix_s"] >= now_unix_s - SHADOW_KEPT_S
        }
        return {
            engine: message
            | {
                "shadow": lately.get(engine, {}),
                "age_s": max(now_unix_s - message["unix_s"], 0.0),
            }
            for engine, message in self.latest.items()
        }

    def counts(self) -> Json:
        """Return the counts of all schedulers together; empty before the first message."""
        total: Json = {}
        for message in self.latest.values():
            total = combine(total, message["counts"])
        return total

    def now(self) -> Json:
        """Return the present of all schedulers together, but :data:`OF_ONE`."""
        total: Json = {}
        for message in self.latest.values():
            total = combine(total, {k: v for k, v in message["now"].items() if k not in OF_ONE})
        if not total:
            return {}
        nows = [m["now"] for m in self.latest.values()]
        longest_s = max(now["longest_step_s"] for now in nows)
        return {**total, "longest_step_s": longest_s, "load": mean_load(n["load"] for n in nows)}

    def late(self) -> list[Json]:
        """Return the live requests that the schedulers told to be late, the latest first."""
        rows = [row for m in self.latest.values() for row in m["now"].get("late", ())]
        return sorted(rows, key=lambda row: (-row["late_s"], str(row["id"])))

    def window(self, now_unix_s: float, span_s: float = WINDOW_S) -> Json:
        """Return what was counted in the last *span_s* seconds."""
        counts = self.counts()
        index = bisect.bisect_right([at_s for at_s, _ in self._past], now_unix_s - span_s) - 1
        # Without a point that old, all that was counted falls into the window.
        return combine(counts, self._past[index][1], -1) if index >= 0 else counts

    def state(self, now_unix_s: float, after: int = 0) -> Json:
        """Return what the page and ``headway top`` show; points of time later than *after*."""
        if not self.latest:
            nothing: Json = {"classes": [], "points": [], "broken": [], "late": []}
            return {"schema": 1, "ready": False, **nothing}
        window, counts = self.window(now_unix_s), self.counts()
        newest = max(self.latest.values(), key=lambda m: m["unix_s"])
        names = sorted(counts["classes"])
        return {
            "schema": 1,
            "ready": True,
            "policy": newest.get("policy"),
            "overload": newest.get("overload"),
            "features": newest.get("features") or {},
            "num_engines": len(self.latest),
            "unix_s": now_unix_s,
            "age_s": max(now_unix_s - newest["unix_s"], 0.0),
            "window_s": WINDOW_S,
            "now": self.now(),
            "late": self.late()[:LATE_SHOWN],
            "classes": [
                _class_row(n, window["classes"][n], counts["classes"][n])
                | {"budget": budget_of(self.latest, "class", n, now_unix_s)}
                for n in names
            ],
            "tenants": tenant_rows(self.latest, window, now_unix_s),
            "model": _model_row(window) | {"coverage_target": newest.get("length_coverage_target")},
            "preemptions": window["preemptions"],
            "dropped": sum(counts.get("dropped", {}).values()),
            "newest_point": self._points[-1]["number"],
            "points": [p for p in self._points if p["number"] > after],
            "num_broken": self.num_broken,
            "broken": [
                {k: v for k, v in told.items() if k != "story"}
                for told in list(self.broken)[: -BROKEN_SHOWN - 1 : -1]
            ],
        }

    def explain(self, request_id: str) -> list[Json]:
        """Return the broken promises whose id is, or begins with, *request_id*, newest first."""
        return [t for t in reversed(self.broken) if _is_of(t, request_id)]

    def late_now(self, request_id: str) -> list[Json]:
        """Return those of :meth:`late` whose id is, or begins with, *request_id*."""
        return [row for row in self.late() if _is_of(row, request_id)]

    @property
    def num_stories_lost(self) -> int:
        """Stories of broken promises that schedulers gave up on their way here."""
        dropped = self.counts().get("dropped", {})
        return sum(dropped.get(reason, 0) for reason in ("backlog_full", "too_large"))

    def worst(self, count: int) -> list[Json]:
        """Return the *count* latest of the remembered requests, the latest first."""
        return sorted(self.broken, key=lambda t: (-t["late_s"], str(t["id"])))[:count]


def _is_of(told: Json, request_id: str) -> bool:
    """Whether a message is about the request a client knows as *request_id*.

    vLLM adds a suffix to that id, and numbers the answers of one request in front: ``1_ID-ab12``.
    """
    name = str(told["id"])
    return name.startswith(request_id) or re.sub(r"^\d+_", "", name).startswith(request_id)


def _since(counts: Json, before: Json) -> Json:
    """Return what happened between two counts, for the timeline."""
    gone = combine(counts, before, -1)
    steps = [gone["steps"][kind] for kind in ("decode", "mixed")]
    num_steps = sum(sum(s["counts"]) for s in steps)
    classes = gone["classes"].values()
    return {
        "num_steps": num_steps,
        "mean_step_s": sum(s["sum"] for s in steps) / num_steps if num_steps else None,
        "output_tokens": gone["tokens"]["output"],
        "preempted": sum(gone["preemptions"].values()),
        "attained": sum(c["attained"] for c in classes),
        "broken": sum(c["promised"] - c["attained"] for c in classes),
    }


def _class_row(name: str, lately: Json, ever: Json) -> Json:
    return {
        "name": name,
        "promise": ever["promise"],
        "promise_most": ever.get("promise_most", ever["promise"]),
        "promised": lately["promised"],
        "attained": lately["attained"],
        "attainment": lately["attained"] / lately["promised"] if lately["promised"] else None,
        "promised_ever": ever["promised"],
        "attained_ever": ever["attained"],
        "ended": sum(lately["outcomes"].values()),
        "outcomes": lately["outcomes"],
        "live": ever["offered"] - sum(ever["outcomes"].values()),
        "ttft_s": _quantiles(TTFT_BOUNDS_S, lately["ttft"]),
        "gap_s": _quantiles(GAP_BOUNDS_S, lately["gap"]),
        "pause_s": _quantiles(PAUSE_BOUNDS_S, lately["pause"]),
        "broke": lately["broke"],
        "late": lately["late"],
        "late_s": {c: max(lately["late_s"].get(c, 0.0), 0.0) for c in CAUSES},
    }


def _model_row(lately: Json) -> Json:
    """Return how well the core foresaw the steps, and what its plans cost."""
    ratios = combine(lately["ratios"]["decode"], lately["ratios"]["mixed"])
    bounded, beyond = (sum(lately[key].values()) for key in ("bounded", "beyond"))
    lengths = lately["lengths"]
    num_lengths = sum(lengths.values())
    return {
        "ratio": _quantiles(RATIO_BOUNDS, ratios),
        "beyond_share": beyond / bounded if bounded else None,
        "covered_share": lengths["covered"] / num_lengths if num_lengths else None,
        "plan_s": _quantiles(PLAN_BOUNDS_S, lately["plan"]),
        "chances": whole_of(lately["chances"])._asdict() if "chances" in lately else None,
    }


def _quantiles(bounds: tuple[float, ...], histogram: Json) -> Json:
    counts = [max(c, 0) for c in histogram["counts"]]
    found = {name: quantile(bounds, counts, q) for name, q in (("p50", 0.5), ("p99", 0.99))}
    return {name: value if value is None or math.isfinite(value) else None
            for name, value in found.items()}  # fmt: skip
