"""What the report says in words: the verdict, and what to see in each figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import numpy as np

from headway.metrics.lateness import ClassLateness
from headway.web.material import Run, band, load_rps
from headway.web.series import Group, percent_of, points
from headway.web.theme import CAUSE_NAMES
from headway.web.wait_figures import ComparedRun


def verdict(groups: Sequence[Group]) -> str:
    """Return the result in one or two sentences: who kept how much at the heaviest common load."""
    reader = percent_of("attainment")
    lines = {group.label: {p.load_rps: p for p in points(group.runs, reader)} for group in groups}
    lines = {label: line for label, line in lines.items() if line}
    if not lines:
        return "No run says how many promises it kept."
    common = set.intersection(*(set(line) for line in lines.values()))
    if not common:
        return f"{len(lines)} policies, measured at different loads."
    at_rps = max(common)
    kept = sorted(((line[at_rps].mean, label) for label, line in lines.items()), reverse=True)
    shares = ", ".join(f"{label} {share:.3g}\u00a0%" for share, label in kept)
    if len(kept) == 1:
        share, label = kept[0]
        return f"At {at_rps:g} requests a second, {label} kept {share:.3g}\u00a0% of promises."
    heaviest = "the heaviest load that all were run at, " if len(common) > 1 else ""
    return f"Promises kept at {heaviest}{at_rps:g} requests a second: {shares}."


def over_load(*, one_load: bool) -> str:
    """Return what to see in the figure of promises kept and goodput."""
    if one_load:
        return (
            "Left: the share of requests that got all they were promised. Right: how many that is"
            " a second. Thin lines: from the worst to the best seed."
        )
    return (
        "Left: a good line stays at the top as the load grows; where it bends down, the machine is"
        " full. Right: kept promises per second; a good line follows the dotted one (every promise"
        " kept), and one that turns down does more work for nobody. Shaded: from the worst to the"
        " best seed."
    )


def why_late(found: Mapping[str, Mapping[str, ClassLateness]]) -> str:
    """Return how to read the causes, and what most of the lateness was."""
    unanswered = sum(late.num_unanswered for of in found.values() for late in of.values())
    return (
        "For each broken promise, the seconds beyond what was promised, charged to what the request"
        " was doing in the span that became late, in proportion. Long grey or blue: it did not get"
        " in. Amber: its prompt was cut into too many pieces. Purple: it was thrown out, or moved"
        " out to the host (pale). Teal: the steps were too long or went to others. Red: the"
        " forecast of the step was wrong."
        + main_causes(found)
        + (
            f" {unanswered} requests broke their promise without a wait to measure (refused, or cut"
            " off in time); they are counted in the table and have no seconds."
            if unanswered
            else ""
        )
    )


def main_causes(found: Mapping[str, Mapping[str, ClassLateness]]) -> str:
    """Return one sentence a run: what most of its lateness was."""
    sentences = []
    for label, of in found.items():
        total_s = sum(late.total_s for late in of.values())
        by_cause_s = {c: sum(late.by_cause_s[c] for late in of.values()) for c in CAUSE_NAMES}
        worst = max(by_cause_s, key=lambda cause: by_cause_s[cause])
        if total_s:
            sentences.append(
                f" <b>{escape(label)}</b>: {total_s:,.0f} s late in all,"
                f" {100 * by_cause_s[worst] / total_s:.0f}\u00a0% of it {CAUSE_NAMES[worst]}."
            )
    return "".join(sentences)


def steps_against_promise(one: ComparedRun, every: int) -> str:
    """Return what the figure of the steps shows, and how many broke their promise."""
    timeline = one.kept.timeline
    has_plan = np.isfinite(timeline.planned_s)
    promised = int(has_plan.sum())
    over = int((timeline.spans_s[has_plan] > timeline.planned_s[has_plan]).sum())
    sentence = "Top: how long steps took; middle: what they computed; bottom: the queue."
    if promised:
        sentence += (
            f" The policy promised a bound for {promised:,} of them; {over:,}"
            f" ({100 * over / promised:.2g} %) took longer (red)."
        )
    else:
        sentence += " This policy bounds the time of no step."
    if every > 1:
        sentence += (
            f" Of every {every} steps in a row the longest is drawn and the one furthest beyond its"
            " promise, so red looks more frequent than it is; the areas are means."
        )
    return sentence


def mean_of(every: int) -> str:
    """Return what a point of a thinned figure is."""
    return f" Each point is the mean over {every} steps." if every > 1 else ""


def which_runs(shown: Sequence[ComparedRun]) -> str:
    """Return the load and, when it is one, the seed of the runs that are compared."""
    loads = sorted({load_rps(one.run) for one in shown})
    at = " and ".join(f"{load:g}" for load in loads)
    seeds = {one.run.get("seed") for one in shown}
    return f"at {at} requests/s" + (seed_of(shown[0].run) if len(seeds) == 1 else "")


def seed_of(run: Run) -> str:
    """Return the seed of a run in words."""
    return "" if run.get("seed") is None else f", seed {run['seed']}"


def scales(groups: Sequence[Group]) -> str:
    """Return the scales of the step times in words."""
    found = sorted({band(run) for group in groups for run in group.off})
    return " and ".join(f"{100 * (1 + share):.0f} %" for share in found)


def first_of(shown: int, found: int) -> str:
    """Return that not all policies are drawn, where that is so."""
    return f" Shown are the first {shown} of {found} policies." if found > shown else ""


def largest_of(found: int, most: int, what: str) -> str:
    """Return that not all of something are drawn, where that is so."""
    return f" Shown are the {most} largest of {found} {what}." if found > most else ""
