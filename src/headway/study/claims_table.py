"""The verdicts on a paper's claims as cells of a table, for a terminal and a page alike."""

from __future__ import annotations

from collections.abc import Sequence

from headway.study.claims import DECIMALS, Against, Finding, PaperClaim, Verdict
from headway.study.gains import Gain, Unit

HEAD = (
    "claim",
    "policy",
    "published",
    "against the day's baselines",
    "against today's vLLM",
    "reading",
    "verdict",
)
"""The columns."""

NOTHING = "–"


def cells(verdicts: Sequence[Verdict]) -> list[tuple[str, ...]]:
    """Return a row a verdict, by the reading that reaches most; a dash where is no figure.

    The second policy of a claim does not repeat it.
    """
    rows: list[tuple[str, ...]] = []
    for i, verdict in enumerate(verdicts):
        is_first = i == 0 or verdicts[i - 1].claim is not verdict.claim
        shown = verdict.shown
        row = _row(verdict, shown or verdict.findings[0], is_first)
        if shown is None:
            row = (*row[:-2], NOTHING, NOTHING)
        elif verdict.num_judged > 1:
            row = (*row[:-1], f"{row[-1]}, by {verdict.num_alike} of {verdict.num_judged} readings")
        rows.append(row)
    return rows


def reading_cells(verdicts: Sequence[Verdict]) -> list[tuple[str, ...]]:
    """Return a row for each reading of each verdict."""
    return [_row(verdict, one, True) for verdict in verdicts for one in verdict.findings]


def _row(verdict: Verdict, finding: Finding, with_claim: bool) -> tuple[str, ...]:
    claim = verdict.claim
    return (
        claim.text if with_claim else "",
        verdict.policy,
        published(claim) if with_claim else "",
        *_sides(finding, claim.unit),
        finding.reading.name,
        finding.outcome or NOTHING,
    )


def published(claim: PaperClaim) -> str:
    """Return what the paper says, with its unit."""
    sign, unit = _sign(claim.unit), _UNIT[claim.unit]
    if claim.near is not None:
        return f"within {-claim.published:g}{unit} of the {claim.near}"
    least = "" if claim.least is None else f"{claim.least:{sign}g} to "
    return f"{least}{claim.published:{sign}g}{unit}"


_UNIT: dict[Unit, str] = {"factor": " ×", "points": " points", "percent": " %"}


def _sides(finding: Finding, unit: Unit) -> tuple[str, str]:
    if finding.near is not None:
        return _against(finding.near, unit), NOTHING
    return _against(finding.day, unit), _against(finding.today, unit)


def _against(against: Against | None, unit: Unit) -> str:
    if against is None:
        return NOTHING
    best = _gain(against.best, unit)
    return best if against.weakest is None else f"{best}; up to {_gain(against.weakest, unit)}"


def _gain(gain: Gain, unit: Unit) -> str:
    """Return the gain, its seeds, against whom and where."""
    text = ("at least " if gain.is_bound else "") + _amount(gain.gain, unit)
    if gain.low is not None and gain.high is not None:
        text += f" ({_number(gain.low, unit)} to {_number(gain.high, unit)})"
    where = gain.workload if gain.rate_rps is None else f"{gain.workload} at {gain.rate_rps:g}/s"
    return f"{text}, {gain.rival}, {where}"


def _amount(amount: float, unit: Unit) -> str:
    return f"{_number(amount, unit)}{_UNIT[unit]}"


def _number(amount: float, unit: Unit) -> str:
    return f"{amount:{_sign(unit)}.{DECIMALS[unit]}f}"


def _sign(unit: Unit) -> str:
    return "" if unit == "factor" else "+"
