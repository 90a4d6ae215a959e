"""Behind proxies: the real edge reads their headers, vLLM's real scheduler goes by them."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
from asgi import told_engine
from told import Silent

from headway.engines.vllm.edge import SLO_FILE_VARIABLE
from headway.slo import STAMP, START_IN_STAMP

pytest.importorskip("vllm", reason="vLLM is not installed")

from headway.engines import wire
from headway.engines.journal import Journal
from headway.engines.vllm.watch import Watch

NOW_S = 1.7e9
"""When the virtual clocks begin: proxies write Unix seconds."""

BEHIND = {"request_start": True, "retries_elsewhere": 1}
NUM_REFUSED = 20
LONG_TOKENS = 800
"""Three quarters of a second of work, which books more than two seconds of appointments."""


@pytest.fixture(autouse=True)
def _no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SLO_FILE_VARIABLE, raising=False)


def start(lab: Any, **headway: Any) -> Any:
    """Return a run whose core is watched, its clock at :data:`NOW_S`."""
    engine = lab.Engine(
        num_blocks=160,
        block_size=32,
        max_num_batched_tokens=2048,
        max_num_seqs=64,
        headway={"policy": "headway", **headway},
    )
    run = lab.start(engine, noise=0.0)
    run.clock.time_s = NOW_S
    core = run.scheduler.headway
    watch = run.scheduler.headway_watch = Watch(core, Silent())  # type: ignore[arg-type]
    run.scheduler.headway = Journal(core, watch)
    return run


def sent(call: Any, settings: dict[str, Any], *headers: tuple[bytes, bytes]) -> Any:
    """Return *call* as the edge passes it on when it comes with *headers*."""
    told = told_engine(settings, headers, dict(call.xargs), now_s=call.arrived_at_s)
    return dataclasses.replace(call, xargs=asyncio.run(told) or {})


def began(at_s: float) -> tuple[bytes, bytes]:
    return b"x-request-start", b"t=%.3f" % at_s


def attempt(count: int) -> tuple[bytes, bytes]:
    return b"x-envoy-attempt-count", b"%d" % count


def taught(lab: Any) -> Iterator[Any]:
    """Yield prompts from which a server learns its speed."""
    for i in range(40):
        yield lab.Call(f"t{i}", NOW_S + i, LONG_TOKENS, 2)


def test_a_promise_that_the_way_used_up_is_refused_at_once(lab: Any) -> None:
    """Two seconds of one are over: an idle server says so, with an appointment; others it serves.

    Without the setting the header says nothing.
    """
    call = lab.Call("r", NOW_S + 9, 100, 5, {"slo_ttft_ms": 1000})
    for settings, before_s, is_refused in (
        (BEHIND, 2.0, True),
        (BEHIND, 0.2, False),
        (BEHIND, -9.0, False),
        ({}, 2.0, False),
    ):
        run = start(lab, overload="refuse", **settings)
        late = sent(call, settings, began(call.arrived_at_s - before_s))
        # A prompt longer than all it has computed so far no server refuses.
        outcome = run.run([lab.Call("first", NOW_S, LONG_TOKENS, 2), late])["r"]
        refused = wire.parse(outcome.stop_reason)
        assert isinstance(refused, wire.Refused) == is_refused
        if isinstance(refused, wire.Refused):
            assert outcome.ended_at_s == call.arrived_at_s
            assert refused.retry_after_s >= 30


def test_where_nobody_is_refused_it_is_demoted_and_its_lateness_explained(lab: Any) -> None:
    """What passed before it reached the server is no queueing of the server's."""
    run = start(lab, **BEHIND)
    broken: list[Any] = []
    watch = run.scheduler.headway_watch
    watch.ended = lambda request, told: broken.append(told)
    calls = [
        sent(lab.Call("late", NOW_S, 100, 5, {"slo_ttft_ms": 1000}), BEHIND, began(NOW_S - 2)),
        sent(lab.Call("odd", NOW_S + 1, 100, 5), BEHIND, (b"x-request-start", b"soon")),
        sent(lab.Call("none", NOW_S + 2, 100, 5), BEHIND),
    ]
    outcomes = run.run(calls)
    lab.all_served(outcomes)
    told = next(filter(None, broken))
    ttft_s = outcomes["late"].emitted_at_s[0] - NOW_S + 2
    assert told["ttft_s"] == pytest.approx(ttft_s, abs=1e-5)
    assert told["by_cause_s"]["elsewhere"] == pytest.approx(2 * (1 - 1 / ttft_s), abs=1e-5)
    assert sum(told["by_cause_s"].values()) == pytest.approx(ttft_s - 1, abs=1e-5)
    assert told["story"][0] == [0.0, "arrived"]
    assert told["story"][1] == [pytest.approx(2, abs=1e-5), "reached this server"]
    assert watch._request_starts == {"used": 1, "ignored": 1}


