"""The report's tables of targets and tenants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from headway.metrics.budgets import burn_rate
from headway.metrics.kept import KeptRequest
from headway.web.tables import NOTHING

MOST_TENANTS = 50
"""Lines of tenants a run: as many as /metrics tells by name."""

Runs = Mapping[str, Sequence[KeptRequest]]
"""Label of a run → its requests."""


def targets(runs: Runs) -> str | None:
    """Return what was aimed at and what came of it; ``None`` where nobody has a target."""
    rows: list[str] = []
    for label, requests in runs.items():
        for what, name, target, promised in _groups(requests):
            kept = sum(request.attained for request in promised)
            spent = burn_rate(len(promised), len(promised) - kept, target)
            rows.append(
                f"<tr><td>{escape(label)}</td><td>{what} {escape(name)}</td>"
                f"<td>{100 * target:.6g}</td><td>{len(promised)}</td>"
                f"<td>{_percent(kept, len(promised))}</td><td>{100 * spent:,.0f}</td></tr>"
            )
    if not rows:
        return None
    return (
        '<div class="wide"><table><tr><th>policy</th><th>of whom</th><th>target, %</th>'
        "<th>promises</th><th>kept, %</th><th>error budget spent, %</th></tr>"
        f"{''.join(rows)}</table></div>"
    )


def _groups(
    requests: Iterable[KeptRequest],
) -> list[tuple[str, str, float, list[KeptRequest]]]:
    """Return kind, name, target and promised requests of each group with a target."""
    found: dict[tuple[str, str], list[KeptRequest]] = {}
    aims: dict[tuple[str, str], float | None] = {}
    for request in sorted(requests, key=lambda r: r.arrived_at_s):
        slo = request.slo
        whose = [("class", slo.class_name, slo.target), ("tenant", slo.tenant, slo.tenant_target)]
        for what, name, target in whose:
            if name:
                aims[what, name] = target  # The newest one counts.
            if name and slo.is_promise:
                found.setdefault((what, name), []).append(request)
    return [
        (what, name, target, found.get((what, name), []))
        for (what, name), target in sorted(aims.items(), key=lambda item: item[0])
        if target is not None
    ]


def tenants(runs: Runs) -> str | None:
    """Return what each tenant asked for and got; ``None`` where there is one, or none."""
    counts = Counter(r.slo.tenant for requests in runs.values() for r in requests)
    if len(counts) < 2:
        return None
    named = [name for name, _ in counts.most_common(MOST_TENANTS)]
    rows: list[str] = []
    for label, requests in runs.items():
        of: dict[str | None, list[KeptRequest]] = {}
        for request in requests:
            name = request.slo.tenant
            of.setdefault(name if name in named else None, []).append(request)
        rows += [_tenant_row(label, name or "no tenant", of[name]) for name in named if name in of]
        if None in of:
            rest = f"{len(counts) - len(named)} others"
            rows.append(_tenant_row(label, rest, of[None]))
    return (
        '<div class="wide"><table><tr><th>policy</th><th>tenant</th><th>requests</th>'
        "<th>promises</th><th>kept, %</th><th>prompt tokens</th><th>output tokens</th></tr>"
        f"{''.join(rows)}</table></div>"
    )


def _tenant_row(label: str, name: str, requests: Sequence[KeptRequest]) -> str:
    promised = [request for request in requests if request.slo.is_promise]
    answered = [request for request in requests if request.emitted_at_s]
    kept = sum(request.attained for request in promised)
    return (
        f"<tr><td>{escape(label)}</td><td>{escape(name)}</td><td>{len(requests):,}</td>"
        f"<td>{len(promised):,}</td><td>{_percent(kept, len(promised))}</td>"
        f"<td>{sum(r.num_prompt_tokens for r in answered):,}</td>"
        f"<td>{sum(len(r.emitted_at_s) for r in answered):,}</td></tr>"
    )


def _percent(kept: int, promised: int) -> str:
    return f"{100 * kept / promised:.1f}" if promised else NOTHING
