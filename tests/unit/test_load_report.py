"""Load reports on answers: the HTTP side, and the scheduler's."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from told import Kept, Silent

from headway import registry
from headway.engines.journal import Journal
from headway.engines.vllm.channel import LOAD_CHANNEL_VARIABLE, Sender
from headway.engines.vllm.load_report import LoadReports
from headway.engines.vllm.load_signal import LoadSignal, load_signal_of
from headway.metrics.server_load import (
    LEAST_UTILIZATION,
    RATE_WINDOW_S,
    SILENCE_S,
    HeardLoads,
    RecentRate,
    mean_load,
)
from headway.policy.events import Arrived, Finished, StepScheduled
from headway.policy.scheduler import Scheduler
from headway.policy.view import EngineView
from headway.slo import NO_PROMISE, Slo

VLLMS_OWN = b"TEXT named_metrics.kv_cache_usage_perc=0.1"


def word(
    pressure: float = 0.5, engine: str = "0", *, is_idle: bool = False, **more: Any
) -> dict[str, Any]:
    """What a scheduler says of its load."""
    load = {"pressure": pressure, "prefill_backlog_s": 2.0 * pressure, "kv_share": 0.25}
    return {"kind": "load", "engine": engine, "is_idle": is_idle, "load": load, "waiting": 3,
            "rps": 2.0, "eps": 1.0, **more}  # fmt: skip


# -- what several words come to ----------------------------------------------------------------


def test_a_rate_counts_the_last_seconds() -> None:
    """Five events, of which two have passed out of the window."""
    rate = RecentRate()
    for at_s in (0.0, 1.0, 5.0, 5.0, 9.0):
        rate.add(at_s)
    assert rate.per_s(9.0) == pytest.approx(5 / RATE_WINDOW_S)
    assert rate.per_s(11.0) == pytest.approx(3 / RATE_WINDOW_S)
    assert rate.per_s(100.0) == 0.0


def test_the_load_of_several_engines_is_their_mean() -> None:
    """Rates and who waits add up; shares, pressure and seconds do not."""
    load = HeardLoads()
    load.take(word(0.2, "0"), 0.0)
    load.take(word(1.0, "1"), 0.0)
    load.take({**word(9.0, "2"), "kind": "counts"}, 0.0)
    report = load.report(0.0)
    assert report is not None
    assert (report.rps_fractional, report.eps) == (4.0, 2.0)
    assert report.application_utilization == pytest.approx(0.6)
    assert report.named_metrics == {
        "kv_cache_usage_perc": 0.25,
        "num_requests_waiting": 6.0,
        "headway_pressure": pytest.approx(0.6),
        "headway_prefill_backlog_seconds": pytest.approx(1.2),
    }
    assert mean_load([]) == {}


def test_an_idle_server_stays_idle_and_its_rates_pass() -> None:
    """However old its last word is. Its utilization is not 0, which Envoy would drop."""
    load = HeardLoads()
    idle = {"pressure": 0.0, "prefill_backlog_s": 0.0, "kv_share": 0.0}
    load.take(word(is_idle=True, load=idle, waiting=0), 100.0)
    for now_s, rps in ((100.0, 2.0), (105.0, 1.0), (110.0, 0.0), (1e6, 0.0)):
        report = load.report(now_s)
        assert report is not None
        assert report.rps_fractional == pytest.approx(rps)
        assert report.eps == pytest.approx(rps / 2)
        assert report.application_utilization == LEAST_UTILIZATION
        assert report.named_metrics["headway_pressure"] == 0.0


def test_a_busy_scheduler_that_fell_silent_is_not_believed() -> None:
    """Its words do not arrive; those of another engine still count."""
    load = HeardLoads()
    assert load.report(0.0) is None
    load.take(word(0.9, "0"), 0.0)
    assert load.report(SILENCE_S) is not None
    assert load.report(SILENCE_S + 0.1) is None
    load.take(word(0.3, "1"), SILENCE_S)
    report = load.report(SILENCE_S + 0.1)
    assert report is not None
    assert report.application_utilization == pytest.approx(0.3)


# -- the scheduler's side ----------------------------------------------------------------------


def test_a_scheduler_says_how_busy_it_is_and_that_it_fell_idle(fake_engine: Any) -> None:
    """While it works, with what waits; the last word says that nobody is left."""
    kept = Kept()
    core = registry.build("headway")
    signal = LoadSignal(core, kept, "3")  # type: ignore[arg-type]
    engine = fake_engine(Journal(core, signal))
    for i in range(12):
        engine.arrive(f"r{i}", 40, 5, slo=Slo(ttft_s=1.0, class_name="chat"))
    while engine.core.live.requests:
        engine.step()
    first, last = kept.messages[0], kept.messages[-1]
    assert {m["kind"] for m in kept.messages} == {"load"}
    assert first["engine"] == "3"
    assert first["load"]["pressure"] > 0.0
    assert first["load"]["prefill_backlog_s"] > 0.0
    assert first["waiting"] > 0
    assert first["rps"] == pytest.approx(12 / RATE_WINDOW_S)
    assert not first["is_idle"]
    assert kept.last == [last]
    assert last["is_idle"]
    assert last["load"] == {"pressure": 0.0, "prefill_backlog_s": 0.0, "kv_share": 0.0}


def test_a_burst_on_an_idle_server_is_told_before_its_first_step() -> None:
    """That step may take seconds, in which a router would send more to a server that looks idle."""
    kept = Kept()
    core = registry.build("headway")
    journal = Journal(core, LoadSignal(core, kept))  # type: ignore[arg-type]
    for i in range(5):
        journal.observe(Arrived(1.0, f"r{i}", 1.0, 40, 5, Slo(ttft_s=1.0, class_name="chat")))
    journal.plan(EngineView(64, 64, 4, 8, 64), 1.0)
    journal.observe(StepScheduled(1.0, {"r0": 40}, {"r0": 0}))
    (told,) = kept.messages
    assert told["load"]["pressure"] > 0.0
    assert told["load"]["prefill_backlog_s"] > 0.0
    assert told["waiting"] == 4
    assert told["rps"] == pytest.approx(5 / RATE_WINDOW_S)


def test_errors_are_what_the_server_failed() -> None:
    """Refused ones and the engine's own; not what a client did wrong, or hung up on."""
    kept = Kept()
    core = registry.build("headway")
    signal = LoadSignal(core, kept)  # type: ignore[arg-type]
    reasons = ["stopped", "refused", "rejected", "aborted", "boom"]
    signal.read([Arrived(1.0, r, 1.0, 10, 5, NO_PROMISE) for r in reasons])
    signal.read([Finished(2.0, r, r) for r in reasons])
    signal.tell(2.0, is_idle=True)
    (told,) = kept.messages
    assert told["rps"] == pytest.approx(5 / RATE_WINDOW_S)
    assert told["eps"] == pytest.approx(2 / RATE_WINDOW_S)


