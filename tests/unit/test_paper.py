"""The papers' experiments as commands: a grid of runs, verdicts on claims, capacity."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from headway import registry
from headway.cli.paper import run_experiment
from headway.errors import UserError
from headway.papers.cacheopt import preset as cacheopt
from headway.papers.cacheopt.c2_lending import LendingLedger
from headway.study import stock
from headway.study.claims import ClaimReading, PaperClaim
from headway.study.drawn import DrawnMix
from headway.study.experiments import ACCELGEN, CACHEOPT, Experiment
from headway.study.on_oracle import ORACLE
from headway.study.paper_grid import FIGURE, NamedPolicy, Traffic
from headway.study.requests import requests_of
from headway.study.spec import STOCK_WAYS, Load, Machine, RunSpec
from headway.study.virtual_run import execute

TINY = Experiment(
    name="tiny",
    ours="cacheopt",
    machine=Machine("opt-13b@a100", kv_tokens=3000, host_tokens=20_000),
    traffic=(Traffic("sharegpt-turn", (2.0, 4.0), max_output_tokens=200),),
    contenders=(NamedPolicy("cacheopt", "cacheopt"), NamedPolicy("fcfs", "fcfs")),
    baselines=("fcfs",),
    claims=(PaperClaim("attainment", 10, "points", (ClaimReading("all", FIGURE["attainment"]),)),),
    of_their_day=("fcfs",),
    of_today=("fcfs",),
)


def run(
    tmp_path: Path, experiment: Experiment, part: str = "main", seeds: str = "0"
) -> dict[str, Any]:
    """Run an experiment in this process and return what it wrote."""
    run_experiment(experiment, tmp_path, "25", seeds, None, "1", part)
    return dict(json.loads((tmp_path / f"{experiment.name}.json").read_text()))


def test_the_experiment_writes_its_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows of both contenders at both rates, verdicts on the claims, capacity, all runs."""
    monkeypatch.setenv("COLUMNS", "200")
    document = run(tmp_path, TINY, seeds="0,1")
    assert {(r["policy"], r["rate_rps"]) for r in document["main"]} == {
        (policy, rate) for policy in ("cacheopt", "fcfs") for rate in (2.0, 4.0)
    }
    assert all(len(r["attainment_per_seed"]) == 2 for r in document["main"])
    kept = {(r["policy"], r["rate_rps"]): r["attainment"] for r in document["main"]}
    claim = document["claims"][0]
    largest = max(kept["cacheopt", r] - kept["fcfs", r] for r in (2.0, 4.0))
    assert claim["readings"][0]["day"]["best"]["gain"] == pytest.approx(100 * largest)
    assert claim["verdict"] == ("reached" if round(100 * largest, 1) >= 10 else "not reached")
    assert [c["verdict"] for c in document["claims"] if c["policy"] == "headway"] == [None]
    assert document["capacity_at_90"]["sharegpt-turn"].keys() == {"cacheopt", "fcfs"}
    runs = json.loads((tmp_path / "tiny-runs.json").read_text())["runs"]
    assert len(runs) == 8
    assert "+10 points" in capsys.readouterr().out


def test_without_the_main_table_there_is_no_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One sentence says so, and the document has no claims."""
    traffic = (replace(TINY.traffic[0], rates_rps=(2.0,)),)
    document = run(
        tmp_path, replace(TINY, ablation=TINY.contenders[1:], pressed=traffic), part="ablation"
    )
    assert "claims" not in document
    assert "No verdict on the claims" in capsys.readouterr().out


def test_a_figure_that_an_older_run_lacks_is_none() -> None:
    """Runs made before a figure was counted can still be read."""
    figure = FIGURE["mean gap of a request, p95"]
    assert figure.of({"tpot_s": {"p95": 0.1}}) == 0.1
    assert figure.of({"tbt_s": {"p95": 0.1}}) is None


def test_stock_vllm_is_tuned_by_its_own_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its best setting for each load keeps at least what its defaults keep."""
    pytest.importorskip("vllm")
    monkeypatch.setattr(stock, "BATCHED_SHARES", (1 / 8,))
    monkeypatch.setattr(stock, "WATERMARKS", (0.01,))
    names = ("stock", "stock-static", "stock-hindsight")
    document = run(
        tmp_path, replace(TINY, contenders=tuple(NamedPolicy(n, n) for n in names), ours="stock")
    )
    kept = {(r["policy"], r["rate_rps"]): r["attainment"] for r in document["main"]}
    assert len(kept) == 6
    for rate in (2.0, 4.0):
        assert kept["stock-hindsight", rate] >= kept["stock", rate]
        assert kept["stock-hindsight", rate] >= kept["stock-static", rate]


@pytest.mark.parametrize("experiment", [CACHEOPT, ACCELGEN])
def test_the_papers_contenders_exist(experiment: Experiment) -> None:
    """Every policy and option named is known, and labels tell contenders apart."""
    for table in experiment.tables().values():
        labels = [c.label for c in table.contenders]
        assert len(labels) == len(set(labels))
        assert table.traffic
        for c in table.contenders:
            if c.policy not in (*STOCK_WAYS, ORACLE):
                registry.build(c.policy, options=c.options)


