"""The bound is passed by nobody; the search finds what trying everything finds."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headway import registry
from headway.cli.main import main
from headway.engines.sim.run import SimRun
from headway.engines.virtual import Outcome, VirtualCall, VirtualEngine
from headway.errors import UserError
from headway.latency.profile import StepCost
from headway.metrics import define
from headway.oracle.bound import bound, can_keep
from headway.oracle.fast_model import Server, StepModel
from headway.oracle.policy import scheduler
from headway.oracle.search import search
from headway.oracle.simulated import Instance, SimulatedPlayer
from headway.oracle.told_policy import ToldPlayer, improve
from headway.policy.scheduler import Scheduler
from headway.slo import NO_PROMISE, Slo
from headway.study import on_oracle
from headway.study.bounds import bound_of
from headway.study.on_oracle import ORACLE, Effort, best_way
from headway.study.spec import Load, Machine, RunSpec
from headway.study.virtual_run import execute
from headway.workloads.schema import WorkloadRequest

COST = StepCost(32, 0.01, 1e-4, 4e-4, 2e-6, 1e-4, 1e-6, 5e-4)
STEP_TOKENS = 128
BLOCK = 4


def load(
    seed: int, count: int, rate_rps: float, most_prompt: int = 150, most_output: int = 40
) -> tuple[list[WorkloadRequest], dict[str, Slo]]:
    """Requests with promises of every sort, some of which cannot be kept."""
    rng = np.random.default_rng(seed)
    at_s = np.cumsum(rng.exponential(1 / rate_rps, count))
    requests = [
        WorkloadRequest(
            f"r{i}", float(at_s[i]), int(rng.integers(1, most_prompt)),
            int(rng.integers(1, most_output)),
        )
        for i in range(count)
    ]  # fmt: skip
    kinds = (
        lambda: Slo(ttft_s=float(rng.uniform(0.02, 0.5)), tbt_s=float(rng.uniform(0.012, 0.06))),
        lambda: Slo(ttft_s=float(rng.uniform(0.05, 0.4))),
        lambda: Slo(jct_s=float(rng.uniform(0.2, 1.5))),
        lambda: Slo(ttft_s=0.3, tbt_s=0.03, jct_s=float(rng.uniform(0.3, 1.5))),
    )
    return requests, {r.id: kinds[int(rng.integers(4))]() for r in requests}


def engine_of(kv_tokens: int, asynchronous: bool = False) -> VirtualEngine:
    return VirtualEngine(
        num_blocks=kv_tokens // BLOCK,
        block_size=BLOCK,
        max_num_batched_tokens=STEP_TOKENS,
        asynchronous=asynchronous,
    )


def calls_of(requests: list[WorkloadRequest], slos: dict[str, Slo]) -> list[VirtualCall]:
    calls = []
    for request in requests:
        slo = slos[request.id]
        fields = {"slo_ttft_ms": slo.ttft_s, "slo_tbt_ms": slo.tbt_s, "slo_jct_ms": slo.jct_s}
        xargs = {name: value * 1000 for name, value in fields.items() if value is not None}
        sizes = (request.num_prompt_tokens, request.num_output_tokens)
        calls.append(VirtualCall(request.id, request.arrived_at_s, *sizes, xargs))
    return calls


def instance_of(
    requests: list[WorkloadRequest],
    slos: dict[str, Slo],
    kv_tokens: int,
    asynchronous: bool = False,
) -> Instance:
    engine = engine_of(kv_tokens, asynchronous)
    calls = calls_of(requests, slos)
    return Instance(requests, calls, slos, engine, COST, COST.step_s, lambda: COST.step_s)


def serve(
    policy: Scheduler,
    requests: list[WorkloadRequest],
    slos: dict[str, Slo],
    kv_tokens: int,
    asynchronous: bool = False,
) -> set[str]:
    """Run the requests through the simulator; return whose promise was kept."""
    run = SimRun(engine_of(kv_tokens, asynchronous), COST.step_s, policy)
    outcomes = run.run(calls_of(requests, slos))
    assert not policy.live.requests
    return {i for i, o in outcomes.items() if was_kept(o, slos[i])}


def was_kept(outcome: Outcome, slo: Slo) -> bool:
    finished = outcome.finish_reason in ("stop", "length")
    return define.attained(
        slo, outcome.call.arrived_at_s, list(outcome.emitted_at_s), finished=finished
    )


# -- nobody passes the bound ------------------------------------------------------------------


@pytest.mark.parametrize("policy", registry.names())
def test_no_policy_passes_the_bound(policy: str) -> None:
    """Every preset, with and without KV pressure, calm and overloaded, one step ahead or not."""
    for seed, (rate_rps, kv_tokens) in enumerate([(4, 4000), (15, 4000), (15, 400), (60, 600)]):
        requests, slos = load(seed, 14, rate_rps)
        most = bound(requests, slos, COST, kv_tokens, STEP_TOKENS)
        kept = serve(registry.build(policy), requests, slos, kv_tokens, asynchronous=seed == 1)
        assert len(kept) / len(requests) <= most + 1e-12


@pytest.mark.parametrize("seed", range(12))
def test_no_order_passes_the_bound(seed: int) -> None:
    """Neither do all orders of all subsets of four requests, in the model and in the simulator."""
    kv_tokens = (300, 2000)[seed % 2]
    requests, slos = load(seed, 4, (8, 40, 200)[seed % 3])
    server = Server(COST, kv_tokens, STEP_TOKENS)
    model = StepModel(requests, slos, server)
    best = max(
        len(model.play(order))
        for size in range(5)
        for order in itertools.permutations(range(4), size)
    )
    most = bound(requests, slos, COST, kv_tokens, STEP_TOKENS)
    assert best / 4 <= most + 1e-12
    found = search(model, seed=seed)
    assert found.attainment == best / 4
    kept = serve(scheduler(found, requests, COST.step_s), requests, slos, kv_tokens)
    assert len(kept) / 4 <= most + 1e-12


def test_the_bound_is_no_mere_one() -> None:
    """On random overloads it says less than everybody, and more KV never makes it less."""
    below = 0
    for seed in range(3):
        requests, slos = load(seed, 40, 80)
        little, much = (bound(requests, slos, COST, kv, STEP_TOKENS) for kv in (300, 6000))
        assert little <= much
        below += much < 0.9
    assert below >= 2


def alike(
    count: int, slo: Slo, prompt: int, output: int = 1
) -> tuple[list[WorkloadRequest], dict[str, Slo]]:
    requests = [WorkloadRequest(f"r{i}", 0.0, prompt, output) for i in range(count)]
    return requests, {r.id: slo for r in requests}


def test_two_prompts_that_share_too_short_a_time() -> None:
    """Each fits alone, both together need a fifth more than there is: one of two."""
    line = StepCost(1, 0.0, 0.001, 0.001, 0.0, 0.0, 0.0, 0.0)
    requests, slos = alike(2, Slo(ttft_s=0.1), 60)
    assert bound(requests, slos, line, 1000, 128) == 0.5
    assert bound(requests, slos, line, 1000, 128, scale=0.8) == 1.0
    assert bound(requests, slos, line, 1000, 128, scale=2.0) == 0.0


def test_kv_bounds_too() -> None:
    """Ten streams of 100 to 150 tokens of KV for 50 steps of 10 ms, within 0.7 s: with room for
    two at a time 49 gaps x 101 tokens x 10 ms each make four of 0.69 s x 300 tokens; with much
    room all can."""
    line = StepCost(1, 0.01, 1e-6, 1e-6, 0.0, 0.0, 0.0, 0.0)
    requests, slos = alike(10, Slo(ttft_s=0.2, tbt_s=0.0102), 100, 50)
    assert bound(requests, slos, line, 2000, 2048) == 1.0
    assert bound(requests, slos, line, 300, 2048) == 0.4


def test_a_long_stream_may_pause() -> None:
    """Of over a hundred gaps one may last as long as the promise allows a pause. Where that is any
    time, little KV serves all in turn. Where it is a second, the last tokens are due after 2.7 s,
    and 200 tokens of KV for so long are five times the 105 token-seconds that each holds."""
    line = StepCost(1, 0.01, 1e-6, 1e-6, 0.0, 0.0, 0.0, 0.0)
    for pause_s, kept in ((math.inf, 1.0), (None, 5 / 8)):
        promise = Slo(ttft_s=0.5, tbt_s=0.0102, pause_s=pause_s)
        requests, slos = alike(8, promise, 50, 120)
        assert bound(requests, slos, line, 200, 2048) == kept


@pytest.mark.parametrize("policy", ["headway", "slack", "fcfs", "orca"])
def test_no_policy_passes_the_bound_of_streams_that_may_pause(policy: str) -> None:
    """Outputs of up to 250 tokens that short caches preempt, with pauses long and short."""
    below = 0
    for seed, kv_tokens in enumerate((500, 700)):
        requests, slos = load(seed, 12, 30, most_prompt=60, most_output=250)
        slos = {
            name: replace(slo, pause_s=(None, 0.2, 0.07)[i % 3]) if slo.tbt_s else slo
            for i, (name, slo) in enumerate(slos.items())
        }
        most = bound(requests, slos, COST, kv_tokens, STEP_TOKENS)
        kept = serve(registry.build(policy), requests, slos, kv_tokens)
        assert len(kept) / len(requests) <= most + 1e-12
        below += most < 1.0
    assert below


def test_a_pause_without_a_gap_bounds_every_gap() -> None:
    """A stream whose shortest gap exceeds the pause is out; one that has just time is not."""
    requests = [WorkloadRequest("r", 0.0, 10, 150)]
    for pause_s, kept in ((0.009, 0.0), (0.011, 1.0)):
        slos = {"r": Slo(pause_s=pause_s)}
        assert bound(requests, slos, COST, 400, STEP_TOKENS) == kept


def test_who_cannot_be_kept_and_who_asks_for_nothing() -> None:
    """A prompt beyond the cache, a gap below any step and a completion before the last token
    are out whatever is done; without a promise it is enough to finish."""
    requests = [WorkloadRequest(f"r{i}", 0.0, n, 50) for i, n in enumerate((500, 10, 10, 10))]
    slos = dict(
        zip(
            ("r0", "r1", "r2", "r3"),
            (NO_PROMISE, Slo(tbt_s=0.009), Slo(jct_s=0.3), NO_PROMISE),
            strict=True,
        )
    )
    assert bound(requests, slos, COST, 400, STEP_TOKENS) == 0.25


def test_windows_on_a_grid_only_loosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer instants make the bound larger, never smaller."""
    requests, slos = load(3, 30, 60)
    exact = bound(requests, slos, COST, 600, STEP_TOKENS)
    monkeypatch.setattr("headway.oracle.fractions_kept.MOST_INSTANTS", 12)
    assert bound(requests, slos, COST, 600, STEP_TOKENS) >= exact


