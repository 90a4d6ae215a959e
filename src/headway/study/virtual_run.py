"""One virtual run, from its spec to its figures."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from headway.engines import wire
from headway.engines.virtual import Outcome, StepRow
from headway.errors import UserError
from headway.latency import profile as profiles
from headway.latency.profile import Profile
from headway.latency.truth import Drift, Truth
from headway.metrics.kept import KEPT_FIELDS, LOST
from headway.metrics.record import RequestRecord, RunFacts, summarise
from headway.slo import Slo
from headway.study import on_oracle, on_sim, on_vllm
from headway.study.requests import book_of, calls_of, requests_of, too_long
from headway.study.run_outcome import RunOutcome
from headway.study.spec import Machine, RunSpec

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class RunResult:
    """One finished run: its summary, and all it takes to draw it."""

    spec: RunSpec
    run: dict[str, Any]
    records: Sequence[RequestRecord]
    served: RunOutcome

    def document(self) -> dict[str, Any]:
        """Return the kept run: spec, summary, timeline and requests."""
        columns = zip(*self.served.rows, strict=True) if self.served.rows else ((),) * 10
        timeline: dict[str, Any] = dict(
            zip(StepRow._fields, ([_short(v) for v in c] for c in columns), strict=True)
        )
        timeline["capacity_tokens"] = self.served.capacity_tokens
        return {
            "schema": SCHEMA,
            "spec": self.spec.document(),
            "run": self.run,
            "timeline": timeline,
            "requests": [self._request(record) for record in self.records],
        }

    def _request(self, record: RequestRecord) -> dict[str, Any]:
        phases = self.served.outcomes[record.id].phases
        slo = record.slo.stamp()
        return {
            "id": record.id,
            "slo_class": record.slo.class_name,
            "slo": {name: slo[name] for name in KEPT_FIELDS if name in slo},
            "arrived_at_s": _short(record.arrived_at_s),
            "emitted_at_s": [_short(at_s) for at_s in record.emitted_at_s],
            "outcome": record.outcome,
            "attained": record.attained,
            "phases": [[_short(at_s), name] for at_s, name in phases],
            "num_prompt_tokens": record.num_prompt_tokens,
            "chance": self.served.chances.get(record.id),
            "num_preemptions": sum(name in LOST for _, name in phases),
            "ended_at_s": None if record.ended_at_s is None else _short(record.ended_at_s),
        }

    def keep(self, folder: Path) -> Path:
        """Write the kept run into *folder* and return its path."""
        path = kept_path(folder, self.spec)
        data = json.dumps(self.document(), separators=(",", ":")).encode()
        part = path.with_suffix(".part")
        part.write_bytes(gzip.compress(data, 5, mtime=0))
        part.replace(path)
        return path


def kept_path(folder: Path, spec: RunSpec) -> Path:
    """Return where :meth:`RunResult.keep` puts the run of *spec*."""
    return folder / f"{spec.key()}.run.json.gz"


def execute(spec: RunSpec, keep_steps: bool = False) -> RunResult:
    """Serve one load on one virtual machine and return what came of it.

    Raises:
        UserError: The spec names something that does not exist.
    """
    book = book_of(spec.load)
    requests = requests_of(spec.load)
    calls, slos = calls_of(requests, book, by_class=spec.knobs.by_class)
    loaded = {name: profiles.load(name) for name in set(spec.machine.gpus)}
    gpus = [loaded[name] for name in spec.machine.gpus]

    def truth(replica: int) -> Truth:
        return truth_of(gpus[replica], spec.machine, spec.load.seed + 7919 * replica)

    if spec.policy == on_oracle.ORACLE:
        served = on_oracle.serve(
            spec, gpus[0], lambda: truth(0), requests, calls, slos, book, keep_steps=keep_steps
        )
    else:
        engine = on_vllm if spec.engine == "vllm" else on_sim
        served = engine.serve(spec, gpus, truth, calls, book, keep_steps)
    records = [record_of(served.outcomes[call.request_id], slos) for call in calls]
    facts = RunFacts(
        policy=spec.policy,
        engine=spec.engine,
        seed=spec.load.seed,
        rate_rps=spec.load.rate_rps,
        preemptions={"recompute": served.num_recomputed, "swap": served.num_swapped},
        plan_time_us=served.plan_us,
        num_offered=len(calls),
    )
    run = summarise(records, facts)
    run |= {
        "overload": spec.overload,
        "step_time_band": spec.machine.step_time_band,
        "settings": spec.knobs.flags if spec.is_stock else json.dumps(dict(spec.options)),
        "workload": Path(spec.load.source).name,
        "gpu": spec.machine.gpu_text,
        "kv_tokens": served.capacity_tokens,
        "steps_aside": served.num_asides,
        "too_long": asdict(too_long(requests, served.capacity_tokens)),
        "calibration": [row._asdict() for row in served.calibration],
        **use_of(served.rows, served.capacity_tokens),
        **fleet_of(served, records),
    }
    return RunResult(spec, run, records, served)


def use_of(rows: Sequence[StepRow], capacity_tokens: int) -> dict[str, float | None]:
    """Return how full steps and the KV cache were, by the seconds of the steps.

    ``step_tokens`` are computed in a mean step; ``None`` where no steps were kept.
    """
    busy_s = sum(row.ends_s - row.begins_s for row in rows)
    if not busy_s:
        return {"step_tokens": None, "kv_held_share": None}
    held = sum(row.held_tokens * (row.ends_s - row.begins_s) for row in rows) / busy_s
    computed = sum(row.num_prefill_tokens + row.num_decodes for row in rows)
    return {
        "step_tokens": round(computed / len(rows), 2),
        "kv_held_share": round(held / capacity_tokens, 4),
    }


def fleet_of(served: RunOutcome, records: Sequence[RequestRecord]) -> dict[str, Any]:
    """Return what each server of a fleet did, and what came of requests tried at several.

    ``saved`` are those of them whose promise was kept in the end.
    """
    if served.fleet is None:
        return {}
    elsewhere = set(served.fleet.elsewhere)
    counts = {
        "routed": served.fleet.routed,
        "refused": served.fleet.refused,
        "tried_elsewhere": len(elsewhere),
        "saved": sum(record.attained for record in records if record.id in elsewhere),
    }
    return {"fleet": counts}


def truth_of(profile: Profile, machine: Machine, seed: int) -> Truth:
    """Return the step times of *machine*; see :class:`~headway.latency.truth.Truth`."""
    drift = parse_drift(machine.drift) if machine.drift else None
    scale = 1.0 + machine.step_time_band
    return Truth(profile, scale=scale, noise=machine.noise, drift=drift, seed=seed)


def parse_drift(text: str) -> Drift:
    """Read ``jump:0.5@2000``: kind, amount, and steps.

    Raises:
        UserError: Anything else.
    """
    kind, _, rest = text.partition(":")
    amount, _, steps = rest.partition("@")
    try:
        return Drift(kind, float(amount), int(steps))  # type: ignore[arg-type]
    except ValueError:
        raise UserError(
            "--drift must look like linear:0.2@5000, wave:0.1@2000 or jump:0.5@3000"
            f" (relative change @ steps), not {text!r:.60}."
        ) from None


def record_of(outcome: Outcome, slos: Mapping[str, Slo]) -> RequestRecord:
    """Return a request as its client saw it."""
    call = outcome.call
    detail = ""
    if outcome.finish_reason in ("stop", "length"):
        kind = "finished"
    else:
        answer = wire.parse(outcome.stop_reason)
        detail = answer.sentence if answer is not None else ""
        if isinstance(answer, wire.Refused):
            kind = "refused"
        elif isinstance(answer, wire.Invalid):
            kind = "failed"
        else:
            kind = "aborted" if call.abort_at_s is not None else "failed"
    return RequestRecord(
        id=call.request_id,
        slo=slos[call.request_id],
        arrived_at_s=call.arrived_at_s,
        emitted_at_s=tuple(outcome.emitted_at_s),
        outcome=kind,  # type: ignore[arg-type]
        num_prompt_tokens=call.num_prompt_tokens,
        ended_at_s=outcome.ended_at_s,
        detail=detail,
    )


def _short(value: float) -> float:
    """Return seconds to the microsecond; whole numbers stay whole."""
    return round(value, 6) if isinstance(value, float) else value
