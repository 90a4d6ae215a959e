"""Replays of recordings, and the shadow that does nothing else, within its share of a core."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from told import Lines

from headway import registry
from headway.cli.main import main
from headway.config import Settings
from headway.engines.journal import Journal
from headway.engines.sim.run import SimRun
from headway.engines.vllm import api_server, shadow_process
from headway.engines.vllm.recorder import start_of
from headway.errors import UserError
from headway.latency.laptop import LAPTOP
from headway.latency.model import StepShape
from headway.latency.profile import parse
from headway.latency.truth import Truth
from headway.metrics.board import Board
from headway.policy.events import Arrived, Event, Finished, StepDone, StepScheduled
from headway.policy.log import event_line, question_line
from headway.policy.view import EngineView
from headway.slo import NO_PROMISE
from headway.study import recorded
from headway.study.history import History, StepMeter
from headway.study.on_sim import engine_of
from headway.study.requests import book_of, calls_of, requests_of
from headway.study.shadow import MOST_SHARE, RESTS, Comparison, CpuShare, Shadow, message
from headway.study.spec import Load, Machine
from headway.study.virtual_run import profiles
from headway.workloads.record_files import file_name, rows, run_of

RUN = "20261123T061745Z-4711-e0"
NUM_REQUESTS = 70
MACHINE = Machine("llama-3.1-8b@h100", kv_tokens=16_000)


def serve_and_record(folder: Path, policy: str = "fcfs", refuse: bool = False) -> SimRun:
    """Serve a pressed minute on the simulator and leave its recording in *folder*."""
    folder.mkdir(exist_ok=True)
    overload = "refuse" if refuse else "demote"
    start = start_of(Settings.parse({"policy": policy, "overload": overload}), LAPTOP, "0")
    profile = profiles.load(MACHINE.gpu)
    load = Load("mixed", 16.0, NUM_REQUESTS)
    book = book_of(load)
    with (folder / file_name(RUN, 1)).open("wb") as out:
        out.write(json.dumps({"start": start}).encode() + b"\n")
        core = Journal(registry.build(policy, overload=overload), Lines(out))
        run = SimRun(engine_of(MACHINE, profile), Truth(profile), core, book=book)
        run.run(calls_of(requests_of(load), book)[0])
        core.close()
    return run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recording of fcfs under more traffic than it keeps up with."""
    path = tmp_path_factory.mktemp("recorded")
    serve_and_record(path)
    return path


# -- what a recording tells --------------------------------------------------------------------


def test_what_happened_is_what_the_clients_saw(tmp_path: Path) -> None:
    """Every first token, every gap, the refused and the preempted, as the engine counted them."""
    run = serve_and_record(tmp_path, "headway", refuse=True)
    history = recorded.read(tmp_path).history
    assert history is not None
    happened = history.as_it_happened()
    refused = sum(str(o.stop_reason).startswith("headway:refused") for o in run.outcomes.values())
    assert happened["num_requests"] == NUM_REQUESTS
    assert happened["outcomes"]["refused"] == refused > 0
    assert happened["preemptions"] == run.num_preemptions
    for name, outcome in run.outcomes.items():
        assert history.requests[name].emitted_at_s == list(outcome.emitted_at_s)


def test_the_recorded_machine_is_the_machine(folder: Path) -> None:
    """Cache, block and seats from the plans' views; step times within a percent of the truth."""
    history = History.of(rows(run_of(folder)))
    machine = history.machine(MACHINE.gpu)
    truth = profiles.load(MACHINE.gpu)
    assert machine == replace(MACHINE, max_num_seqs=truth.max_num_seqs)
    assert history.tells_speed
    error = history.profile().error
    assert error is not None
    assert error.p95 < 0.01
    assert history.profile().max_num_batched_tokens == truth.max_num_batched_tokens


def test_steps_with_strangers_do_not_count() -> None:
    """Who came before the recording, or in a gap, makes a step's work unknown."""
    meter = StepMeter()

    def step(at_s: float, *names: str) -> None:
        admitted = dict.fromkeys(set(names) - meter._core.live.decoding.keys(), 0)
        meter.take(StepScheduled(at_s, dict.fromkeys(names, 4), admitted))
        meter.take(StepDone(at_s + 1, dict.fromkeys(names, 1)))

    step(0.0, "stranger")
    assert meter.listener.seconds == []
    meter.take(Arrived(1.0, "known", 1.0, 4, 9, NO_PROMISE))
    step(1.0, "known", "stranger")
    assert meter.listener.seconds == []
    step(2.0, "known")
    assert meter.listener.seconds == [1.0]
    meter.restart()
    step(3.0, "known")
    assert meter.listener.seconds == [1.0]
    meter.take(Finished(4.0, "known", "stopped"))


