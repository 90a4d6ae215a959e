"""The rows of ``headway verify``: what was seen, judged by a rule that is written beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any, Literal

from headway.bench.show import percent
from headway.bench.verify_counts import StepFigures
from headway.bench.verify_tokens import TokenComparison
from headway.units import format_s

Verdict = Literal["ok", "look", "not measured"]
Run = Mapping[str, Any]

MOST_ERROR = 0.2
"""Half of the steps are foretold better on a machine that does nothing else; 5 to 10 % is usual."""

MOST_BEYOND = 0.05
"""1 % is aimed at; a run this short meets few bounds, and shared machines stall."""

MOST_PLAN_SHARE = 0.05
LEAST_THROUGHPUT, MOST_GAP = 0.95, 1.1
"""Of stock's. Beyond that a round of stock's own must have been as bad."""

SPARE_ANSWERS = 2
"""Answers by which two draws of the same rare event differ easily."""

NO_BOUND = "No step was promised to end by a bound."
NO_STEPS = "The server has counted no step since the warm-up."
NO_PAGE = "The Headway server shows no metrics of its own; start it with --page."


@dataclass(frozen=True, slots=True)
class VerifyRow:
    """One row.

    Attributes:
        key: Name in ``verify.json``.
        found: What was seen, or why nothing was, in one or two sentences.
        rule: What makes the verdict ``ok``.
    """

    key: str
    title: str
    verdict: Verdict
    found: str
    rule: str
    figures: Mapping[str, Any] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        """Return the row as JSON's types."""
        return asdict(self)


@dataclass(slots=True)
class Findings:
    """What a run has seen so far; what it has not seen stays empty.

    Attributes:
        why_not: By row, or ``""`` for all: why something could not be measured.
        features: What the Headway server told of its engine.
        num_asides: Steps that it left to vLLM because nothing came of a plan.
        stock, headway: Runs without promises, in order; those of one number had the same requests.
        mixed: The load with promises, by server.
        promises: The promises of that load, by class.
    """

    why_not: dict[str, str] = field(default_factory=dict)
    features: Mapping[str, Any] = field(default_factory=dict)
    num_asides: int = 0
    tokens: TokenComparison | None = None
    steps: StepFigures | None = None
    stock: list[Run] = field(default_factory=list)
    headway: list[Run] = field(default_factory=list)
    mixed: dict[str, Run] = field(default_factory=dict)
    promises: dict[str, Any] = field(default_factory=dict)


def rows_of(seen: Findings) -> list[VerifyRow]:
    """Return every row; one that could not be measured says why."""
    judged = (_hooks, _tokens, _step_error, _beyond, _plan, _throughput, _gap, _promises)
    rows = []
    for (key, (title, rule)), judge in zip(ROWS.items(), judged, strict=True):
        found = judge(seen)
        why = seen.why_not.get(key) or seen.why_not.get("") or "It was not reached."
        verdict, text, figures = found or ("not measured", why, {})
        rows.append(VerifyRow(key, title, verdict, text, rule, figures))
    return rows


ROWS = {
    "hooks": (
        "hooks and features",
        "Every hook is there, the release was tried, and no step was left to vLLM.",
    ),
    "tokens": (
        "tokens under preemption and swap",
        "Requests were preempted both ways. If stock's answers do not change with the batch,"
        f" neither do Headway's; otherwise at most {SPARE_ANSWERS} more of Headway's differ than of"
        " stock's.",
    ),
    "step_error": (
        "step-time model",
        f"Half of the steps take within {percent(MOST_ERROR)} of what was predicted.",
    ),
    "beyond_bound": (
        "steps longer than promised",
        f"At most {percent(MOST_BEYOND)} of the bounded steps, after the warm-up.",
    ),
    "plan": ("time to plan", f"At most {percent(MOST_PLAN_SHARE)} of the steps' time."),
    "throughput": (
        "throughput without promises",
        f"The median is at least {percent(LEAST_THROUGHPUT)} of stock's, or stock's worst round.",
    ),
    "gap": (
        "p99 gap without promises",
        f"The median is at most {percent(MOST_GAP)} of stock's, or stock's worst round.",
    ),
    "promises": (
        "promises kept at 0.9 of capacity",
        "Not fewer than stock kept, by more than two standard errors of the difference.",
    ),
}
"""Title and rule of each row."""

Judged = tuple[Verdict, str, dict[str, Any]] | None


def _verdict(is_ok: bool) -> Verdict:
    return "ok" if is_ok else "look"


def _hooks(seen: Findings) -> Judged:
    told = seen.features
    if not told:
        return None
    on = [
        name if value is True else f"{name} {value}" for name, value in told["on"].items() if value
    ]
    off = [name for name, value in told["on"].items() if not value]
    tried = "" if told["is_tried"] else " (not among the releases tried)"
    sentences = [
        f"vLLM {told['vllm']}{tried}: all {told['num_hooks']} hooks found, {told['scheduler']} on"
        f" {told['device']}, {told['dtype']}.",
        f"On: {', '.join(on) or 'nothing'}. Off: {', '.join(off) or 'nothing'}.",
        *(told[key] for key in ("mistake", "unknown") if told[key]),
    ]
    if seen.num_asides:
        sentences.append(f"{seen.num_asides} steps were left to vLLM: please report it.")
    is_ok = told["is_tried"] and not (told["mistake"] or told["unknown"] or seen.num_asides)
    return _verdict(is_ok), " ".join(sentences), {**told, "steps_aside": seen.num_asides}


