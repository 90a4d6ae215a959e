"""Question: does a refused client that waits as long as it was told get what it wants?

Serves named workloads in the simulator with ``--overload refuse``. Every refused request comes
back after its ``Retry-After`` (whole seconds, as HTTP carries it), at most three times; a retry
is a new request whose promise counts from its own arrival. Four ways:

- ``told``: as Headway does it, by appointments.
- ``not honoured``: the same appointments, but who returns counts no more than a newcomer.
- ``backlog``: what Headway told before: the time to work off what waits; nobody is expected.
- ``1 s``: appointments are given, and nobody heeds them: clients come back after a second.

Writes results.json and the table in results.md (``--out`` for others).
"""

from __future__ import annotations

import heapq
import json
import math
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from headway import registry
from headway.engines import wire
from headway.engines.sim.run import SimRun
from headway.engines.virtual import Outcome, VirtualCall
from headway.latency import profile as profiles
from headway.metrics import define
from headway.policy.appointments import MAX_RETRY_AFTER_S, Appointments
from headway.policy.events import Arrived
from headway.request import Request
from headway.slo import Slo
from headway.study.on_sim import engine_of
from headway.study.requests import book_of, calls_of, requests_of
from headway.study.spec import Load, Machine
from headway.study.virtual_run import truth_of

HERE = Path(__file__).parent
LOOK_EVERY_S = 0.25
"""How often clients look for answers; a refused one waits at least a second, so none is late."""
MAX_RETRIES = 3
GPU = "llama-3.1-8b@h100"
NOISE = 0.05


@dataclass(frozen=True)
class Scenario:
    """One load on one machine."""

    name: str
    source: str
    rate_rps: float
    arrivals: str = "poisson"
    num_requests: int = 600
    kv_tokens: int | None = None


SCENARIOS = (
    Scenario("bursts: 8 s on, 24 s off", "mixed", 10.0, "onoff:8:24"),
    Scenario("bursts, 60k tokens of KV", "mixed", 8.0, "onoff:8:24", kv_tokens=60_000),
    Scenario("long prompts in bursts", "retrieval", 5.0, "onoff:8:24"),
    Scenario("steady overload", "mixed", 34.0),
)


@dataclass
class Tries:
    """All tries of one client, in order: what it sent and what it saw."""

    calls: list[VirtualCall]
    outcomes: list[Outcome]


Wait = Callable[[wire.Refused], float]


def as_told_s(answer: wire.Refused) -> float:
    """Return the seconds an HTTP client reads in ``Retry-After``."""
    return float(max(1, math.ceil(answer.retry_after_s)))


class NotHonoured(Appointments):
    """Appointments that count for nothing on return."""

    def keeps(self, event: Arrived) -> bool:
        """Expect nobody."""
        return False


class Backlog(NotHonoured):
    """No appointment: the seconds of work that wait now."""

    def book(self, request: Request, work_s: float, backlog_s: float, now_s: float) -> float:
        """Return the backlog."""
        return min(backlog_s, MAX_RETRY_AFTER_S)


@dataclass(frozen=True)
class Way:
    """How clients are told when to come back, and when they do."""

    book: Callable[[], Appointments]
    wait_s: Wait = as_told_s


WAYS = {
    "told": Way(Appointments),
    "not honoured": Way(NotHonoured),
    "backlog": Way(Backlog),
    "1 s": Way(Appointments, lambda answer: 1.0),
}


def serve(run: SimRun, calls: Sequence[VirtualCall], wait_s: Wait) -> list[Tries]:
    """Serve *calls* and their retries to the end."""
    clients = {call.request_id: Tries([], []) for call in calls}
    due = [(call.arrived_at_s, call.request_id, call) for call in calls]
    heapq.heapify(due)
    open_calls: dict[str, str] = {}
    until_s = 0.0
    while due or run.num_unfinished:
        if not run.num_unfinished:
            until_s = max(until_s, due[0][0])
        until_s += LOOK_EVERY_S
        while due and due[0][0] < until_s:
            _, client, call = heapq.heappop(due)
            run.submit(call)
            clients[client].calls.append(call)
            clients[client].outcomes.append(run.outcomes[call.request_id])
            open_calls[call.request_id] = client
        run.advance(until_s)
        for request_id in [i for i in open_calls if run.outcomes[i].finish_reason is not None]:
            client = open_calls.pop(request_id)
            again = retry_of(run.outcomes[request_id], len(clients[client].calls), wait_s)
            if again is not None:
                heapq.heappush(due, (again.arrived_at_s, client, again))
    return list(clients.values())


def retry_of(outcome: Outcome, num_tries: int, wait_s: Wait) -> VirtualCall | None:
    """Return the call a refused client makes next, or ``None``."""
    answer = wire.parse(outcome.stop_reason)
    if not isinstance(answer, wire.Refused) or num_tries > MAX_RETRIES:
        return None
    assert outcome.ended_at_s is not None
    name = f"{outcome.call.request_id.partition('#')[0]}#{num_tries}"
    return replace(outcome.call, request_id=name, arrived_at_s=outcome.ended_at_s + wait_s(answer))


