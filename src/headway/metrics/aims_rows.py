"""Budgets and tenants as the page and ``headway top`` show them, over all schedulers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from headway.metrics.budgets import together
from headway.metrics.tenant_counts import OTHERS

Json = dict[str, Any]
Messages = Mapping[str, Mapping[str, Any]]
"""The latest message of each scheduler, by its name."""


def budget_of(messages: Messages, kind: str, name: str, now_unix_s: float) -> Json | None:
    """Return a group's budget (:func:`~headway.metrics.budgets.together`) over all schedulers.

    Args:
        kind: ``"class"`` or ``"tenant"``.

    Returns:
        ``None`` where the group has no target.
    """
    newest_last = sorted(messages.values(), key=lambda m: float(m["unix_s"]))
    told = [(m.get("budgets", {}).get(kind, {}).get(name), m["unix_s"]) for m in newest_last]
    return together((one, now_unix_s - at_s) for one, at_s in told if one is not None)


def tenant_rows(messages: Messages, window: Json, now_unix_s: float) -> list[Json]:
    """Return what became of the requests of each tenant, the most requests first, others last.

    Args:
        window: Counts of some span of time. Who is told by name no more since it began has
            negative ones there, and no row.
    """
    counts = {name: _risen(tally) for name, tally in window.get("tenants", {}).items()}
    engine_s = sum(tally["engine_s"] for tally in counts.values())
    rows = [
        {
            "name": name,
            "ended": sum(tally["outcomes"].values()),
            "refused": tally["outcomes"]["refused"],
            "promised": tally["promised"],
            "attained": min(tally["attained"], tally["promised"]),
            "tokens": tally["prompt_tokens"] + tally["output_tokens"],
            "engine_share": tally["engine_s"] / engine_s if engine_s else None,
            "budget": budget_of(messages, "tenant", name, now_unix_s),
        }
        for name, tally in counts.items()
        if any(tally["outcomes"].values()) or tally["engine_s"] > 0
    ]
    rows.sort(key=lambda row: (row["name"] == OTHERS, -row["ended"], row["name"]))
    return rows


def _risen(tally: Mapping[str, Any]) -> Json:
    """Return what rose of a difference of two tallies."""
    risen = {k: max(v, 0) for k, v in tally.items() if k != "outcomes"}
    return {**risen, "outcomes": {k: max(v, 0) for k, v in tally["outcomes"].items()}}
