"""What vLLM's own scheduler sends back with a request's end: its account, and how it ended."""

from __future__ import annotations

import dataclasses
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from told import Silent

from headway.slo import EXPLAIN_IN_STAMP, STAMP, SloBook

pytest.importorskip("vllm", reason="vLLM is not installed")

from vllm.sampling_params import SamplingParams
from vllm.v1.request import RequestStatus

from headway.engines import wire
from headway.engines.journal import Journal
from headway.engines.vllm import bare, compat
from headway.engines.vllm.watch import Watch

LOGGER = "vllm.headway"


def start(lab: Any, *, asynchronous: bool = False, **headway: Any) -> Any:
    """Return a run whose core is watched."""
    engine = lab.Engine(
        num_blocks=160,
        block_size=32,
        max_num_batched_tokens=2048,
        max_num_seqs=64,
        asynchronous=asynchronous,
        headway={"policy": "headway", **headway},
    )
    run = lab.start(engine)
    core = run.scheduler.headway
    watch = run.scheduler.headway_watch = Watch(core, Silent())  # type: ignore[arg-type]
    run.scheduler.headway = Journal(core, watch)
    return run


def explained(call: Any) -> Any:
    """Return *call* as the edge passes it on when its client asks how late it was."""
    stamp = {**SloBook.empty().resolve(call.xargs).stamp(), EXPLAIN_IN_STAMP: True}
    return dataclasses.replace(call, xargs={STAMP: stamp})


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_end_carries_the_account(lab: Any, asynchronous: bool) -> None:
    """To those who asked, and the times in it are what the client saw."""
    run = start(lab, asynchronous=asynchronous)
    asked = [
        explained(lab.Call(f"a{i}", 0.02 * i, 300, 8, {"slo_ttft_ms": 900})) for i in range(10)
    ]
    plain = [lab.Call(f"p{i}", 0.02 * i, 30, 8, {"slo_ttft_ms": 300}) for i in range(5)]
    outcomes = run.run([*asked, *plain])
    num_late = 0
    for call in asked:
        outcome = outcomes[call.request_id]
        account = wire.parse_account(outcome.stop_reason)
        assert account is not None
        assert account.stop_reason == 2, "vLLM's own: the stop token"
        told = account.told
        ttft_ms = 1000 * (outcome.emitted_at_s[0] - call.arrived_at_s)
        assert told["ttft_ms"] == pytest.approx(ttft_ms, abs=0.002)
        jct_ms = 1000 * (outcome.emitted_at_s[-1] - call.arrived_at_s)
        assert told["jct_ms"] == pytest.approx(jct_ms, abs=0.002)
        assert told["kept"] is (ttft_ms <= 900)
        assert told["late_ms"] == pytest.approx(max(ttft_ms - 900, 0), abs=0.01)
        assert sum(told["by_cause_ms"].values()) == pytest.approx(told["late_ms"], abs=1e-9)
        num_late += not told["kept"]
    assert 0 < num_late < len(asked), "the load makes some of them late"
    for call in plain:
        assert outcomes[call.request_id].stop_reason is None
    assert not run.scheduler.headway_watch.accounts


def test_a_refusal_stays_one_and_a_hang_up_leaves_nothing(lab: Any) -> None:
    """Every request that was not given up by its client ends in an account or a refusal."""
    run = start(lab, overload="refuse")
    calls = [explained(call) for call in lab.mixed(80, 6.0, 1)]
    calls = [
        dataclasses.replace(call, abort_at_s=call.arrived_at_s + 0.3) if i % 7 == 0 else call
        for i, call in enumerate(calls)
    ]
    outcomes = run.run(calls)
    refused = served = 0
    for outcome in outcomes.values():
        if outcome.finish_reason == "abort" and outcome.stop_reason is None:
            assert outcome.call.abort_at_s is not None
            continue
        refused += isinstance(wire.parse(outcome.stop_reason), wire.Refused)
        served += wire.parse_account(outcome.stop_reason) is not None
    assert refused > 0
    assert served > 0
    given_up = sum(o.finish_reason == "abort" and o.stop_reason is None for o in outcomes.values())
    assert refused + served + given_up == len(calls)
    watch = run.scheduler.headway_watch
    assert not watch._explained
    assert len(watch.accounts) <= 1, "of a hang-up after the last step, at most"