def test_nothing_is_worked_out_while_nobody_listens() -> None:
    """A core that could not say is not asked."""
    core = SimpleNamespace(live=None, load=lambda at_s: pytest.fail("asked"))
    LoadSignal(core, Silent()).tell(1.0, is_idle=False)  # type: ignore[arg-type]


def test_plans_and_steps_are_not_kept_for_it(fake_engine: Any) -> None:
    """A server without a page or a recording only hands on who comes and goes."""
    heard: list[Any] = []

    class Heard(LoadSignal):
        def read(self, entries: Any) -> None:
            heard.extend(entries)

    core = registry.build("headway")
    engine = fake_engine(Journal(core, Heard(core, Silent())))  # type: ignore[arg-type]
    engine.arrive("one", 40, 5)
    while engine.core.live.requests:
        engine.step()
    assert [type(entry) for entry in heard] == [Arrived, Finished]


@pytest.mark.parametrize("policy", registry.names())
def test_every_policy_can_be_asked(policy: str, fake_engine: Any) -> None:
    """Empty, with work that waits and runs, and empty again; the answer is a number."""
    core: Scheduler = registry.build(policy)
    assert core.load(0.0).pressure == 0.0
    engine = fake_engine(core)
    for i in range(6):
        engine.arrive(
            f"r{i}", 30, 4, slo=Slo(ttft_s=0.5, class_name="chat") if i % 2 else NO_PROMISE
        )
    pressures = []
    while core.live.requests:
        engine.step()
        pressures.append(core.load(engine.now_s).pressure)
    assert all(0.0 <= p < 1e6 for p in pressures)
    assert pressures[0] > 0.0
    assert pressures[-1] == 0.0


