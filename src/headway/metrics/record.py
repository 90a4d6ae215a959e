"""What happened to each request of a run, and the summary of a run."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

from headway.metrics import define
from headway.slo import Slo

Outcome = Literal["finished", "refused", "failed", "timed_out", "aborted"]
OUTCOMES: tuple[str, ...] = get_args(Outcome)

MOST_TENANTS = 50
"""Tenants with figures of their own: a header may name any number."""

OTHERS = "others"
"""The tenants beyond, together."""


@dataclass(frozen=True)  # No slots: what many figures ask for is worked out once.
class RequestRecord:
    """One offered request, as its client saw it. Instants are seconds on the run's clock.

    Attributes:
        id: Name of the request in its workload.
        slo: What it was promised, its class name included.
        arrived_at_s: When it was *scheduled* to arrive; the client's own lag counts as waiting.
        emitted_at_s: When each output token reached the client; tokens of one chunk share a time.
        outcome: Only ``finished`` can be a kept promise.
        num_prompt_tokens: As counted by the server, else the workload's own figure.
        sent_at_s: When the client really sent it; ``None`` where there is no client.
        ended_at_s: When the outcome was known.
        detail: One sentence on why it was refused or failed.
    """

    id: str
    slo: Slo
    arrived_at_s: float
    emitted_at_s: tuple[float, ...]
    outcome: Outcome
    num_prompt_tokens: int
    sent_at_s: float | None = None
    ended_at_s: float | None = None
    detail: str = ""

    @property
    def num_output_tokens(self) -> int:
        """Tokens that reached the client."""
        return len(self.emitted_at_s)

    @property
    def finished(self) -> bool:
        """Whether the answer came to its natural end."""
        return self.outcome == "finished"

    @property
    def attained(self) -> bool:
        """Whether it finished and kept everything it was promised."""
        return self.attained_by("default")

    def attained_by(self, reading: define.Reading) -> bool:
        """Whether it finished and kept everything, the gaps by *reading*."""
        return self.finished and self._spans_kept and self.gaps_kept[reading]

    @cached_property
    def gaps_kept(self) -> dict[define.Reading, bool]:
        """Whether what was promised about gaps was kept, by each reading."""
        slo, arrived_at_s, emitted_at_s = self.slo, self.arrived_at_s, self.emitted_at_s
        return {
            reading: define.gaps_attained(slo, arrived_at_s, emitted_at_s, reading)
            for reading in define.READINGS
        }

    @cached_property
    def _spans_kept(self) -> bool:
        return define.spans_attained(self.slo, self.arrived_at_s, self.emitted_at_s)

    @cached_property
    def gaps_s(self) -> list[float]:
        """Its gaps, in seconds."""
        return define.gaps_s(self.emitted_at_s)


def write_records(path: str | Path, records: Sequence[RequestRecord]) -> None:
    """Write one JSON object a line."""
    with Path(path).open("w", encoding="utf-8") as out:
        for record in records:
            row = asdict(record)
            row["slo"] = record.slo.stamp()
            row["emitted_at_s"] = [round(at_s, 6) for at_s in record.emitted_at_s]
            row["num_output_tokens"] = record.num_output_tokens
            row["attained"] = record.attained
            out.write(json.dumps(row) + "\n")


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What a run's summary says besides its requests; ``None`` where it is not known."""

    policy: str
    engine: str
    seed: int | None = None
    rate_rps: float | None = None
    preemptions: Mapping[str, int | None] = field(
        default_factory=lambda: {"recompute": None, "swap": None}
    )
    plan_time_us: Mapping[str, float | None] = field(
        default_factory=lambda: {"p50": None, "p99": None}
    )
    num_offered: int | None = None
    duration_s: float | None = None


def duration_of(records: Sequence[RequestRecord]) -> float:
    """Return seconds from the first arrival to the last outcome or token."""
    if not records:
        return 0.0
    ends_s = [r.ended_at_s for r in records if r.ended_at_s is not None]
    ends_s += [r.emitted_at_s[-1] for r in records if r.emitted_at_s]
    return max(ends_s, default=0.0) - min(r.arrived_at_s for r in records)


def summarise(records: Sequence[RequestRecord], facts: RunFacts) -> dict[str, Any]:
    """Return the summary of one run, per class too, and per tenant where one is named.

    ``lost`` counts offered requests that have no record at all: the engine forgot them.
    """
    duration_s = facts.duration_s if facts.duration_s is not None else duration_of(records)
    num_offered = facts.num_offered if facts.num_offered is not None else len(records)
    return {
        "policy": facts.policy,
        "engine": facts.engine,
        "rate_rps": facts.rate_rps,
        "seed": facts.seed,
        "definition": define.DEFINITION,
        **figures(records, duration_s, num_offered),
        "duration_s": duration_s,
        "preemptions": dict(facts.preemptions),
        "plan_time_us": dict(facts.plan_time_us),
        "lost": num_offered - len(records),
        "per_class": per_class(records, duration_s),
        **({"per_tenant": tenants} if (tenants := per_tenant(records, duration_s)) else {}),
    }


def per_class(records: Sequence[RequestRecord], duration_s: float) -> dict[str, dict[str, Any]]:
    """Return the figures of each class, with its target where it has one."""
    groups: dict[str, list[RequestRecord]] = {}
    for record in records:
        groups.setdefault(record.slo.class_name, []).append(record)
    return {
        name: figures(group, duration_s) | _aims(group, [r.slo.target for r in group])
        for name, group in sorted(groups.items())
    }


