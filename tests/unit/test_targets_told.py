"""What runs say of targets and tenants: in a summary, below a table, and to a live server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from wire import Exchange, benched, serve_well

from headway.bench.calls import CallOptions, calls_of
from headway.cli.main import main
from headway.cli.target_lines import outcomes_of, target_lines
from headway.errors import UserError
from headway.metrics.record import MOST_TENANTS, OTHERS, RequestRecord, RunFacts, summarise
from headway.slo import Slo, SloBook
from headway.workloads.schema import WorkloadRequest, write_jsonl

FACTS = RunFacts("headway", "sim")


def record(slo: Slo, is_kept: bool = True, name: str = "r") -> RequestRecord:
    """A request whose first token came after one second, or after three."""
    at_s = 1.0 if is_kept else 3.0
    return RequestRecord(name, slo, 0.0, (at_s,), "finished", 10, ended_at_s=at_s)


def test_a_run_without_tenants_says_nothing_of_them() -> None:
    """Nor of targets that nobody has."""
    run = summarise([record(Slo(2.0, class_name="a"))], FACTS)
    assert "per_tenant" not in run
    assert not {"target", "target_met", "promises_kept"} & run["per_class"]["a"].keys()


@pytest.mark.parametrize(
    ("num_kept", "target", "is_met"),
    [(19, 0.95, True), (18, 0.95, False), (18, 0.9, True), (0, 0.01, False), (20, 0.99, True)],
)
def test_a_target_is_met_at_its_share_or_above(num_kept: int, target: float, is_met: bool) -> None:
    """Of 20 promises; requests without one do not count, nor do other classes."""
    slo = Slo(2.0, class_name="a", target=target)
    records = [record(slo, i < num_kept) for i in range(20)]
    records += [record(Slo(class_name="a", target=target)) for _ in range(7)]
    records += [record(Slo(2.0, class_name="b"), is_kept=False) for _ in range(5)]
    found = summarise(records, FACTS)["per_class"]
    assert found["a"]["target"] == target
    assert found["a"]["target_met"] is is_met
    assert found["a"]["promises_kept"] == num_kept / 20
    assert found["a"]["num_requests"] == 27
    assert "target" not in found["b"]


def test_of_a_target_that_changed_the_last_counts() -> None:
    """As a reload leaves it; where no promise was made there is no verdict."""
    slos = (Slo(2.0, class_name="a", target=0.9), Slo(2.0, class_name="a", target=0.8))
    assert summarise([record(s) for s in slos], FACTS)["per_class"]["a"]["target"] == 0.8
    nothing = summarise([record(Slo(class_name="a", target=0.9))], FACTS)["per_class"]["a"]
    assert (nothing["promises_kept"], nothing["target_met"]) == (None, None)


def test_tenants_are_told_apart() -> None:
    """Those with the most requests first, with share and target; nobody has the empty name."""
    research = Slo(2.0, tenant="research", share=2.0, tenant_target=0.5)
    records = [record(research), record(research, is_kept=False), record(Slo(2.0))]
    records.append(record(Slo(tenant="research", share=0.0, tenant_target=0.5)))
    found = summarise(records, FACTS)["per_tenant"]
    assert list(found) == ["research", ""]
    assert {k: found["research"][k] for k in ("num_requests", "num_attained", "share")} == {
        "num_requests": 3, "num_attained": 2, "share": 2.0,
    }  # fmt: skip
    assert {k: found["research"][k] for k in ("target", "promises_kept", "target_met")} == {
        "target": 0.5, "promises_kept": 0.5, "target_met": True,
    }  # fmt: skip
    assert found[""]["share"] == 1.0


def test_beyond_fifty_tenants_the_rest_is_one() -> None:
    """Every request is in one of them, a tenant of that name too."""
    counts = {f"t{i:02}": 100 - i for i in range(MOST_TENANTS + 4)} | {OTHERS: 200}
    slos = {name: Slo(2.0, tenant=name) for name in counts}
    records = [record(slos[name]) for name, count in counts.items() for _ in range(count)]
    found = summarise(records, FACTS)["per_tenant"]
    assert len(found) == MOST_TENANTS
    assert list(found)[:2] == ["t00", "t01"]
    assert list(found)[-1] == OTHERS
    assert sum(figures["num_requests"] for figures in found.values()) == len(records)
    assert found[OTHERS]["num_requests"] == 200 + sum(
        counts[f"t{i:02}"] for i in range(MOST_TENANTS - 1, MOST_TENANTS + 4)
    )
    few = [r for r in records if r.slo.tenant in ("t00", OTHERS)]
    assert list(summarise(few, FACTS)["per_tenant"]) == [OTHERS, "t00"]


def test_a_line_says_what_was_met() -> None:
    """Over the mean of the seeds; nothing is said where nobody has a target."""
    runs = [
        {
            "per_class": {"code": {"target": 0.9, "promises_kept": kept}, "chat": {}},
            "per_tenant": {"x": {"target": 0.955, "promises_kept": 0.95}},
        }
        for kept in (0.88, 0.94)
    ]
    assert list(target_lines([("headway 4/s", runs), ("fcfs 4/s", [{"per_class": {}}])])) == [
        "Targets, headway 4/s: class code kept 91.0% of its promises, 90% met;"
        " tenant x kept 95.0% of its promises, 95.5% missed."
    ]
    assert outcomes_of([{"per_class": {"a": {"target": 0.9, "promises_kept": None}}}]) == []


# The commands.


def invoked(*args: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(args)
    assert not caught.value.code


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """A load of two tenants, and an SLO file with a target that is easy and one that is not."""
    rows = [
        WorkloadRequest(f"r{i}", i / 8, 300, 20, slo_class=("easy", "hard")[i % 2],
                        tenant=("research", "sales")[i % 2])
        for i in range(40)
    ]  # fmt: skip
    write_jsonl(tmp_path / "w.jsonl", rows)
    (tmp_path / "slo.toml").write_text(
        "[classes.easy]\njct_s = 500\ntarget = 0.9\n[classes.hard]\nttft_s = 0.0001\ntarget = 0.9\n"
        "[tenants.research]\nshare = 2\ntarget = 0.99\n"
    )
    return ["--trace", str(tmp_path / "w.jsonl"), "--slo", str(tmp_path / "slo.toml"),
            "--workers", "1", "--json", str(tmp_path / "out.json")]  # fmt: skip


def in_one_line(text: str) -> str:
    return " ".join(text.split())


def test_simulate_says_what_came_of_targets(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In JSON by class and by tenant, and in a line a person reads."""
    invoked("simulate", *files)
    (run,) = json.loads((tmp_path / "out.json").read_text())["runs"]
    assert {name: one["target_met"] for name, one in run["per_class"].items()} == {
        "easy": True, "hard": False,
    }  # fmt: skip
    assert {name: one["share"] for name, one in run["per_tenant"].items()} == {
        "research": 2.0, "sales": 1.0,
    }  # fmt: skip
    assert run["per_tenant"]["research"]["target_met"] is True
    assert "target" not in run["per_tenant"]["sales"]
    assert (
        "Targets, headway as is: class easy kept 100.0% of its promises, 90% met; class hard kept"
        " 0.0% of its promises, 90% missed; tenant research kept 100.0% of its promises, 99% met."
    ) in in_one_line(capsys.readouterr().out)


