"""What a fleet did, in lines for a terminal: who got how many requests, and who refused them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from headway.study.spec import Machine
from headway.study.sweep import Run

MOST_LISTED = 8
"""Servers whose counts a line on the terminal lists; of more it says the least and the most."""


def machines_text(machine: Machine) -> str:
    """Return a machine for the head of a table: its GPUs and, of several servers, the router."""
    count = len(machine.gpus)
    if count == 1:
        return machine.gpu_text
    text = machine.gpu_text if machine.replica_gpus else f"{count} x {machine.gpu_text}"
    text += f" by {machine.router}"
    if machine.signal_age_s:
        text += f" (signals {machine.signal_age_s:g} s old)"
    if machine.num_retries:
        text += f", refused requests tried at {machine.num_retries} more"
    return text


def fleet_lines(groups: Sequence[tuple[str, Sequence[Run]]]) -> Iterator[str]:
    """Yield a line for each labelled group of runs of a fleet, which differ in their seeds only.

    Counts are sums over the seeds.
    """
    for label, runs in groups:
        found = [run["fleet"] for run in runs if "fleet" in run]
        if not found:
            continue
        routed, refused = (
            [sum(counts) for counts in zip(*(one[name] for one in found), strict=True)]
            for name in ("routed", "refused")
        )
        line = f"{label}: sent to each server {_counts(routed)}; refused there {_counts(refused)}"
        tried = sum(one["tried_elsewhere"] for one in found)
        if tried:
            saved = sum(one["saved"] for one in found)
            line += f"; tried elsewhere {tried}, of them kept {saved}"
        yield f"{line}."


def _counts(counts: Sequence[int]) -> str:
    if len(counts) > MOST_LISTED:
        return f"{min(counts)} to {max(counts)}"
    return ", ".join(str(count) for count in counts)