def test_traffic_without_company_gives_a_profile_too(tmp_path: Path) -> None:
    """One request at a time: a step's cost and a decode's cannot be told apart, and are not 0."""
    events: list[Event] = []
    for i in range(12):
        at_s, name = 10.0 * i, f"r{i}"
        events += [
            Arrived(at_s, name, at_s, 40, 9, NO_PROMISE),
            StepScheduled(at_s, {name: 40}, {name: 0}),
            StepDone(at_s + 0.5, {name: 1}),
        ]
        for k in range(8):
            events += [StepScheduled(at_s + 0.5 + k / 4, {name: 1})]
            events += [StepDone(at_s + 0.75 + k / 4, {name: 1})]
        events.append(Finished(at_s + 3, name, "stopped"))
    view = EngineView(100, 100, 16, 8, 512)
    path = tmp_path / "x.jsonl"
    lines = [question_line(view, 0.0), *map(event_line, events)]
    path.write_text("".join(line + "\n" for line in lines))
    history = recorded.read(path).history
    assert history is not None
    profile = parse(history.profile().to_json(), "it can be read back")
    assert profile.step_s(StepShape(0, 0, 1, 45)) == pytest.approx(0.25, rel=0.02)
    assert profile.step_s(StepShape(40, 1, 0, 0, 800.0)) == pytest.approx(0.5, rel=0.02)


def test_a_gap_cuts_who_was_there(folder: Path, tmp_path: Path) -> None:
    """Still a workload: who was served during the gap gets the median length of the class."""
    lines = (folder / file_name(RUN, 1)).read_text().splitlines()
    middle = len(lines) // 2
    cut = [*lines[:middle], '{"gap":{"num_lines":40}}', *lines[middle + 40 :]]
    (tmp_path / file_name(RUN, 1)).write_text("\n".join(cut) + "\n")
    found = recorded.read(tmp_path)
    assert found.history is not None
    assert found.history.num_gaps == 1
    assert 0 < found.num_guessed < NUM_REQUESTS
    assert found.happened["num_requests"] == len(found.requests) - found.history.num_unended


def test_prompt_tokens_found_in_a_cache_are_not_computed_again(tmp_path: Path) -> None:
    """Those of the first start; what a resumed request finds is its own."""
    events = [
        Arrived(0.0, "a", 0.0, 100, 9, NO_PROMISE),
        StepScheduled(0.0, {"a": 36}, {"a": 64}),
        StepDone(1.0, {"a": 1}),
        StepScheduled(1.0, {}, {}, ("a",)),
        StepScheduled(2.0, {"a": 5}, {"a": 96}),
        StepDone(3.0, {"a": 1}),
        Finished(3.0, "a", "stopped"),
    ]
    path = tmp_path / "x.jsonl"
    path.write_text("".join(event_line(event) + "\n" for event in events))
    found = recorded.read(path)
    (request,) = found.requests
    assert (request.num_prompt_tokens, request.num_output_tokens) == (36, 2)
    assert found.num_found_tokens == 64


# -- headway replay ----------------------------------------------------------------------------