@pytest.mark.parametrize("seed", range(4))
def test_targets_the_bound_excludes_are_kept_by_no_order(seed: int) -> None:
    """What any order keeps can be kept; shares of both classes beyond the bound cannot."""
    requests, slos = load(seed, 40, 400)
    slos = {r.id: replace(slos[r.id], class_name="ab"[k % 2]) for k, r in enumerate(requests)}
    machine = (COST, 800, STEP_TOKENS)
    model = StepModel(requests, slos, Server(*machine))
    rng = np.random.default_rng(seed)
    for _ in range(10):
        kept = model.play([int(i) for i in rng.permutation(40)])
        shares = {name: sum(i % 2 == k for i in kept) / 20 for k, name in enumerate("ab")}
        assert can_keep(requests, slos, shares, *machine)
    most = bound(requests, slos, *machine)
    assert most < 0.9
    beyond = most + 1 / 40 + 1e-3  # The bound is rounded down to whole requests.
    assert not can_keep(requests, slos, {"a": beyond, "b": beyond}, *machine)
    assert can_keep(requests, slos, {"a": most}, *machine)


def test_a_target_of_what_cannot_be_kept_alone() -> None:
    """A request that an idle server breaks counts among its class: half of them is the most."""
    requests = [WorkloadRequest(f"r{i}", float(i), 10, 2) for i in range(2)]
    slos = {"r0": Slo(ttft_s=1.0, class_name="a"), "r1": Slo(ttft_s=1e-6, class_name="a")}
    for target, expected in ((0.5, True), (0.51, False)):
        assert can_keep(requests, slos, {"a": target}, COST, 400, STEP_TOKENS) is expected


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"kv_tokens": 0}, "kv_tokens"),
        ({"max_step_tokens": -1}, "max_step"),
        ({"scale": 0}, "scale"),
    ],
)
def test_a_wrong_size_is_one_sentence(change: dict[str, float], word: str) -> None:
    """It names the argument."""
    requests, slos = load(0, 2, 1)
    sizes = {"kv_tokens": 100, "max_step_tokens": 64, **change}
    with pytest.raises(UserError, match=word):
        bound(requests, slos, COST, **sizes)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="at least one request"):
        bound([], {}, COST, 100, 64)