def test_there_is_a_signal_only_where_a_channel_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Plain vLLM with our scheduler class has none."""
    config = SimpleNamespace(parallel_config=SimpleNamespace(data_parallel_index=2))
    core = registry.build("headway")
    monkeypatch.delenv(LOAD_CHANNEL_VARIABLE, raising=False)
    assert load_signal_of(core, config) is None
    monkeypatch.setenv(LOAD_CHANNEL_VARIABLE, str(tmp_path / "load"))
    signal = load_signal_of(core, config)
    assert signal is not None
    assert signal._engine == "2"
    signal.close()


# -- the HTTP side -----------------------------------------------------------------------------


class Server:
    """vLLM's server as far as the middleware sees it, a client, and a scheduler that speaks."""

    def __init__(self, folder: Path, api_key: list[str] | None = None) -> None:
        self.now_s = 0.0
        self.status, self.parts = 200, [b"{}"]
        self.asked: list[bytes | None] = []
        self.reports = LoadReports(self._app, lambda: self.now_s)
        self.state = SimpleNamespace(state=SimpleNamespace(args=SimpleNamespace(api_key=api_key)))
        self._sender = Sender(folder)
        self.between = lambda: None

    def close(self) -> None:
        """Let go of both ends of the channel."""
        self._sender.close()
        if self.reports._subscription is not None:
            self.reports._subscription.close()

    def say(self, message: dict[str, Any]) -> None:
        """Let the scheduler speak to whoever listens."""
        self._sender.find_readers()
        self._sender.send(message)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        asked = dict(scope["headers"]).get(b"endpoint-load-metrics-format")
        self.asked.append(asked)
        self.between()
        headers = [(b"content-type", b"application/json")]
        if asked is not None and len(self.parts) == 1 and self.status == 200:
            headers.append((b"Endpoint-Load-Metrics", VLLMS_OWN))
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        for part in self.parts:
            is_last = part is self.parts[-1]
            await send({"type": "http.response.body", "body": part, "more_body": not is_last})

    async def ask(self, form: str | None = "TEXT", **headers: str) -> list[bytes]:
        """Return the reports on the answer to one request."""
        given = [(k.encode(), v.encode()) for k, v in headers.items()]
        if form is not None:
            given.append((b"endpoint-load-metrics-format", form.encode()))
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            return {"type": "http.request", "body": b""}

        scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": given,
                 "app": self.state}  # fmt: skip
        await self.reports(scope, receive, send)
        assert [m["type"] for m in sent] == ["http.response.start"] + [
            "http.response.body" for _ in self.parts
        ]
        assert b"".join(m["body"] for m in sent[1:]) == b"".join(self.parts)
        return [v for k, v in sent[0]["headers"] if k.lower() == b"endpoint-load-metrics"]


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    monkeypatch.setenv(LOAD_CHANNEL_VARIABLE, str(tmp_path / "load"))
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    made = Server(tmp_path / "load")
    yield made
    made.close()


ANSWERS = [(200, [b"{}"]), (200, [b"data: 1\n\n", b"data: 2\n\n", b""]), (429, [b"{}"]),
           (400, [b"{}"]), (503, [b"{}"])]  # fmt: skip


@pytest.mark.parametrize(("status", "parts"), ANSWERS)
@pytest.mark.parametrize("form", ["TEXT", "text", " Json "])
async def test_every_answer_carries_the_report(
    server: Server, status: int, parts: list[bytes], form: str
) -> None:
    """Whole ones, streams, refusals and errors: once, in the format asked for, vLLM's replaced."""
    await server.ask()
    server.say(word(0.75))
    server.status, server.parts = status, parts
    (report,) = await server.ask(form)
    if "text" in form.lower():
        assert report.startswith(b"TEXT rps_fractional=2.0, eps=1.0, application_utilization=0.75,")
        assert b" named_metrics.num_requests_waiting=3.0," in report
    else:
        told = json.loads(report.removeprefix(b"JSON "))
        assert told["application_utilization"] == 0.75
        assert told["named_metrics"]["headway_prefill_backlog_seconds"] == 1.5


