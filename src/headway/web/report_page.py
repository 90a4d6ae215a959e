"""The report: one page about many runs, readable without a network, in plain words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

import plotly.graph_objects as go  # type: ignore[import-untyped]

from headway.errors import UserError
from headway.metrics import define, lateness
from headway.metrics.deciles import ENOUGH
from headway.metrics.lateness import ClassLateness
from headway.web import aims_tables, load_figures, reliability, run_figures, tables, wait_figures
from headway.web.material import Material, load_rps
from headway.web.page import Page
from headway.web.sentences import (
    first_of,
    largest_of,
    mean_of,
    over_load,
    scales,
    seed_of,
    steps_against_promise,
    verdict,
    which_runs,
    why_late,
)
from headway.web.series import Group, Labels, chosen, classes_of, groups_of
from headway.web.wait_figures import ComparedRun

MAX_CLASSES = 6
MAX_INSIDE = 6
"""Runs drawn from the inside: each adds about a third of a megabyte."""

WIDE_STYLE = """
main { max-width: 1240px; }
.wide { overflow-x: auto; }
td i { display: inline-block; width: .8rem; height: .8rem; border-radius: 50%;
       margin-right: .5rem; vertical-align: -1px; }
td small { display: block; color: #5b6675; font-size: .75rem; white-space: nowrap; }
table { font-size: .92rem; }
th, td { padding: .35rem .45rem; }
th { vertical-align: bottom; color: #5b6675; font-weight: 600; }
.facts td { text-align: left; } .facts td:first-child { width: 12rem; color: #5b6675; }
"""


def page_of(
    material: Material, *, title: str = "Promises kept, run by run", rate_rps: float | None = None
) -> str:
    """Return the report as HTML, Plotly's script included.

    Args:
        material: What to show.
        title: The page's heading.
        rate_rps: The load whose kept runs are drawn from the inside; ``None`` takes the
            heaviest that all policies have.

    Raises:
        UserError: *rate_rps* is given and no kept run has it.
    """
    labels = Labels(material.runs)
    groups = groups_of(material.runs, labels)
    picked = chosen(material.kept, groups, labels, rate_rps)
    if rate_rps is not None and not picked:
        known = ", ".join(f"{at:g}" for at in sorted({load_rps(f.run) for f in material.kept}))
        raise UserError(
            f"No kept run has a rate of {rate_rps:g} requests/s; there are: {known or 'none'}."
        )
    colour_of = {group.label: group.colour for group in groups}
    shown = [
        ComparedRun.of(labels.of(file.run), colour_of[labels.of(file.run)], file)
        for file in picked[:MAX_INSIDE]
    ]
    page = Page()
    page.parts += [f"<h1>{escape(title)}</h1>", f'<p class="lead">{escape(verdict(groups))}</p>']
    _over_load(page, groups, classes_of(material.runs))
    _compared(page, shown, len(picked))
    for one in shown:
        _inside(page, one)
    if not material.kept:
        page.section(
            "Inside the runs",
            "No run was kept with its steps and requests, so the waits, the causes of lateness and"
            " the timelines are not here. Simulate with <code>--keep FOLDER</code> and give that"
            " folder to the report.",
        )
    page.section(
        "What was run",
        "Every setting that the files name. A run is offered all its requests at moments fixed"
        " beforehand, whatever the server does."
        + (
            f" {material.num_left_out} kept runs that no summary names are left out."
            if material.num_left_out
            else ""
        ),
        tables.settings(material),
    )
    return page.document(title, WIDE_STYLE)


def _over_load(page: Page, groups: Sequence[Group], class_names: Sequence[str]) -> None:
    """Add what the summaries say."""
    page.section(
        "Key figures",
        "One row is one policy at one load: the mean over its runs, and in small print the least"
        " and the greatest of them. A request counts as kept when it got everything it was"
        " promised; refused, failed and lost ones count as broken. A promised gap is kept when"
        " 99 % of the gaps keep it and no pause is longer than the promise allows. Beside that, by"
        " other readings of the gaps: 99 % without the pause, every gap, and a pace (99 % of the"
        " tokens by the promised first one plus so many gaps). Times are of all tokens that"
        " came; plan is how long the policy thought about a step. The best at each load is in"
        f" bold.{_by_what(groups)}",
        tables.key_figures(groups),
    )
    page.section(
        "How many promises are kept, and what that is worth",
        over_load(one_load=load_figures.has_one_load(groups)),
        load_figures.attainment(groups),
    )
    if len(class_names) > 1:
        page.section(
            "Kind of user by kind of user",
            "The same, for each class of requests by itself: an average can hide a class that is"
            " paid for by another." + largest_of(len(class_names), MAX_CLASSES, "classes"),
            load_figures.by_class(groups, class_names[:MAX_CLASSES]),
        )
    if any(group.off for group in groups):
        page.section(
            "If the machine were slower or faster than thought",
            f"The same with every step taking {scales(groups)} of its time: a simulated machine is"
            " never exactly the real one. Upper chart: from the least to the greatest share over"
            " all scales and seeds; this is how far to trust the absolute figures. Lower charts:"
            " one machine each; a policy is better where its line is higher on every machine.",
            load_figures.step_time_band(groups),
            load_figures.by_machine(groups),
        )
    page.section(
        "The middle and the tail of the waits",
        "Half of all waits are shorter than P50; one in a hundred is longer than P99. Upper row:"
        " from asking to the first token. Lower row: between one token and the next. Lower is"
        " better; the scale of times is logarithmic where there are several loads. Refused"
        " requests have no waits and are in none of these, so read them beside the promises kept.",
        load_figures.tails(groups),
    )
    expected = reliability.reliability(groups)
    if expected is not None:
        page.section(
            "What was expected, and what came of it",
            "When a request starts, it is told the chance that its promise is kept. One point"
            " is the requests of one run that were told about the same: to the right the chance,"
            " upwards the share that was kept. On the dotted line the chances were right; above it"
            " they were too careful. Larger points are more requests; hollow ones are fewer than"
            f" {ENOUGH}.{reliability.sentence(groups)}",
            expected,
        )


def _by_what(groups: Sequence[Group]) -> str:
    """Return what the runs mean by a kept promise, where it is not what they would mean now."""
    runs = [run for group in groups for run in (*group.runs, *group.off)]
    differing = define.differing_sentence(runs)
    if differing is not None:
        return f" {differing}"
    if all(define.definition_of(run) == define.PLAIN for run in runs):
        return " These runs were counted by 99 % of the gaps alone, however long a pause was."
    return ""


def _compared(page: Page, shown: Sequence[ComparedRun], num_kept: int) -> None:
    """Add what kept runs say side by side."""
    if not shown:
        return
    which = f"One run of each policy, {which_runs(shown)}.{first_of(len(shown), num_kept)} "
    first, gaps = wait_figures.first_token_waits(shown), wait_figures.gap_waits(shown)
    if first is not None:
        page.section(
            "The wait for the first token",
            which + "Each curve climbs as more requests have their first token; the further left,"
            " the sooner. Where it crosses the dotted line is the share that came in time. What"
            " came later than four times the promise is beyond the right edge; a request that was"
            " refused never comes.",
            first,
        )
    if gaps is not None:
        page.section(
            "The pauses while the answer comes",
            which + "The same for the time between two tokens. A request keeps this promise when"
            " 99 % of its own gaps do and none is a longer pause than it allows, so the curve has"
            " to be close to the top at the dotted line.",
            gaps,
        )
    _aims(page, {one.label: one.kept.requests for one in shown}, which)
    found = {one.label: lateness.by_class(one.kept.requests, one.late) for one in shown}
    page.section("Where lateness came from", which + why_late(found), *_lateness(found))


def _aims(page: Page, runs: aims_tables.Runs, which: str) -> None:
    """Add what operators aimed at, and who paid, where the runs say so."""
    targets, tenants = aims_tables.targets(runs), aims_tables.tenants(runs)
    if targets is not None:
        page.section(
            "Targets",
            which + "A target is the share of promises that the operator wants kept; what may break"
            " beside it is the error budget. Beyond 100 % more broke than may, as of this run"
            " alone.",
            targets,
        )
    if tenants is not None:
        page.section(
            "Tenants",
            which
            + "Those with the most requests first. Tokens are those of requests that got any.",
            tenants,
        )


def _lateness(found: Mapping[str, Mapping[str, ClassLateness]]) -> list[go.Figure | str]:
    some = any(late.total_s for of in found.values() for late in of.values())
    table = tables.lateness(found)
    return [wait_figures.lateness(found), table] if some else [table]


def _inside(page: Page, one: ComparedRun) -> None:
    """Add one kept run from the inside."""
    timeline, requests = one.kept.timeline, one.kept.requests
    rows = run_figures.worst_stretch(requests)
    num_late = sum(not request.attained for request in requests)
    parts: list[go.Figure | str] = [
        "<h3>Each request</h3><p>One line is one request, from the moment it arrived; red marks a"
        " broken promise. Rest the pointer on a line for its story."
        + (
            f" Shown are the {len(rows)} arrivals in a row with the most broken promises, of"
            f" {len(requests)}."
            if len(rows) < len(requests)
            else ""
        )
        + "</p>",
        run_figures.waterfall(rows, one.late),
    ]
    if len(timeline):
        every = run_figures.Bins.of(timeline).num_steps
        parts += [
            "<h3>The KV cache</h3><p>What running requests hold, what they are predicted to need"
            " beside that, and what is free, stacked up to the capacity (black line). Above it:"
            " reserved room that somebody else uses meanwhile; it has to come back in time."
            f"{mean_of(every)}</p>",
            run_figures.kv_over_time(timeline),
            f"<h3>Each step</h3><p>{steps_against_promise(one, every)}</p>",
            run_figures.steps_over_time(timeline),
        ]
    page.section(
        f"Inside {one.label}",
        f"{load_rps(one.run):g} requests/s{seed_of(one.run)}: {num_late} of"
        f" {len(requests)} promises broken, {len(timeline):,} steps.",
        *parts,
    )