# -- the search ---------------------------------------------------------------------------------


def test_a_search_is_reproducible_and_bounded() -> None:
    """The same seed gives the same order; more plays never give a worse one."""
    requests, slos = load(5, 40, 60)
    model = StepModel(requests, slos, Server(COST, 800, STEP_TOKENS))
    one, two = (search(model, seed=3, max_plays=40) for _ in range(2))
    assert one == two
    assert one.num_plays == 40
    longer = search(model, seed=3, max_plays=200)
    assert longer.attainment >= one.attainment
    again = search(model, seed=4, max_plays=1, start=longer)
    assert again.attainment == longer.attainment
    for found in (one, longer, again):
        assert set(found.rank) | found.dropped == {r.id for r in requests}
        assert not set(found.rank) & found.dropped
        assert sorted(found.rank.values()) == list(range(len(found.rank)))
    with pytest.raises(UserError, match="max_plays"):
        search(model, max_plays=0)
    with pytest.raises(UserError, match="at least one request"):
        search(StepModel([], {}, Server(COST, 800, STEP_TOKENS)))


def test_a_searched_order_keeps_the_most() -> None:
    """Over overloads it keeps more than these presets do, polished by a few plays of the
    simulator itself, whose last word is what a run of that order gives."""
    kept: dict[str, int] = {}
    for seed in range(3):
        requests, slos = load(seed, 30, 30)
        fast = StepModel(requests, slos, Server(COST, 1200, STEP_TOKENS))
        last_word = SimulatedPlayer(instance_of(requests, slos, 1200))
        start = search(fast, seed=seed, max_plays=60)
        found = search(last_word, seed=seed, max_plays=10, start=start)
        for name in ("oracle", "fcfs", "accelgen", "slack"):
            policy = (
                scheduler(found, requests, COST.step_s)
                if name == "oracle"
                else registry.build(name)
            )
            one = serve(policy, requests, slos, 1200)
            kept[name] = kept.get(name, 0) + len(one)
            if name == "oracle":
                assert len(one) / 30 == found.attainment
                assert len(one) / 30 <= bound(requests, slos, COST, 1200, STEP_TOKENS)
    assert kept["oracle"] == max(kept.values())
    assert kept["accelgen"] < kept["oracle"]


