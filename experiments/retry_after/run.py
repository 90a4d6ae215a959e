"""Question: does a refused client that waits as long as it was told get what it wants?

Serves named workloads in the simulator with ``--overload refuse``. Every refused request comes
back after its ``Retry-After`` (whole seconds, as HTTP carries it), at most three times; a retry
is a new request whose promise counts from its own arrival. As a control the same clients come
back after one second, whatever they were told; and a third way of telling is tried, ``booked``
(see :class:`Booked`). Writes results.json and the table in results.md.
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

from headway.engines.sim.run import SimRun
from headway.engines.virtual import Call, Outcome
from headway.engines.vllm import wire
from headway.latency import profile as profiles
from headway.metrics import define
from headway.policy import registry
from headway.slo import Slo
from headway.study.on_sim import engine_of
from headway.study.requests import book_of, calls_of, requests_of
from headway.study.run import truth_of
from headway.study.spec import Load, Machine

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

    calls: list[Call]
    outcomes: list[Outcome]


Wait = Callable[[wire.Refused], float]


def as_told_s(answer: wire.Refused) -> float:
    """Return the seconds an HTTP client reads in ``Retry-After``."""
    return float(max(1, math.ceil(answer.retry_after_s)))


WAITS: dict[str, Wait] = {
    "as told": as_told_s,
    "booked": as_told_s,
    "1 s": lambda answer: 1.0,
}


class Booked:
    """A policy core that tells the refused when it expects to have room, one after the other.

    A refused request is told the latest of three instants: when the work before it is done;
    when the overload is expected to end; and when the refused before it, who will be back, are
    served with the share of the machine that was idle lately. An overload is expected to last
    as long as nine of ten of those seen so far that lasted as long as this one has; when none
    did, as long again as it has lasted.
    """

    OVER_S = 60.0
    LEAST_SHARE = 0.25
    QUIET_S = 5.0
    MOST_S = 600.0

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._free_at_s = self._busy = self._noted_at_s = 0.0
        self._per_s = math.inf
        self._began_s = self._last_s = -math.inf
        self._lasted_s: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def plan(self, view: Any, now_s: float) -> Any:
        """Plan, and put other instants into the refusals."""
        plan = self._inner.plan(view, now_s)
        self._note(now_s)
        if not plan.refuse:
            return plan
        live = self._inner.live
        tokens = {r.request_id: r.remaining_prefill_tokens for r in (*live.claims, *live.others)}
        waiting = sum(r.remaining_prefill_tokens for r in live.claims)
        if waiting:  # The core tells seconds of this backlog: so that is its speed.
            self._per_s = waiting / plan.refuse[0].retry_after_s
        per_s = self._per_s
        refused = {one.request_id for one in plan.refuse}
        ahead = sum(r.remaining_prefill_tokens for r in live.claims if r.request_id not in refused)
        from_s = now_s + max(ahead / per_s, self._remaining_s(now_s))
        share = max(1.0 - self._busy, self.LEAST_SHARE)
        refuse = []
        for one in plan.refuse:
            at_s = max(from_s, self._free_at_s)
            self._free_at_s = at_s + tokens[one.request_id] / per_s / share
            refuse.append(replace(one, retry_after_s=min(at_s - now_s, self.MOST_S)))
        return replace(plan, refuse=tuple(refuse))

    def _remaining_s(self, now_s: float) -> float:
        """Return how much longer this overload is expected to last."""
        if now_s - self._last_s > self.QUIET_S:
            if self._last_s > self._began_s:
                self._lasted_s.append(self._last_s - self._began_s)
            self._began_s = now_s
        self._last_s = now_s
        age_s = now_s - self._began_s
        longer_s = sorted(s for s in self._lasted_s if s > age_s)
        if not longer_s:
            return age_s
        return longer_s[min(int(0.9 * len(longer_s)), len(longer_s) - 1)] - age_s

    def _note(self, now_s: float) -> None:
        """Keep the share of the time lately in which prompts waited or were computed."""
        span_s = now_s - self._noted_at_s
        self._noted_at_s = now_s
        live = self._inner.live
        is_busy = bool(live.claims or live.prefilling)
        self._busy += (float(is_busy) - self._busy) * (1.0 - math.exp(-span_s / self.OVER_S))


def serve(run: SimRun, calls: Sequence[Call], wait_s: Wait) -> list[Tries]:
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


def retry_of(outcome: Outcome, num_tries: int, wait_s: Wait) -> Call | None:
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
    waits_s = sorted(c.calls[1].arrived_at_s - (c.outcomes[0].ended_at_s or 0.0) for c in retried)
    return {
        "clients": len(clients),
        "kept_at_once": sum(is_kept(c.outcomes[0], slo_of[c.calls[0].request_id]) for c in clients),
        "refused": len(retried),
        "first_retry_taken": sum(taken),
        "first_retry_kept": kept_first,
        "kept_within_3_retries": kept_at_last,
        "tries": sum(len(c.calls) for c in clients),
        "median_wait_s": waits_s[len(waits_s) // 2] if waits_s else None,
    }


def run_one(scenario: Scenario, seed: int, wait: str, policy: str) -> dict[str, Any]:
    """Serve one scenario once and return its figures."""
    load = Load(scenario.source, scenario.rate_rps, scenario.num_requests, seed, scenario.arrivals)
    machine = Machine(GPU, kv_tokens=scenario.kv_tokens, noise=NOISE)
    profile = profiles.load(GPU)
    book = book_of(load)
    calls, slos = calls_of(requests_of(load), book)
    core: Any = registry.build(policy, overload="refuse")
    if wait == "booked":
        core = Booked(core)
    run = SimRun(engine_of(machine, profile), truth_of(profile, machine, seed), core, book=book)
    return {
        "scenario": scenario.name,
        "seed": seed,
        "wait": wait,
        "cpu_s": round(time.process_time(), 1),
        **figures(serve(run, calls, WAITS[wait]), slos),
    }


COUNTS = (
    "clients", "kept_at_once", "refused", "first_retry_taken", "first_retry_kept",
    "kept_within_3_retries", "tries",
)  # fmt: skip


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return one line a scenario and way of waiting, over all seeds, in Markdown."""
    lines = [
        "| load | waits | kept at once | refused | of these kept: first retry | within 3"
        " | median wait |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, wait in dict.fromkeys((row["scenario"], row["wait"]) for row in rows):
        group = [row for row in rows if (row["scenario"], row["wait"]) == (name, wait)]
        total = {key: sum(row[key] for row in group) for key in COUNTS}
        waits_s = sorted(row["median_wait_s"] for row in group if row["median_wait_s"] is not None)
        shares = [
            f"{row['first_retry_kept'] / row['refused']:.2f}" for row in group if row["refused"]
        ]
        refused = max(total["refused"], 1)
        lines.append(
            f"| {name} | {wait} | {total['kept_at_once'] / total['clients']:.2f} |"
            f" {total['refused']} of {total['clients']} |"
            f" {total['first_retry_kept'] / refused:.2f} ({', '.join(shares)}) |"
            f" {total['kept_within_3_retries'] / refused:.2f} |"
            f" {waits_s[len(waits_s) // 2] if waits_s else 0:.0f} s |"
        )
    return "\n".join(lines)


@click.command()
@click.option("--seeds", default="0,1,2", show_default=True)
@click.option("--requests", "num_requests", default=600, show_default=True, help="Per run.")
@click.option("--policy", default=registry.DEFAULT, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), default=HERE / "results.json")
def main(seeds: str, num_requests: int, policy: str, out: Path) -> None:
    """Measure what a retry after Retry-After gets."""
    began_s = time.monotonic()
    rows = []
    for scenario in SCENARIOS:
        for wait in WAITS:
            for seed in map(int, seeds.split(",")):
                sized = replace(scenario, num_requests=num_requests)
                rows.append(run_one(sized, seed, wait, policy))
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    ).stdout.strip()
    result = {
        "command": f"python experiments/retry_after/run.py --seeds {seeds}"
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