def test_a_stamp_of_the_clients_own_says_no_more_than_a_header(lab: Any) -> None:
    """Without the edge a client may write one: no older than a minute, and only where believed."""
    for settings, oldest_s in ((BEHIND, 60.0), ({}, 0.0)):
        run = start(lab, **settings)
        ages_s = []
        observe = run.scheduler.headway.observe

        def heard(event: Any, ages_s: Any = ages_s, observe: Any = observe) -> None:
            if hasattr(event, "arrived_at_s"):
                ages_s.append((event.at_s - event.arrived_at_s, event.last_try))
            observe(event)

        run.scheduler.headway.observe = heard
        forged = (0.0, -1e300, float("nan"), float("inf"), NOW_S + 50, 2**63, "then", None, [1])
        calls = [
            lab.Call(f"r{i}", NOW_S, 50, 1, {STAMP: {START_IN_STAMP: x, "last_try": x}})
            for i, x in enumerate(forged)
        ]
        lab.all_served(run.run(calls))
        assert [age_s for age_s, _ in ages_s] == [oldest_s, oldest_s] + 7 * [0.0]
        expected = 0.0 if settings else 1.0
        assert [last_try for _, last_try in ages_s] == [expected] + 8 * [1.0]


def next_appointment_s(
    lab: Any, num_tries: int, settings: dict[str, Any], has_count: bool
) -> float:
    """Return the Retry-After at one of two servers after so many refusals of both together.

    Refusals come one a second, the first try at each server in turn.
    """
    run = start(lab, overload="refuse", **settings)
    begins_s = NOW_S + 60
    calls = list(taught(lab))
    for i in range(NUM_REFUSED + 1):
        for n in range(num_tries):
            is_here = (i + n) % 2 == 0
            if not is_here:
                continue
            at_s = begins_s + i + 0.05 * n
            call = lab.Call(f"r{i:02d}-{n}", at_s, LONG_TOKENS, 2, {"slo_ttft_ms": 5000})
            headers = [began(begins_s + i - 10), *([attempt(n + 1)] if has_count else [])]
            calls.append(sent(call, settings, *headers))
    outcomes = run.run(calls)
    waits = [wire.parse(outcomes[c.request_id].stop_reason) for c in calls[40:]]
    assert all(isinstance(wait, wire.Refused) for wait in waits)
    last = waits[-1]
    assert isinstance(last, wire.Refused)
    return last.retry_after_s


def test_twenty_refusals_at_two_servers_book_what_twenty_refusals_book(lab: Any) -> None:
    """Where a proxy asks both, the next appointment is as far as if it asked one (± 2 s)."""
    alone_s = next_appointment_s(lab, 1, {"request_start": True}, has_count=False)
    counted_s = next_appointment_s(lab, 2, BEHIND, has_count=True)
    uncounted_s = next_appointment_s(lab, 2, BEHIND, has_count=False)
    untold_s = next_appointment_s(lab, 2, {"request_start": True}, has_count=True)
    assert counted_s == pytest.approx(alone_s, abs=2)
    assert uncounted_s == pytest.approx(alone_s, abs=2)
    assert untold_s > alone_s + 10, "what is to be prevented"