def test_a_bare_core_cannot_be_asked(lab: Any) -> None:
    """A scheduler that does not count answers with the sentence that the edge has too."""
    run = start(lab)
    run.scheduler.headway, run.scheduler.headway_watch = run.scheduler.headway.core, None
    call = explained(lab.Call("r", 0.0, 30, 5, {}))
    said = wire.parse(run.run([call])["r"].stop_reason)
    assert isinstance(said, wire.Invalid)
    assert "--page" in said.sentence


def test_how_requests_ended_is_counted_as_it_was(lab: Any) -> None:
    """A mistake found by the scheduler is rejected; only a client that hangs up is aborted."""
    run = start(lab, overload="refuse")
    good = [lab.Call(f"g{i}", 0.05 * i, 30, 5, {"slo_ttft_ms": 9000}) for i in range(3)]
    bad = [lab.Call(f"b{i}", 0.05 * i, 30, 5, {"slo_ttft_ms": -1}) for i in range(2)]
    gone = lab.Call("gone", 0.0, 30, 500, {"slo_ttft_ms": 9000}, abort_at_s=0.2)
    run.run([*good, *bad, gone])
    by_class = run.scheduler.headway_watch.observed.tallies.by_class
    none = dict.fromkeys(by_class["custom"].outcomes, 0)
    assert by_class["custom"].outcomes == {**none, "finished": 3, "aborted": 1}
    assert by_class["none"].outcomes == {**none, "rejected": 2}


@pytest.mark.parametrize(
    ("status", "stop", "num_output_tokens", "ends"),
    [
        (RequestStatus.FINISHED_ABORTED, None, 5, "aborted"),
        (RequestStatus.FINISHED_ABORTED, ["\n\n"], 5, "stopped"),
        (RequestStatus.FINISHED_ABORTED, ["\n\n"], 0, "aborted"),
        (RequestStatus.FINISHED_STOPPED, None, 5, "stopped"),
        (RequestStatus.FINISHED_REPETITION, None, 5, "stopped"),
        (RequestStatus.FINISHED_LENGTH_CAPPED, ["x"], 5, "length"),
        (RequestStatus.FINISHED_ERROR, ["x"], 5, "error"),
    ],
)
def test_a_stop_string_is_no_hang_up(
    status: Any, stop: list[str] | None, num_output_tokens: int, ends: str
) -> None:
    """vLLM's server has the scheduler abort a request whose text has ended."""
    request = SimpleNamespace(
        status=status,
        sampling_params=SamplingParams(stop=stop),
        num_output_tokens=num_output_tokens,
    )
    assert compat.end_of(request) == ends


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_wrong_class_is_told_at_the_start(
    lab: Any, monkeypatch: pytest.MonkeyPatch, asynchronous: bool
) -> None:
    """One warning names the right one; with the right one there is none."""
    said: list[str] = []
    logger = logging.getLogger(LOGGER)
    monkeypatch.setattr(logger, "warning", lambda text, *args: said.append(text % args))
    engine = lab.Engine(asynchronous=asynchronous, headway={})
    lab.start(engine)
    assert said == []
    ours = (bare.AsyncHeadway, bare.SyncHeadway)
    monkeypatch.setattr(bare, "AsyncHeadway", ours[1])
    monkeypatch.setattr(bare, "SyncHeadway", ours[0])
    lab.start(engine)
    right = "headway.vllm.Scheduler" if asynchronous else "headway.vllm.SyncScheduler"
    assert len(said) == 1
    assert said[0].endswith(f"--scheduler-cls {right}.")
