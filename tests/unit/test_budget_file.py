"""Budgets outlive the server in a file: written whole, read at the start, put aside when broken."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
from told import Kept, serve_one

from headway import registry
from headway.config import Settings
from headway.engines.vllm import budget_file
from headway.engines.vllm.api_server import ServeOptions
from headway.engines.vllm.budget_file import EVERY_S, BudgetFile, check_budgets, path_of
from headway.engines.vllm.channel import CHANNEL_VARIABLE
from headway.engines.vllm.watch import Watch, watch_of
from headway.errors import UserError
from headway.metrics.budgets import ErrorBudgets
from headway.slo import Slo

CODE = Slo(ttft_s=1.0, class_name="code", target=0.9)
NOW_S = 1.7e9


def budgets_of(*kept: bool) -> ErrorBudgets:
    budgets = ErrorBudgets()
    budgets.aim("class", "code", 0.9)
    for is_kept in kept:
        budgets.ended("class", "code", NOW_S, is_kept=is_kept)
    return budgets


def in_file(path: Path) -> Any:
    """Return ended and broken promises of four weeks, as the next server finds them."""
    budgets = ErrorBudgets()
    BudgetFile(path, budgets, NOW_S)
    return budgets.snapshot(NOW_S)["class"]["code"]["windows"]["28d"]


def test_a_restart_keeps_what_is_spent(tmp_path: Path) -> None:
    """A watched server ends, and the next one goes on counting where it stopped."""
    path, messages = tmp_path / "budgets.json", []
    for lifetime in range(3):
        kept = Kept()
        watch = Watch(registry.build("fcfs"), kept, budgets=path)  # type: ignore[arg-type]
        serve_one(watch.observed, f"r{lifetime}", CODE, 0.5 if lifetime else 1.5)
        watch.tell(2.0, is_idle=True)
        messages.append(kept.messages[-1])
        watch.close()
    told = [m["budgets"]["class"]["code"]["windows"]["28d"] for m in messages]
    assert told == [[1, 1], [2, 1], [3, 1]]
    assert [p.name for p in tmp_path.iterdir()] == ["budgets.json"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_it_is_written_every_ten_seconds_at_most(tmp_path: Path) -> None:
    """Not before, then as of that instant."""
    path, budgets = tmp_path / "b.json", budgets_of(True)
    file = BudgetFile(path, ErrorBudgets(), NOW_S)
    file._budgets = budgets
    file.tell(NOW_S + EVERY_S - 1)
    assert file._thread is None
    file.tell(NOW_S + EVERY_S)
    assert file._thread is not None
    file._thread.join()
    assert in_file(path) == [1, 0]
    written = path.stat().st_mtime_ns
    file.tell(NOW_S + EVERY_S + 1)
    assert path.stat().st_mtime_ns == written


def test_a_disk_that_hangs_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The scheduler goes on, no second thread piles up, and the end does not wait for ever."""
    moves, replace = Event(), os.replace
    monkeypatch.setattr(budget_file.os, "replace", lambda a, b: moves.wait(20) and replace(a, b))
    monkeypatch.setattr(budget_file, "CLOSE_WITHIN_S", 0.0)
    file = BudgetFile(tmp_path / "b.json", budgets_of(True), NOW_S)
    file.tell(NOW_S + EVERY_S)
    first = file._thread
    file.tell(NOW_S + 3 * EVERY_S)
    assert file._thread is first
    with caplog.at_level(logging.WARNING, "vllm.headway"):
        file.close(NOW_S)
    assert "its disk hangs" in caplog.text
    moves.set()
    assert first is not None
    first.join(20)
    assert in_file(tmp_path / "b.json") == [1, 0]


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff", b"[]", b'{"schema": 9}', b"[" * 100_000, b'{"schema": 1, "groups":[3]}'],
)
def test_a_broken_file_is_kept_aside(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """One warning that names both files; the budgets begin anew, and are written again."""
    path = tmp_path / "b.json"
    path.write_bytes(content)
    budgets = budgets_of(True)
    with caplog.at_level(logging.WARNING, "vllm.headway"):
        file = BudgetFile(path, budgets, NOW_S)
    (record,) = caplog.records
    assert "b.json holds no budgets" in record.getMessage()
    assert "kept as b.json.broken. Error budgets begin anew." in record.getMessage()
    assert (tmp_path / "b.json.broken").read_bytes() == content
    file.close(NOW_S)
    assert in_file(path) == [1, 0]


def test_what_cannot_be_written_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The folder has gone: a sentence in the log, and no error."""
    folder = tmp_path / "gone"
    folder.mkdir()
    file = BudgetFile(folder / "b.json", budgets_of(True), NOW_S)
    folder.rmdir()
    with caplog.at_level(logging.WARNING, "vllm.headway"):
        file.close(NOW_S)
        file.close(NOW_S)
    assert [r.getMessage().split(" ")[:4] for r in caplog.records] == [
        ["Cannot", "write", "the", "budgets"]
    ]


def test_each_scheduler_has_its_file() -> None:
    """Data parallel ranks count apart."""
    found = [path_of("/var/b.json", engine) for engine in ("0", "1", "2")]
    assert found == [Path("/var/b.json"), Path("/var/b-e1.json"), Path("/var/b-e2.json")]


@pytest.mark.parametrize("given", [5, "", []])
def test_a_setting_that_names_no_file_is_a_mistake(given: Any) -> None:
    """One sentence, with the setting's name."""
    with pytest.raises(UserError, match='"budgets" must name a file'):
        Settings.parse({"budgets": given})


def test_where_no_file_can_be_is_a_mistake(tmp_path: Path) -> None:
    """A folder, or a file where its folder should be; a folder that is not there yet is made."""
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a folder"):
        check_budgets(Settings.parse({"budgets": str(tmp_path)}))
    with pytest.raises(UserError, match="Cannot keep the budgets"):
        check_budgets(Settings.parse({"budgets": str(tmp_path / "file" / "b.json")}))
    check_budgets(Settings.parse({"budgets": str(tmp_path / "new" / "b.json")}))
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    check_budgets(Settings.parse({}))


def test_serve_hands_the_file_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a whole path: the engine's process may run elsewhere."""
    monkeypatch.chdir(tmp_path)
    options = ServeOptions("m", None, None, None, (), budgets=Path("b.json"))
    assert options.settings() == {"budgets": str(tmp_path / "b.json")}


def test_without_a_channel_they_are_not_counted_and_it_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """On a vLLM that one starts oneself."""
    monkeypatch.delenv(CHANNEL_VARIABLE, raising=False)
    scheduler, core = SimpleNamespace(), registry.build("fcfs")
    with caplog.at_level(logging.WARNING, "vllm.headway"):
        assert watch_of(core, scheduler) is None
        assert caplog.records == []
        assert watch_of(core, scheduler, None, "b.json") is None
    assert f"name a folder in {CHANNEL_VARIABLE}" in caplog.text


def test_the_file_is_json_that_a_person_can_read(tmp_path: Path) -> None:
    """Groups by kind and name, with instants in Unix seconds."""
    path = tmp_path / "b.json"
    BudgetFile(path, budgets_of(True, False), NOW_S).close(NOW_S)
    (group,) = json.loads(path.read_text())["groups"]
    assert (group["kind"], group["name"], group["target"]) == ("class", "code", 0.9)
    assert group["minutes"] == [[NOW_S // 60 * 60, 2, 1]]