def test_the_model_agrees_with_a_step_by_hand() -> None:
    """One prompt and its two gaps: kept when the promise is that long, lost when a hair less."""
    request = WorkloadRequest("r", 1.0, 10, 3)
    prompt_s = 0.01 + 10 * 1e-4 + 50 * 1e-6 + 5e-4
    gap_s = 0.01 + 1e-4 + 11 * 2e-6 + 1e-4
    for factor, kept in ((1 + 1e-9, {0}), (1 - 1e-3, set())):
        slo = Slo(ttft_s=prompt_s * factor, tbt_s=gap_s * factor)
        assert StepModel([request], {"r": slo}, Server(COST, 100, 64)).play([0]) == kept
    assert (
        StepModel([request], {"r": Slo(ttft_s=math.inf)}, Server(COST, 100, 64)).play([]) == set()
    )


# -- the told policy, and the best of all ways ------------------------------------------------

FEW = Effort(order_plays=10, slower=(1.0, 1.1), improve_plays=4)
"""Few tries: what must hold does so however few."""


@pytest.mark.parametrize("seed", range(3))
def test_no_policy_passes_the_oracle(seed: int) -> None:
    """Every preset, with and without KV pressure, one step ahead or not; nor it the bound."""
    kv_tokens, is_ahead = ((4000, False), (400, False), (600, True))[seed]
    requests, slos = load(seed, 14, 40)
    instance = instance_of(requests, slos, kv_tokens, is_ahead)
    way = best_way(instance, seed, is_bounded=True, effort=FEW)
    kept = serve(way.policy(), requests, slos, kv_tokens, is_ahead)
    assert kept == way.kept  # What it was chosen for is what it does again.
    assert len(kept) / 14 <= bound(requests, slos, COST, kv_tokens, STEP_TOKENS) + 1e-12
    for name in registry.names():
        assert len(serve(registry.build(name), requests, slos, kv_tokens, is_ahead)) <= len(kept)