def per_tenant(records: Sequence[RequestRecord], duration_s: float) -> dict[str, dict[str, Any]]:
    """Return the figures of each tenant, with its share, and its target where it has one.

    The most requests first; those beyond :data:`MOST_TENANTS` are together, as :data:`OTHERS`.
    Nobody in particular is the empty name; without any other there are no tenants.
    """
    groups: dict[str, list[RequestRecord]] = {}
    for record in records:
        groups.setdefault(record.slo.tenant, []).append(record)
    if groups.keys() <= {""}:
        return {}
    names = sorted(groups, key=lambda name: (-len(groups[name]), name))
    rest = names[MOST_TENANTS:]
    if rest and OTHERS in names[:MOST_TENANTS]:
        rest.append(OTHERS)
    found = {
        name: figures(group, duration_s)
        | {"share": max(record.slo.share for record in group)}  # Without a promise it may be 0.
        | _aims(group, [record.slo.tenant_target for record in group])
        for name in names
        if name not in rest and (group := groups[name])
    }
    others = [record for name in rest for record in groups[name]]
    return found | ({OTHERS: figures(others, duration_s)} if others else {})


def _aims(records: Sequence[RequestRecord], targets: Sequence[float | None]) -> dict[str, Any]:
    """Return the last of *targets*, what was kept of the promises, and whether that meets it."""
    target = next((one for one in reversed(targets) if one is not None), None)
    if target is None:
        return {}
    kept = define.attainment(record.attained for record in records if record.slo.is_promise)
    met = None if kept is None else define.target_met(kept, target)
    return {"target": target, "promises_kept": kept, "target_met": met}


def figures(
    records: Sequence[RequestRecord], duration_s: float, num_offered: int | None = None
) -> dict[str, Any]:
    """Return the figures that a run and each of its classes have in common.

    The attainments of one dimension are over the offered requests that were promised that
    dimension (``None`` when none was); tails are over the tokens that came. Gaps have three:
    ``tbt_s`` over all gaps of all requests, ``pause_s`` over requests of the longest gap,
    ``tpot_s`` over requests of the mean gap. A request with fewer than two tokens is in none.
    """
    num_offered = len(records) if num_offered is None else num_offered
    missing = [False] * (num_offered - len(records))
    flags = [record.attained for record in records]
    kept = [record for record, is_kept in zip(records, flags, strict=True) if is_kept]
    ttfts = [define.ttft_s(r.arrived_at_s, r.emitted_at_s) for r in records]
    jcts = [define.jct_s(r.arrived_at_s, r.emitted_at_s) for r in records if r.finished]
    latencies = [
        latency_s
        for r in records
        if r.finished
        and (latency_s := define.normalised_latency_s(r.arrived_at_s, r.emitted_at_s)) is not None
    ]
    gaps = [gap_s for record in records for gap_s in record.gaps_s]
    longest = [max(record.gaps_s) for record in records if record.gaps_s]
    means = [define.tpot_s(record.emitted_at_s) for record in records]
    return {
        "num_requests": num_offered,
        "num_attained": len(kept),
        "attainment": define.attainment(flags + missing),
        "attainment_by_reading": {
            reading: define.attainment([r.attained_by(reading) for r in records] + missing)
            for reading in define.READINGS[1:]
        },
        "ttft_attainment": _share(records, "ttft_s", _has_ttft),
        "tbt_attainment": _share(records, "tbt_s", _has_gaps("default")),
        "tbt_plain_attainment": _share(records, "tbt_s", _has_gaps("plain")),
        "tbt_strict_attainment": _share(records, "tbt_s", _has_gaps("strict")),
        "tbt_lenient_attainment": _share(records, "tbt_s", _has_mean),
        "tpot_attainment": _share(records, "tpot_s", _has_mean),
        "jct_attainment": _share(records, "jct_s", _has_jct),
        "goodput_rps": define.goodput_per_s(len(kept), duration_s),
        "goodput_tokens_per_s": define.goodput_per_s(
            sum(r.num_output_tokens for r in kept), duration_s
        ),
        "output_tokens_per_s": define.goodput_per_s(
            sum(r.num_output_tokens for r in records), duration_s
        ),
        "ttft_s": define.quantiles([span_s for span_s in ttfts if span_s is not None]),
        "tbt_s": define.quantiles(gaps),
        "pause_s": define.quantiles(longest),
        "tpot_s": define.quantiles([span_s for span_s in means if span_s is not None]),
        "jct_s": define.quantiles([span_s for span_s in jcts if span_s is not None]),
        "normalised_latency_s": sum(latencies) / len(latencies) if latencies else None,
        "outcomes": {name: sum(r.outcome == name for r in records) for name in OUTCOMES},
    }


Rule = Callable[[RequestRecord, float], bool]
"""Whether a request kept a span it was promised, in seconds."""


def _share(records: Sequence[RequestRecord], span: str, rule: Rule) -> float | None:
    """Return the share that finished and kept *span* by *rule*, of those that were promised it."""
    return define.attainment(
        r.finished and rule(r, promised_s)
        for r in records
        if (promised_s := getattr(r.slo, span)) is not None
    )


def _has_ttft(record: RequestRecord, promised_s: float) -> bool:
    return define.ttft_attained(record.arrived_at_s, record.emitted_at_s, promised_s)


def _has_gaps(reading: define.Reading) -> Rule:
    return lambda r, _: r.gaps_kept[reading]


def _has_mean(record: RequestRecord, promised_s: float) -> bool:
    return define.tpot_attained(record.emitted_at_s, promised_s)


def _has_jct(record: RequestRecord, promised_s: float) -> bool:
    return define.jct_attained(record.arrived_at_s, record.emitted_at_s, promised_s)