def is_refused(outcome: Outcome) -> bool:
    """Whether the client got 429."""
    return isinstance(wire.parse(outcome.stop_reason), wire.Refused)


def is_kept(outcome: Outcome, slo: Slo) -> bool:
    """Whether this try got all it was promised."""
    done = outcome.finish_reason in ("stop", "length")
    return define.attained(slo, outcome.call.arrived_at_s, outcome.emitted_at_s, finished=done)


def figures(clients: Sequence[Tries], slos: dict[str, Slo]) -> dict[str, Any]:
    """Return counts of clients by what became of them."""
    retried = [c for c in clients if is_refused(c.outcomes[0])]
    first = [c.outcomes[1] for c in retried]
    slo_of = {c.calls[0].request_id: slos[c.calls[0].request_id] for c in clients}
    promised = [slo_of[c.calls[0].request_id] for c in retried]
    kept_first = sum(is_kept(o, slo) for o, slo in zip(first, promised, strict=True))
    taken = [not is_refused(o) for o in first]
    kept_at_last = sum(
        is_kept(c.outcomes[-1], slo) for c, slo in zip(retried, promised, strict=True)
    )
    waits_s = sorted(
        round(c.calls[1].arrived_at_s - (c.outcomes[0].ended_at_s or 0.0), 1) for c in retried
    )
    return {
        "clients": len(clients),
        "kept_at_once": sum(is_kept(c.outcomes[0], slo_of[c.calls[0].request_id]) for c in clients),
        "refused": len(retried),
        "first_retry_taken": sum(taken),
        "first_retry_kept": kept_first,
        "kept_within_3_retries": kept_at_last,
        "tries": sum(len(c.calls) for c in clients),
        "wait_s": {f"p{p}": waits_s[len(waits_s) * p // 100] for p in (50, 90, 99) if waits_s},
    }


def run_one(scenario: Scenario, seed: int, way: str, policy: str) -> dict[str, Any]:
    """Serve one scenario once and return its figures."""
    load = Load(scenario.source, scenario.rate_rps, scenario.num_requests, seed, scenario.arrivals)
    machine = Machine(GPU, kv_tokens=scenario.kv_tokens, noise=NOISE)
    profile = profiles.load(GPU)
    book = book_of(load)
    calls, slos = calls_of(requests_of(load), book)
    core = registry.build(policy, overload="refuse")
    core.known.appointments = WAYS[way].book()
    run = SimRun(engine_of(machine, profile), truth_of(profile, machine, seed), core, book=book)
    return {
        "scenario": scenario.name,
        "seed": seed,
        "way": way,
        **figures(serve(run, calls, WAYS[way].wait_s), slos),
    }


COUNTS = (
    "clients", "kept_at_once", "refused", "first_retry_taken", "first_retry_kept",
    "kept_within_3_retries", "tries",
)  # fmt: skip


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return one line a scenario and way, over all seeds (waits: the worst seed), in Markdown."""
    lines = [
        "| load | way | kept at once | refused | of these kept: first retry | within 3"
        " | waits p50, p90, p99 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, way in dict.fromkeys((row["scenario"], row["way"]) for row in rows):
        group = [row for row in rows if (row["scenario"], row["way"]) == (name, way)]
        total = {key: sum(row[key] for row in group) for key in COUNTS}
        shares = [
            f"{row['first_retry_kept'] / row['refused']:.2f}" for row in group if row["refused"]
        ]
        refused = max(total["refused"], 1)
        waits = [
            f"{max(row['wait_s'].get(p, 0.0) for row in group):.0f}" for p in ("p50", "p90", "p99")
        ]
        lines.append(
            f"| {name} | {way} | {total['kept_at_once'] / total['clients']:.3f} |"
            f" {total['refused']} of {total['clients']} |"
            f" {total['first_retry_kept'] / refused:.2f} ({', '.join(shares)}) |"
            f" {total['kept_within_3_retries'] / refused:.2f} |"
            f" {', '.join(waits)} s |"
        )
    return "\n".join(lines)


@click.command()
@click.option("--seeds", default="0,1", show_default=True)
@click.option("--ways", default=",".join(WAYS), show_default=True)
@click.option("--requests", "num_requests", default=600, show_default=True, help="Per run.")
@click.option("--policy", default=registry.DEFAULT, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=HERE / "results.json")
def main(seeds: str, ways: str, num_requests: int, policy: str, out: Path) -> None:
    """Measure what a retry after Retry-After gets."""
    began_s = time.monotonic()
    rows = []
    for scenario in SCENARIOS:
        for way in ways.split(","):
            for seed in map(int, seeds.split(",")):
                sized = replace(scenario, num_requests=num_requests)
                rows.append(run_one(sized, seed, way, policy))
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    result = {
        "command": f"python experiments/retry_after/run.py --seeds {seeds} --ways '{ways}'"
        f" --requests {num_requests} --policy {policy}",
        "commit": commit,
        "machine": platform.machine(),
        "seconds": round(time.monotonic() - began_s, 1),
        "rows": rows,
    }
    out.write_text(json.dumps(result, indent=1) + "\n")
    out.with_suffix(".md").write_text(table(rows) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