def run(*args: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(args)
    return int(caught.value.code or 0)


def test_replay_compares_what_happened_with_what_would_have(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder, two policies, twice the cache: beside the recorded policy on the recorded one."""
    out = tmp_path / "out.json"
    code = run("replay", str(folder), "--policy", "fcfs,slack", "--kv-scale", "2",
               "--workers", "1", "--json", str(out))  # fmt: skip
    assert code == 0
    document = json.loads(out.read_text())
    happened, again = document["recorded"], document["same_machine"]
    assert again["attainment"] == pytest.approx(happened["attainment"], abs=0.03)
    assert again["kv_tokens"] == 16_000
    fcfs, slack = document["runs"]
    assert {r["kv_tokens"] for r in (fcfs, slack)} == {32_000}
    assert fcfs["attainment"] > again["attainment"], "room helps"
    assert slack["attainment"] > again["attainment"] + 0.1, "and so does order"
    shown = capsys.readouterr().out
    for word in ("happened", "fcfs again", "slack", "recorded steps"):
        assert word in shown


def test_without_options_it_is_the_recorded_policy_again(folder: Path, tmp_path: Path) -> None:
    """Once, on the recorded machine; that the file is packed changes nothing."""
    plain = folder / file_name(RUN, 1)
    (tmp_path / (plain.name + ".gz")).write_bytes(gzip.compress(plain.read_bytes()))
    assert recorded.read(tmp_path).requests == recorded.read(folder).requests
    out = tmp_path / "out.json"
    assert run("replay", str(tmp_path), "--workers", "1", "--json", str(out)) == 0
    document = json.loads(out.read_text())
    assert [r["policy"] for r in document["runs"]] == ["fcfs"]
    assert document["runs"] == [document["same_machine"]]


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (["--kv-scale", "2", "--kv-tokens", "5"], "not both"),
        (["--policy", "best"], "the policies are"),
        (["--trace", "x"], "makes no sense here"),
        (["--kv-scale", "0"], "kv-scale"),
    ],
)
def test_mistakes_get_a_sentence(
    folder: Path, args: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, one line."""
    assert run("replay", str(folder), *args) == 2
    assert hint in capsys.readouterr().err


# -- the shadow --------------------------------------------------------------------------------


class Clock:
    """CPU and wall time of a pretended process."""

    def __init__(self) -> None:
        self.cpu_s = self.wall_s = 0.0

    def work(self, seconds: float) -> None:
        self.cpu_s += seconds
        self.wall_s += seconds

    def rest(self, seconds: float) -> None:
        self.wall_s += seconds
        self.cpu_s += 1e-5  # Waking up costs something too.


def test_its_share_of_a_core_is_bounded_whatever_it_does() -> None:
    """After every rest, from the start of the process on, imports included."""
    clock = Clock()
    clock.work(2.0)
    pace = CpuShare(lambda: clock.cpu_s, clock.rest)
    pace()
    for number in range(1000):
        clock.work(0.001 * (number % 7))
        if number == 500:
            clock.work(1.5)
        before_s = clock.wall_s
        pace()
        if clock.wall_s > before_s:
            assert (clock.cpu_s - 1e-5) / clock.wall_s <= MOST_SHARE * 1.001
    assert 1 / (1 + RESTS) == MOST_SHARE < 0.03


def look(folder: Path, policy: str, late_s: float = 0.0) -> Any:
    paces: list[None] = []
    one = Shadow(folder, policy, lambda: paces.append(None))
    (run,) = one.runs()
    now_s = History.of(rows(run)).last_at_s + late_s
    found = one.look(run, now_s)
    return found, len(paces)


def test_it_compares_like_with_like(folder: Path) -> None:
    """fcfs under pressure keeps what it kept when it was recorded; slack keeps more."""
    found, num_paces = look(folder, "slack")
    happened = recorded.read(folder).happened
    assert found.policies == ("fcfs", "slack")
    assert found.num_promised == NUM_REQUESTS
    running, shadowed = found.attainment
    assert running == pytest.approx(happened["attainment"], abs=0.03)
    assert shadowed > running + 0.1
    assert num_paces > 500, "it may rest at every line it reads and every quarter second it plays"


def test_old_traffic_is_not_compared(folder: Path) -> None:
    """Nothing came for longer than the window: no figure is better than an old one."""
    assert look(folder, "slack", late_s=301.0)[0] is None


def test_files_not_written_to_lately_are_not_even_read(folder: Path, tmp_path: Path) -> None:
    """Their traffic is older than the window."""
    path = tmp_path / file_name(RUN, 1)
    path.write_bytes((folder / path.name).read_bytes())
    os.utime(path, (1, 1))
    one = Shadow(tmp_path, "slack", lambda: None)
    (run,) = one.runs()
    assert one.look(run, 0.0) is None


def test_an_unknown_shadow_is_a_users_mistake(tmp_path: Path) -> None:
    """At the command line, and in its own process."""
    with pytest.raises(UserError, match="slack"):
        Shadow(tmp_path, "penumbra", lambda: None)
    options = api_server.ServeOptions("m", None, None, None, (), shadow="penumbra")
    with pytest.raises(UserError, match="--shadow 'penumbra' is not known"):
        api_server.check(options)


def test_readers_hear_of_both_policies() -> None:
    """The gauge has a row a policy; without traffic it has none, rather than an old one."""
    board = Board()
    counts = {"kind": "counts", "engine": "0", "unix_s": 1.0, "counts": {"classes": {}}, "now": {}}
    found = Comparison(("fcfs", "slack"), (0.25, 0.75), 8)
    told = json.loads(json.dumps(message("0", found, 1.25)))
    now_s = told["unix_s"]
    assert board.take(told)
    assert board.told(now_s) == {}, "of a scheduler that has not been heard of nothing is told"
    board.latest["0"] = counts
    (sent,) = board.told(now_s).values()
    shares = {
        row["role"]: (row["policy"], row["attainment"]) for row in sent["shadow"]["attainment"]
    }
    assert shares["running"] == ("fcfs", 0.25)
    assert shares["shadow"] == ("slack", 0.75)
    assert board.take(message("0", None, 2.0))
    assert board.told(now_s)["0"]["shadow"]["attainment"] == []
    assert board.told(now_s + 3600)["0"]["shadow"] == {}, "a shadow that died leaves no figure"
    assert not board.take({**told, "attainment": 3})


def test_it_ends_with_its_server(tmp_path: Path) -> None:
    """Standard input at its end: gone before it looks, and quietly."""
    done = subprocess.run(
        [sys.executable, "-m", "headway.study.shadow", str(tmp_path), "slack",
         "--channel", str(tmp_path / "c")],
        stdin=subprocess.DEVNULL, capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_shadow_sees_to_something_to_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of its own, unless there is one; one file is not enough."""
    monkeypatch.setattr(shadow_process.tempfile, "mkdtemp", lambda prefix: str(tmp_path))
    monkeypatch.setattr(shadow_process.atexit, "register", lambda *args, **kwargs: None)
    settings: dict[str, Any] = {}
    shadow_process.see_to_recording(settings)
    assert settings == {"record": str(tmp_path), "record_gib": shadow_process.RECORD_GIB}
    Settings.parse(settings)
    own = {"record": "/var/log/headway"}
    shadow_process.see_to_recording(own)
    assert own == {"record": "/var/log/headway"}
    with pytest.raises(UserError, match="not one"):
        shadow_process.see_to_recording({"record": "x.jsonl"})