def _tokens(seen: Findings) -> Judged:
    found = seen.tokens
    if found is None or not sum(found.preempted.values()):
        return None
    swapped, again = found.preempted["swap"], found.preempted["recompute"]
    same = found.num_answers - found.num_differing
    text = (
        f"{same} of {found.num_answers} answers are stock's, token for token; {swapped} preempted"
        f" by swap, {again} by recompute. Of stock's own answers {found.num_differing_of_stock}"
        " differ when it computes them in other batches."
    )
    if not swapped and "swap" in seen.why_not:
        text += f" {seen.why_not['swap']}"
    is_ok = found.num_differing <= (
        found.num_differing_of_stock + SPARE_ANSWERS if found.num_differing_of_stock else 0
    )
    return _verdict(is_ok and swapped > 0 and again > 0), text, asdict(found)


def _step_error(seen: Findings) -> Judged:
    found = seen.steps
    if found is None:
        return None
    error = next((e for e, share in found.within.items() if share >= 0.5), math.inf)
    text = (
        f"Half of {found.num_steps} steps took within {percent(error)} of what was predicted"
        if math.isfinite(error)
        else f"Half of {found.num_steps} steps were more than 50 % off"
    )
    within = {percent(e): round(share, 4) for e, share in found.within.items()}
    text += f"; the median step took {found.median_ratio:.2f} of it."
    figures = {"num_steps": found.num_steps, "median_ratio": found.median_ratio, "within": within}
    return _verdict(error <= MOST_ERROR), text, figures


def _beyond(seen: Findings) -> Judged:
    found = seen.steps
    if found is None or not found.num_bounded:
        return None
    text = f"{100 * found.beyond_share:.1f} % of {found.num_bounded} steps that had a bound."
    figures = {"share": found.beyond_share, "num_bounded": found.num_bounded}
    return _verdict(found.beyond_share <= MOST_BEYOND), text, figures


def _plan(seen: Findings) -> Judged:
    found = seen.steps
    if found is None:
        return None
    share = f"{100 * found.plan_share:.2f} %"
    text = f"{1e3 * found.plan_s:.2f} ms a plan on average, {share} of the steps' time."
    figures = {"share": found.plan_share, "mean_s": found.plan_s}
    return _verdict(found.plan_share <= MOST_PLAN_SHARE), text, figures


def _throughput(seen: Findings) -> Judged:
    stock, ours = (_all(runs, _tokens_per_s) for runs in (seen.stock, seen.headway))
    if not stock or not ours:
        return None
    least = min(LEAST_THROUGHPUT * median(stock), *stock)
    text = f"{_spread(ours, '{:.0f}')} tokens a second; stock {_spread(stock, '{:.0f}')}."
    return _compared(seen, text, ours, stock, median(ours) >= least)


def _gap(seen: Findings) -> Judged:
    stock, ours = (_all(runs, lambda r: r["tbt_s"]["p99"]) for runs in (seen.stock, seen.headway))
    if not stock or not ours:
        return None
    most = max(MOST_GAP * median(stock), *stock)
    shown = (_spread([1e3 * s for s in spans], "{:.0f}") for spans in (ours, stock))
    text = "{} ms; stock {} ms.".format(*shown)
    return _compared(seen, text, ours, stock, median(ours) <= most)


def _compared(
    seen: Findings, text: str, ours: Sequence[float], stock: Sequence[float], is_ok: bool
) -> Judged:
    ratio = median(ours) / max(median(stock), 1e-9)
    rounds = min(len(ours), len(stock))
    text = f"{text} That is {ratio:.2f} of stock's, over {rounds} rounds each of"
    num_requests = seen.stock[0]["num_requests"]
    text += f" {num_requests} requests at once."
    figures = {"headway": list(ours), "stock": list(stock), "ratio": ratio}
    figures["num_requests"] = num_requests
    return _verdict(is_ok), text, figures


def _promises(seen: Findings) -> Judged:
    ours, stock = seen.mixed.get("headway"), seen.mixed.get("stock")
    if ours is None or stock is None:
        return None
    n = ours["num_requests"]
    kept, theirs = ours["num_attained"], stock["num_attained"]
    share = (kept + theirs) / (2 * n)
    spare = 2 * math.sqrt(2 * share * (1 - share) / n)
    text = (
        f"{kept} of {n} at {ours['rate_rps']:g} requests a second; stock {theirs}. Headway's p99"
        f" gap {format_s(ours['tbt_s']['p99'])}, stock's {format_s(stock['tbt_s']['p99'])}."
    )
    figures = {"headway": _summary(ours), "stock": _summary(stock), "promises": seen.promises}
    return _verdict((theirs - kept) / n <= spare), text, figures


def _summary(run: Run) -> dict[str, Any]:
    names = ("rate_rps", "num_requests", "num_attained", "attainment", "outcomes", "client_lag_s")
    classes = {n: [c["num_attained"], c["num_requests"]] for n, c in run["per_class"].items()}
    return {**{name: run[name] for name in names}, "kept_of_by_class": classes}


def _tokens_per_s(run: Run) -> float | None:
    value: float | None = run["output_tokens_per_s"]
    return value


def _all(runs: Sequence[Run], value: Any) -> list[float]:
    found = [value(run) for run in runs]
    return [float(v) for v in found if v is not None]


def _spread(values: Sequence[float], form: str) -> str:
    low, high = form.format(min(values)), form.format(max(values))
    return f"{form.format(median(values))} ({low} to {high})"