def test_what_is_told_keeps_more() -> None:
    """Over overloads the told policy keeps more than the default does, told all lengths."""
    ours = told = 0
    for seed in (0, 2):
        requests, slos = load(seed, 30, 40)
        instance = instance_of(requests, slos, 1200)
        ours += len(instance.kept_by(registry.build()))
        player = ToldPlayer(instance)
        told += round(30 * improve(player, [range(30)], seed=seed, max_plays=5).attainment)
    assert told > ours


def test_whoever_is_given_up_is_served_all_the_same() -> None:
    """After the others, to its end; and an improvement is repeatable, and never below its start."""
    requests, slos = load(1, 20, 40)
    instance = instance_of(requests, slos, 500)
    player = ToldPlayer(instance)
    start = player.play(range(20))
    one, two = (improve(player, [range(20)], seed=4, max_plays=5) for _ in range(2))
    assert one == two
    assert one.attainment >= len(start) / 20
    policy = player.scheduler(one)
    outcomes = SimRun(instance.engine, COST.step_s, policy).run(instance.calls)
    assert one.dropped
    assert all(outcomes[name].finish_reason == "stop" for name in one.dropped)
    policy.validate()
    with pytest.raises(UserError, match="at least one request"):
        improve(ToldPlayer(instance_of([], {}, 500)), [])


# -- as runs of a study -------------------------------------------------------------------------

MIXED = Load("mixed", rate_rps=40.0, num_requests=24, seed=1)
MACHINE = Machine("llama-3.1-8b@h100", kv_tokens=20_000)
SPEC = RunSpec(ORACLE, "sim", MIXED, MACHINE)


@pytest.fixture
def _few_tries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(on_oracle, "EFFORT", FEW)


@pytest.mark.parametrize(
    "change",
    [{}, {"overload": "refuse"}, {"machine": replace(MACHINE, noise=0.1, asynchronous=True)}],
    ids=["demote", "refuse", "noisy and a step ahead"],
)
@pytest.mark.usefixtures("_few_tries")
def test_a_run_of_the_oracle(change: dict[str, Any]) -> None:
    """It is a run like any other: repeatable, nobody is lost; and no preset passes it, with noise
    either."""
    spec = replace(SPEC, **change)
    one, two = (execute(spec).run for _ in range(2))
    del one["plan_time_us"], two["plan_time_us"]
    assert one == two
    assert one["num_requests"] == 24
    assert one["lost"] == 0
    assert one["policy"] == ORACLE
    others = [execute(replace(spec, policy=name)).run for name in ("fcfs", "slack", "headway")]
    assert one["attainment"] >= max(run["attainment"] for run in others)
    assert one["attainment"] > others[0]["attainment"]