def test_capacity_says_whether_targets_are_met_at_the_rate_found(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A target of one class may be missed where enough of all promises is kept."""
    invoked("capacity", *files, "--target", "0.5")
    (row,) = json.loads((tmp_path / "out.json").read_text())["capacities"]
    assert row["mean_rps"] > 1
    assert [(one.get("class"), one.get("tenant"), one["target_met"]) for one in row["targets"]] == [
        ("easy", None, True), ("hard", None, False), (None, "research", True),
    ]  # fmt: skip
    assert "class hard kept 0.0% of its promises, 90% missed" in in_one_line(
        capsys.readouterr().out
    )


def test_inspect_names_the_tenants(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """How many requests each has; without any there is no such line."""
    invoked("trace", "inspect", files[1], "--json", str(tmp_path / "facts.json"))
    assert "Tenants: research 20, sales 20." in capsys.readouterr().out
    assert json.loads((tmp_path / "facts.json").read_text())["tenants"] == {
        "research": 20, "sales": 20,
    }  # fmt: skip


# A live server.


def test_bench_says_who_pays_where_it_is_told_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the header it is given, request by request; else no tenant leaves the machine."""
    monkeypatch.chdir(tmp_path)
    heard: list[str | None] = []

    async def server(exchange: Exchange) -> None:
        if exchange.path == "/v1/chat/completions":
            heard.append(exchange.headers.get("x-tenant"))
        await serve_well(exchange)

    rows = [
        WorkloadRequest(f"r{i}", i / 50, 5, 3, prompt="hi", tenant=tenant)
        for i, tenant in enumerate(("research", None, "sales"))
    ]

    def run(*args: str) -> Any:
        heard.clear()
        write_jsonl("tenants.jsonl", rows)
        # The later option counts.
        assert benched(server, "--workload", "tenants.jsonl", *args).exit_code == 0
        (summary,) = json.loads(Path("out.json").read_text())["runs"]
        return summary

    assert set(run("--tenant-header", "X-Tenant")["per_tenant"]) == {"research", "", "sales"}
    assert sorted(heard, key=str) == [None, "research", "sales"]
    assert set(run()["per_tenant"]) == {"research", "", "sales"}
    assert heard == [None, None, None]


@pytest.mark.parametrize("name", ["", "x tenant", "Authorization", "x-slo-tenant"])
def test_a_header_that_cannot_say_so_is_a_mistake(name: str, tmp_path: Path, capsys: Any) -> None:
    """The sentence names the option."""
    with pytest.raises(SystemExit) as caught:
        main(["bench", "--tenant-header", name])
    assert caught.value.code == 2
    assert "--tenant-header" in capsys.readouterr().err


def test_a_header_for_tenants_that_are_not_there_is_a_mistake() -> None:
    """Else the user would measure something else than was meant."""
    options = CallOptions("m", tenant_header="x-tenant")
    with pytest.raises(UserError, match="no request of the workload has a tenant"):
        calls_of([WorkloadRequest("r", 0.0, 5, 5)], SloBook.empty(), options)