async def test_nothing_happens_where_nobody_asks(server: Server, tmp_path: Path) -> None:
    """No report, and nobody listens: the scheduler has nothing to do either."""
    assert await server.ask(None) == []
    assert list((tmp_path / "load").glob("*.sock")) == []
    assert server.reports._subscription is not None
    assert server.reports._subscription._receiver is None
    await server.ask()
    server.say(word())
    assert await server.ask(None) == []


@pytest.mark.parametrize("form", ["BIN", "", "TEXT,JSON", "xml"])
async def test_a_format_we_do_not_speak_stays_vllms_affair(server: Server, form: str) -> None:
    """The header reaches it as it came, and its answer the client."""
    await server.ask()
    server.say(word())
    assert await server.ask(form) == [VLLMS_OWN]
    assert server.asked[-1] == form.encode()


async def test_vllms_own_report_stays_until_a_scheduler_spoke(server: Server) -> None:
    """From then on it is not even asked to work one out."""
    assert await server.ask() == [VLLMS_OWN]
    server.parts = [b"data: 1\n\n", b""]
    assert await server.ask() == []
    server.say(word())
    assert (await server.ask("json"))[0].startswith(b"JSON ")
    assert server.asked == [b"TEXT", b"TEXT", None]


async def test_a_word_between_question_and_answer_counts(server: Server) -> None:
    """Also where the event loop has not come to it: the first request of an idle server has a
    report, and one that waited long has the load of when its answer began."""
    server.between = lambda: server.say(word(0.25))
    (report,) = await server.ask()
    assert b"application_utilization=0.25," in report
    server.between = lambda: server.say(word(0.5))
    (report,) = await server.ask()
    assert b"application_utilization=0.5," in report


async def test_the_event_loop_takes_words_in(server: Server) -> None:
    """Or a server that is asked seldom would find an old one, and the scheduler a full queue."""
    await server.ask()
    for pressure in (0.1, 0.2, 0.3):
        server.say(word(pressure))
        for _ in range(3):
            await asyncio.sleep(0)
    (report,) = await server.ask()
    assert b"application_utilization=0.3," in report


@pytest.mark.parametrize(
    ("given", "is_told"), [({}, False), ({"authorization": "Bearer wrong"}, False),
                           ({"authorization": "Bearer secret"}, True)],
)  # fmt: skip
async def test_a_stranger_is_told_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], is_told: bool
) -> None:
    """On a server with API keys: those who show none learn nothing of its load."""
    monkeypatch.setenv(LOAD_CHANNEL_VARIABLE, str(tmp_path / "load"))
    server = Server(tmp_path / "load", ["secret"])
    server.parts = [b"data: 1\n\n", b""]
    await server.ask(authorization="Bearer secret")
    server.say(word())
    assert bool(await server.ask(**given)) == is_told
    server.close()


async def test_without_a_channel_everything_passes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says once why."""
    monkeypatch.delenv(LOAD_CHANNEL_VARIABLE, raising=False)
    with caplog.at_level(logging.WARNING, "vllm.headway"):
        server = Server(tmp_path / "load")
    assert await server.ask() == [VLLMS_OWN]
    server.close()
    assert LOAD_CHANNEL_VARIABLE in caplog.text


async def test_a_folder_that_cannot_be_costs_no_request(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Requests are answered as by vLLM alone, and the log names the folder, once."""
    folder = tmp_path / "load"
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    folder.write_text("no folder")
    with caplog.at_level(logging.ERROR, "vllm.headway"):
        for _ in range(2):
            assert await server.ask() == [VLLMS_OWN]
    assert caplog.text.count(str(folder)) == 1


async def test_it_lets_go_of_its_socket_when_the_server_ends(
    server: Server, tmp_path: Path
) -> None:
    """With ASGI's lifespan."""
    await server.ask()
    assert len(list((tmp_path / "load").glob("*.sock"))) == 1

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "lifespan"

    server.reports._app = app
    await server.reports({"type": "lifespan"}, None, None)  # type: ignore[arg-type]
    assert list((tmp_path / "load").glob("*.sock")) == []