@pytest.mark.parametrize("policy", registry.names())
def test_who_knows_no_promise_serves_alike_in_both_modes(policy: str) -> None:
    """Its runs of demote mode stand for those of refuse mode; others do refuse somebody."""
    load = Load("mixed", 60.0, 50, 3)
    spec = RunSpec(policy, "sim", load, Machine("llama-3.1-8b@h100", kv_tokens=20_000))
    demote, refuse = (execute(replace(spec, overload=mode)).run for mode in ("demote", "refuse"))
    if NamedPolicy(policy, policy).can_refuse:
        assert refuse["outcomes"]["refused"] > 0
    else:
        for run in (demote, refuse):
            del run["plan_time_us"], run["overload"]
        assert demote == refuse


def test_components_left_out_leave_the_others() -> None:
    """Every subset of CacheOPT's components is a policy."""
    for components in ("", "C1", "C2,C4", "C1,C2,C3,C4,C5,B"):
        lends = isinstance(cacheopt.parts(components=components).ledger, LendingLedger)
        assert lends is ("C2" in components)


def test_every_client_sends_the_limit() -> None:
    """Longer outputs end at it, and it is what policies are told."""
    load = Load("sharegpt-turn", 2.0, 200, 0)
    free, capped = requests_of(load), requests_of(replace(load, max_output_tokens=300))
    assert max(r.num_output_tokens for r in free) > 300
    assert [r.num_output_tokens for r in capped] == [min(r.num_output_tokens, 300) for r in free]
    assert {r.max_output_tokens for r in capped} == {300}


def test_a_virtual_machine_swaps_where_it_has_host_memory() -> None:
    """The same pressure with and without: victims are copied, or computed again."""
    load = Load("sharegpt-turn", 6.0, 60, 0, max_output_tokens=400)
    kinds = []
    for host_tokens in (0, 50_000):
        machine = Machine("opt-13b@a100", kv_tokens=2000, host_tokens=host_tokens)
        kinds.append(execute(RunSpec("headway", "sim", load, machine)).run["preemptions"])
    assert kinds[0]["swap"] == 0 < kinds[0]["recompute"]
    assert kinds[1]["swap"] > 0


def test_lengths_can_be_told_to_a_policy_that_pads_them() -> None:
    """Known lengths change what cacheopt does; a policy without padding refuses."""
    load = Load("sharegpt-turn", 5.0, 60, 0, max_output_tokens=400)
    machine = Machine("opt-13b@a100", kv_tokens=3000)
    told = RunSpec("cacheopt", "sim", load, machine, length_error=0.0)
    guessed = execute(replace(told, length_error=None)).run
    assert execute(told).run["ttft_s"] != guessed["ttft_s"]
    with pytest.raises(UserError, match="pads no predicted length"):
        execute(replace(told, policy="fcfs"))


def test_promises_are_drawn_the_same_whatever_the_mix() -> None:
    """Other shares of documents, other scales: the same requests have the same promises."""
    machine = Machine("opt-13b@a100", kv_tokens=14_648)
    plain = DrawnMix(0.3, prompt_scale=0.12)
    few, doubled = replace(plain, document_share=0.1), replace(plain, slo_scale=2.0)
    mine = {r.id: r for r in plain.requests(machine, 40)}
    assert sum(r.slo_class == "document" for r in mine.values()) == 14
    others = {r.id: r for r in few.requests(machine, 40)}
    assert sum(r.slo_class == "document" for r in others.values()) == 4
    assert len(others) == len(mine) == 40
    for name in mine.keys() & others.keys():
        assert others[name].ttft_slo_s == mine[name].ttft_slo_s
    for r in doubled.requests(machine, 40):
        assert r.ttft_slo_s == pytest.approx(2 * (mine[r.id].ttft_slo_s or 0))
        assert 0.75 * 0.1875 <= (mine[r.id].tbt_slo_s or 0) <= 1.25 * 0.1875


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    """The sentence names the tables."""
    with pytest.raises(UserError, match="it can be all, main, ablation, sensitivity"):
        run(tmp_path, TINY, part="everything")


def test_the_experiment_writes_drawn_traffic_once(tmp_path: Path) -> None:
    """It is a trace file beside the results, named after the traffic, and served whole."""
    traffic = Traffic("drawn", (1.0,), drawn=DrawnMix(0.3, prompt_scale=0.12))
    machine = Machine("opt-13b@a100", kv_tokens=14_648)
    document = run(tmp_path, replace(TINY, machine=machine, traffic=(traffic,)))
    assert {r["workload"] for r in document["main"]} == {"drawn-25"}
    assert all(0 < r["KV held"] <= 1 < r["tokens a step"] for r in document["main"])
    assert len((tmp_path / "drawn-25.jsonl").read_text().splitlines()) == 25