def test_the_bound_of_a_run_holds_for_it() -> None:
    """Slower steps never raise it, stock's larger steps never lower it."""
    load = replace(MIXED, rate_rps=400.0, num_requests=60)
    spec = replace(SPEC, load=load)
    most = bound_of(spec)
    assert execute(replace(spec, policy="slack")).run["attainment"] <= most < 1.0
    assert bound_of(replace(spec, policy="stock")) >= most
    slower = replace(MACHINE, step_time_band=0.2)
    assert bound_of(replace(spec, machine=slower)) < most


def test_a_bound_too_large_to_solve(monkeypatch: pytest.MonkeyPatch) -> None:
    """First the windows of streams that may pause are left out; where that is not enough, it is
    refused with the number of requests that would do."""
    line = StepCost(1, 0.01, 1e-6, 1e-6, 0.0, 0.0, 0.0, 0.0)
    pausing, promises = alike(8, Slo(ttft_s=0.5, tbt_s=0.0102), 50, 120)
    monkeypatch.setattr("headway.oracle.fractions_kept.MOST_VARIABLES", 50)
    assert bound(pausing, promises, line, 200, 2048) == 1.0
    requests, slos = load(3, 30, 60)
    monkeypatch.setattr("headway.oracle.fractions_kept.MOST_VARIABLES", 500)
    with pytest.raises(UserError, match=r"variables, .* about \d+ requests fit"):
        bound(requests, slos, COST, 600, STEP_TOKENS)


SMALL = ["--workload", "mixed", "--requests", "20", "--kv-tokens", "20000", "--workers", "1"]


def simulate(*args: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(["simulate", *SMALL, "--rate", "60", *args])
    return int(caught.value.code or 0)


@pytest.mark.usefixtures("_few_tries")
def test_simulate_with_oracle_and_bound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The oracle beside a preset whose options it does not share; every run carries its bound."""
    out = tmp_path / "out.json"
    code = simulate("--policy", "oracle,slack", "--options", '{"max_wait_s": 60}', "--bound",
                    "--seed", "0,1", "--json", str(out))  # fmt: skip
    assert code == 0
    runs = json.loads(out.read_text())["runs"]
    assert [(r["policy"], r["seed"]) for r in runs] == [
        ("oracle", 0), ("oracle", 1), ("slack", 0), ("slack", 1),
    ]  # fmt: skip
    for seed in (0, 1):
        bounds = {r["bound"] for r in runs if r["seed"] == seed}
        assert bounds == {
            bound_of(replace(SPEC, load=replace(MIXED, rate_rps=60.0, num_requests=20, seed=seed)))
        }
    assert all(r["attainment"] <= r["bound"] <= 1.0 for r in runs)
    assert runs[0]["settings"] == "{}"
    assert "bound" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (["--policy", "oracle", "--engine", "vllm"], "--engine sim only"),
        (["--policy", "slack,oracle", "--replicas", "2"], "leave out --replicas"),
        (["--policy", "oracle", "--drift", "jump:0.5@9"], "leave out --drift"),
        (["--policy", "oracle", "--options", '{"max_wait_s": 9}'], "takes no options"),
        (["--policy", "oracle,best"], "the policies are"),
        (["--policy", "oracle", "--gpu", "abacus"], "llama-3.1-8b@h100"),
        (["--bound", "--replicas", "2"], "leave out --replicas"),
        (["--bound", "--noise", "0.1"], "leave out --noise"),
        (["--bound", "--drift", "jump:0.5@9"], "leave out --drift"),
        (["--bound", "--prefix-caching"], "use --no-prefix-caching"),
    ],
    ids=lambda v: " ".join(v)[-40:] if isinstance(v, list) else "",
)
def test_what_cannot_be_known_is_one_sentence(
    args: list[str], hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2, one line, and it says what to leave out."""
    assert simulate(*args) == 2
    said = capsys.readouterr().err.strip()
    assert hint in said
    assert said.startswith("headway: ")
    assert len(said.splitlines()) == 1
