"""What becomes of a claim: verdicts, dashes where figures are missing, the words of a table."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from headway.study.claims import ClaimReading, PaperClaim, Verdict, verdicts
from headway.study.claims_table import HEAD, cells, published, reading_cells
from headway.study.experiments import ACCELGEN, CACHEOPT, VLLM_V0_SWAP, Experiment
from headway.study.paper_grid import FIGURE, FIGURES

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "experiments"))
papers: Any = importlib.import_module("papers")

GAP, LONGEST = FIGURE["gap p95"], FIGURE["longest gap of a request, p95"]
TAIL = PaperClaim(
    "tail", 2.0, "factor", (ClaimReading("all", GAP), ClaimReading("longest", LONGEST))
)


def row(policy: str, rate_rps: float = 1.0, **figures: float) -> dict[str, Any]:
    """Return a row of a table; underscores stand for blanks."""
    named = {name.replace("_", " "): value for name, value in figures.items()}
    kept = [named.get("attainment", 1.0)]
    base = {"policy": policy, "workload": "chat", "rate_rps": rate_rps, "attainment_per_seed": kept}
    return base | named


def judged(claim: PaperClaim, *rows: dict[str, Any]) -> Verdict:
    """Return the verdict of ours against one baseline of each kind."""
    (verdict,) = verdicts([claim], {"main": rows}, ["us"], ["old"], ["stock", "tuned"])
    return verdict


@pytest.mark.parametrize(
    ("old", "stock", "outcome"),
    [
        (0.20, 0.20, "reached"),
        (0.20, 0.15, "reached only against the day's baselines"),
        (0.15, 0.20, "reached only against today's vLLM"),
        (0.15, 0.15, "not reached"),
        (0.1996, 0.1996, "reached"),  # It shows as 2.00 times.
        (0.1994, 0.1994, "not reached"),
    ],
)
def test_outcomes(old: float, stock: float, outcome: str) -> None:
    """A claim is reached against both, one or none; as shown, to the last digit."""
    rows = (row("us", gap_p95=0.1), row("old", gap_p95=old), row("stock", gap_p95=stock))
    shown = judged(TAIL, *rows).shown
    assert shown is not None
    assert shown.outcome == outcome


def test_the_best_at_that_load_counts() -> None:
    """A weak rival at the same load, or a strong one elsewhere, changes nothing."""
    rows = (
        row("us", gap_p95=0.1), row("old", gap_p95=0.3), row("stock", gap_p95=9.0),
        row("tuned", gap_p95=0.15),
        row("us", 2.0, gap_p95=0.4), row("old", 2.0, gap_p95=0.1), row("tuned", 2.0, gap_p95=0.1),
    )  # fmt: skip
    shown = judged(TAIL, *rows).shown
    assert shown is not None
    assert shown.today is not None
    assert shown.today.best.gain == pytest.approx(1.5)
    assert (shown.today.best.rival, shown.today.best.rate_rps) == ("tuned", 1.0)


def test_the_reading_that_reaches_is_shown() -> None:
    """The first reading does not, the second does: that one, and how many of them do."""
    both = {"longest_gap_of_a_request,_p95": 1.0}
    rows = (
        row("us", gap_p95=0.1, **both),
        *(row(n, gap_p95=0.1, **dict.fromkeys(both, 5.0)) for n in ("old", "stock")),
    )
    verdict = judged(TAIL, *rows)
    assert cells([verdict])[0][-2:] == ("longest", "reached, by 1 of 2 readings")
    assert [r[-1] for r in reading_cells([verdict])] == ["not reached", "reached"]


def test_what_was_not_measured_has_a_dash() -> None:
    """No rows, no rival, or a figure that old runs do not have: dashes, and no verdict."""
    for rows in ([], [row("us", gap_p95=0.1)], [row(n) for n in ("us", "old", "stock")]):
        verdict = judged(TAIL, *rows)
        assert verdict.shown is None
        assert cells([verdict])[0][3:] == ("–", "–", "–", "–")
        assert verdict.document()["verdict"] is None
    half = judged(TAIL, row("us", gap_p95=0.1), row("old", gap_p95=0.4))
    assert cells([half])[0][3:] == ("4.00 ×, old, chat at 1/s", "–", "–", "–")


def test_a_factor_of_nothing_is_none() -> None:
    """Goodput of zero: no load, rather than a factor without end."""
    claim = PaperClaim("goodput", 2.0, "factor", (ClaimReading("kept/s", FIGURE["goodput"]),))
    rows = [row("us", goodput=1.0), row("old", goodput=0.0), row("stock", goodput=0.5)]
    finding = judged(claim, *rows).findings[0]
    assert finding.day is None
    assert finding.today is not None


def test_a_capacity_beyond_the_table_is_said_to_be_more() -> None:
    """Ours keeps 90 % at the highest rate: at least; a rival that does has no capacity known."""
    claim = PaperClaim("rate", 1.5, "factor", (ClaimReading("90 % kept", None),))

    def rows(ours: float, theirs: float) -> list[dict[str, Any]]:
        kept = {"us": (1.0, ours), "old": (1.0, theirs), "stock": (1.0, theirs)}
        return [
            row(name, rate_rps, attainment=share)
            for name, shares in kept.items()
            for rate_rps, share in zip((1.0, 2.0), shares, strict=True)
        ]

    assert cells([judged(claim, *rows(0.95, 0.8))])[0][3] == "at least 1.33 ×, old, chat"
    assert judged(claim, *rows(0.8, 0.95)).shown is None


def test_a_claim_is_said_once_for_both_policies() -> None:
    """The second row names the policy; every row has all columns."""
    rows = [row(n, gap_p95=0.1) for n in ("us", "headway", "old", "stock")]
    found = verdicts([TAIL], {"main": rows}, ["us", "headway"], ["old"], ["stock"])
    table = cells(found)
    assert [r[:3] for r in table] == [("tail", "us", "2 ×"), ("", "headway", "")]
    assert {len(r) for r in (*table, *reading_cells(found))} == {len(HEAD)}


@pytest.mark.parametrize("experiment", [CACHEOPT, ACCELGEN])
def test_every_number_of_the_abstracts_can_be_judged(experiment: Experiment) -> None:
    """Readings name figures of rows and tables of the experiment; every group is played."""
    tables = experiment.tables()
    for claim in experiment.claims:
        for reading in claim.readings:
            assert reading.figure is None or reading.figure in FIGURES
            played = {c.label for c in tables[reading.table].contenders}
            rivals = [claim.near] if claim.near else [*experiment.of_their_day, "stock"]
            needed = {experiment.ours, "headway", *rivals}
            if not tables[reading.table].machine.host_tokens:
                needed.discard(VLLM_V0_SWAP.label)
            assert needed <= played
    said = [published(claim) for claim in experiment.claims]
    assert said == {
        "cacheopt": ["3.29 ×", "2.83 ×", "+47 points", "+53 points", "1.58 ×"],
        "accelgen": [
            "1.42 to 11.21 ×", "1.43 to 13.71 ×", "+37 to +90 points", "1.61 to 12.22 ×",
            "within 6 % of the oracle", "within 1.1 points of the oracle",
            "within 12 % of the oracle",
        ],
    }[experiment.name]  # fmt: skip


@pytest.mark.parametrize("experiment", [CACHEOPT, ACCELGEN])
def test_the_page_is_what_the_kept_figures_say(experiment: Experiment) -> None:
    """``python experiments/papers.py NAME`` would change nothing, whatever the figures lack."""
    kept = ROOT / "experiments" / experiment.name / "results.json"
    page = papers.PAGE.read_text(encoding="utf-8")
    assert papers.with_verdicts(page, json.loads(kept.read_text()), experiment) == page


def test_gaps_of_old_runs_are_those_of_the_old_reading() -> None:
    """Before the pause 99 % of the gaps was the promise: the figure is not shown as today's."""
    rows = [row(n, TBT_attainment=0.5) for n in ("cacheopt", "sarathi", "stock")]
    found = {
        key: next(v for v in papers.verdicts_of({"main": rows} | more, CACHEOPT) if v.shown)
        for key, more in (("old", {}), ("new", {"definition": "pause"}))
    }
    assert {
        key: verdict.shown and verdict.shown.reading.name for key, verdict in found.items()
    } == {
        "old": "99 % of the gaps",
        "new": "99 % of the gaps, no freeze",
    }
