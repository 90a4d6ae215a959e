"""The commands that read a server's figures: ``headway top`` and ``headway explain``."""

from __future__ import annotations

import json
import math
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console
from told import a_board, counts, late_board, late_row, serve_one

from headway.cli import explain as explain_command
from headway.cli import running_server
from headway.cli import top as top_command
from headway.cli.running_server import NoAnswer
from headway.errors import UserError
from headway.metrics.board import Board
from headway.metrics.scheduler_counts import SchedulerCounts
from headway.policy.events import Arrived, Finished
from headway.request import Request
from headway.slo import Slo


def test_top_shows_classes_and_who_is_late() -> None:
    """Shares, percentiles, and an id that looks like markup, literally."""
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(top_command.screen(a_board().state(2.0)))
    text = console.export_text()
    console.file.close()
    assert "50.0%" in text
    assert "0 running, 0 waiting, pressure 0%" in text
    assert "1/2" in text
    assert "late-[bold]1" in text
    assert "2.00 s" in text


def test_explain_tells_promise_result_causes_and_story(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything a person needs to know about one request."""
    board = a_board()
    board.broken[0]["story"].append([3.0, "stopped"])
    monkeypatch.setattr(explain_command, "ask", asked_of(board))
    done = CliRunner().invoke(explain_command.explain, ["late-"])
    assert done.exit_code == 0, done.output
    for part in ("late-[bold]1", "first token within 1.00 s", "late by   2.00 s", "queueing",
                 "1.00 s", "arrived", "answered"):  # fmt: skip
        assert part in done.output


def test_explain_says_that_a_pause_broke_the_promise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a stream with 99 % of its gaps in time and one silence of three seconds in it."""
    book = SchedulerCounts()
    slo = Slo(tbt_s=0.1, class_name="chat")
    book.arrived(Arrived(0.0, "frozen", 0.0, 10, 300, slo), 300)
    book.book.scheduled(0.0, {"frozen": 0}, math.inf)
    at_s = 0.0
    for k in range(300):
        at_s += 3.0 if k == 150 else 0.05
        book.book.done(at_s, {"frozen": 1}, 1000)
        book.book.scheduled(at_s, {}, math.inf)
    request = Request("frozen", slo, 0.0, 10, 300)
    request.num_output_tokens = 300
    told = book.finished(Finished(at_s, "frozen", "stopped"), request)
    assert told is not None
    assert (told["broke"], told["late_s"]) == (["pause"], pytest.approx(2.0))
    board = a_board()
    board.broken.append({**told, "engine": "0", "unix_s": 1.0})
    monkeypatch.setattr(explain_command, "ask", asked_of(board))
    output = CliRunner().invoke(explain_command.explain, ["frozen"]).output
    for part in ("no pause over 1.00 s", "longest pause 3.00 s", "broken by a pause", "2.00 s:"):
        assert part in " ".join(output.split()), output


def asked_of(board: Board) -> Any:
    """What the server's route answers about one request."""
    return lambda *_, id: {  # noqa: A006 - the query's own name
        "broken": board.explain(id),
        "late": board.late_now(id),
        "num_lost": board.num_stories_lost,
    }


def test_explain_says_that_both_latenesses_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a first token and an end were both late, and nowhere else."""
    board = a_board()
    monkeypatch.setattr(explain_command, "ask", asked_of(board))
    assert "adds up" not in CliRunner().invoke(explain_command.explain, ["late-"]).output
    board.broken[0]["broke"] = ["tbt", "pause"]
    assert "adds up" not in CliRunner().invoke(explain_command.explain, ["late-"]).output
    for both in (["ttft", "jct"], ["pause", "tpot"]):
        board.broken[0]["broke"] = both
        assert "adds up" in CliRunner().invoke(explain_command.explain, ["late-"]).output


def test_explain_of_a_request_that_is_late_now(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is not over: what is overdue, by how much, and what it is doing."""
    board = late_board()
    monkeypatch.setattr(explain_command, "ask", asked_of(board))
    path = tmp_path / "told.json"
    done = CliRunner().invoke(explain_command.explain, ["late-14", "--json", str(path)])
    assert done.exit_code == 0, done.output
    text = " ".join(done.output.split())
    assert "its first token is 14.00 s overdue; waits for its turn, 15.00 s after" in text
    assert json.loads(path.read_text()) == [late_row("late-14", 14.0)]


def test_explain_says_what_may_have_become_of_an_unknown_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Stories that were dropped are named, with their number, when there were any."""
    board = a_board()
    monkeypatch.setattr(explain_command, "ask", asked_of(board))
    done = CliRunner().invoke(explain_command.explain, ["other"])
    assert isinstance(done.exception, UserError)
    assert "dropped" not in str(done.exception)
    board.latest["0"]["counts"]["dropped"] = {"reader_slow": 5, "backlog_full": 7, "too_large": 1}
    done = CliRunner().invoke(explain_command.explain, ["other"])
    assert "or its story is one of 8 that were dropped" in str(done.exception)


def test_top_shows_who_is_late_now_first() -> None:
    """Before everything but the head: who, waiting for what, by how much, doing what."""
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(top_command.screen(late_board().state(100.0)))
    console.print(top_command.screen(a_board().state(2.0)))
    text = console.export_text()
    console.file.close()
    first, second = text.split("policy slack")[1:]
    rows = [line.split() for line in first.splitlines()]
    assert "Late now: 40, the 8 most overdue" in first
    assert " ".join(rows[3]) == "late-16 chat first token 16.00 s waits for its turn"
    assert first.index("late-16") < first.index("KV cache")
    assert "Late now: nobody" in second


def shown(board: Board, at_s: float) -> str:
    """What ``headway top`` writes."""
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(top_command.screen(board.state(at_s)))
    text = console.export_text()
    console.file.close()
    return text


def test_top_shows_targets_budgets_and_tenants_where_there_are_any() -> None:
    """Of a class with a target what is left and how fast it goes; of tenants the first eight."""
    observed, board = SchedulerCounts(), Board()
    for i in range(10):
        slo = Slo(ttft_s=1.0, class_name="code", target=0.95, tenant=f"t{i}")
        serve_one(observed, f"r{i}", slo, 1.5 if i == 0 else 0.5, 10.0 * i)
    board.take(counts(observed, 100.0))
    text = shown(board, 100.0)
    (row,) = [line.split() for line in text.splitlines() if line.strip().startswith("code")]
    assert row[1] == "90.0%"
    assert row[-3:] == ["95%", "-100%", "2.0"]
    assert "Tenants, the first 8 of 10" in text
    assert len([line for line in text.splitlines() if line.strip().startswith("t")]) == 9
    plain = shown(a_board(), 2.0)
    assert not any(word in plain for word in ("target", "budget", "enant"))


@pytest.mark.parametrize(
    ("status", "kind"), [(502, NoAnswer), (503, NoAnswer), (404, UserError), (400, UserError)]
)
def test_what_a_proxy_says_of_a_server_that_restarts_is_no_mistake(
    status: int, kind: type[Exception]
) -> None:
    """``headway top`` goes on after a NoAnswer, and ends at what the user can mend."""

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(status)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        thread = threading.Thread(target=proxy.handle_request)
        thread.start()
        with pytest.raises(kind):
            running_server.ask(f"http://127.0.0.1:{proxy.server_port}", "/headway/state")
        thread.join()


def test_top_goes_on_while_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last figures stay, under a sentence that says why; then new ones come."""
    state = a_board().state(2.0)
    answers = iter([state, NoAnswer("The proxy says 502."), state, KeyboardInterrupt()])

    def ask(*_: object) -> Any:
        answer = next(answers)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    monkeypatch.setattr(top_command, "ask", ask)
    monkeypatch.setattr(top_command.time, "sleep", lambda _: None)
    done = CliRunner().invoke(top_command.top, [])
    assert done.exit_code == 1, "Ctrl-C ended it, nothing before"
    assert next(answers, None) is None


@pytest.mark.parametrize("arguments", [[], ["x", "--worst", "3"]])
def test_explain_wants_one_question(arguments: list[str]) -> None:
    """An id or a number, not both and not neither."""
    done = CliRunner().invoke(explain_command.explain, arguments)
    assert isinstance(done.exception, UserError)
    assert "--worst 10" in str(done.exception)


def test_a_server_that_is_not_there_is_a_sentence() -> None:
    """No traceback for a wrong address."""
    for url, words in (("http://127.0.0.1:9", "No server answers"), ("nonsense", "must look like")):
        done = CliRunner().invoke(top_command.top, ["--url", url, "--once"])
        assert words in str(done.exception)
