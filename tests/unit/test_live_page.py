"""The page at ``/headway``, its figures, and the two commands that read them."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import re
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from asgi import exchange
from click.testing import CliRunner
from rich.console import Console

from headway.cli import explain as explain_command
from headway.cli import top as top_command
from headway.engines.vllm.channel import CHANNEL_VARIABLE, Sender
from headway.engines.vllm.observe import PAGE_FILES, LiveView
from headway.errors import UserError
from headway.metrics.board import BROKEN_KEPT, Board
from headway.metrics.lateness import CAUSES
from headway.metrics.observed import Observed
from headway.policy.events import Arrived, Finished, StepDone, StepScheduled
from headway.policy.live import LiveRequests
from headway.request import Request
from headway.slo import Slo

VLLMS_METRICS = b"# TYPE vllm:x counter\nvllm:x_total 1.0\n"

LIVE = LiveRequests()


def serve_one(
    observed: Observed, name: str, slo: Slo, ttft_s: float, at_s: float = 0.0
) -> dict[str, Any] | None:
    """One request of one token, alone, that waits until its only step begins."""
    observed.arrived(Arrived(at_s, name, at_s, 10, 1, slo), 1)
    observed.scheduled(StepScheduled(at_s + ttft_s / 2, {name: 10}, {name: 0}))
    observed.done(StepDone(at_s + ttft_s, {name: 1}))
    request = Request(name, slo, at_s, 10, 1)
    request.num_output_tokens = 1
    return observed.finished(Finished(at_s + ttft_s, name, "stopped"), request)


def counts(observed: Observed, unix_s: float, engine: str = "0") -> dict[str, Any]:
    message = {**observed.snapshot(LIVE, unix_s), "engine": engine, "unix_s": unix_s}
    return json.loads(json.dumps(message))  # type: ignore[no-any-return]


CHAT = Slo(ttft_s=1.0, class_name="chat")


# -- the board ---------------------------------------------------------------------------------


def test_the_window_forgets_and_the_total_does_not() -> None:
    """Ten broken promises six minutes ago and ten kept ones now: 100 % now, 50 % ever."""
    observed, board = Observed(), Board()
    for i in range(10):
        serve_one(observed, f"a{i}", CHAT, ttft_s=3.0, at_s=10.0 * i)
    board.take(counts(observed, 1000.0))
    assert board.state(1000.0)["classes"][0]["attainment"] == 0.0
    board.take(counts(observed, 1360.0))
    for i in range(10):
        serve_one(observed, f"b{i}", CHAT, ttft_s=0.5, at_s=360.0 + i)
    board.take(counts(observed, 1361.0))
    (row,) = board.state(1361.0)["classes"]
    assert (row["attainment"], row["promised"]) == (1.0, 10)
    assert (row["attained_ever"], row["promised_ever"]) == (10, 20)
    assert row["promise"] == {"ttft_s": 1.0}
    assert sum(row["late_s"].values()) == pytest.approx(0.0)


def test_two_schedulers_make_one_picture() -> None:
    """Data parallel ranks: counts are added, points within a blink are one."""
    board = Board()
    for engine in ("0", "1"):
        observed = Observed()
        serve_one(observed, "a", CHAT, ttft_s=0.5)
        board.take(counts(observed, 50.0, engine))
    state = board.state(50.0)
    assert (state["num_engines"], state["classes"][0]["attained"]) == (2, 2)
    assert len(state["points"]) == 1


def test_points_of_time_are_sent_once() -> None:
    """The page asks for what came after the last point it has."""
    observed, board = Observed(), Board()
    for second in range(5):
        serve_one(observed, f"r{second}", CHAT, ttft_s=0.5, at_s=float(second))
        board.take(counts(observed, float(second)))
    everything = board.state(5.0)["points"]
    assert [p["attained"] for p in everything] == [0, 1, 1, 1, 1], "the first has no before"
    later = board.state(5.0, after=everything[2]["number"])["points"]
    assert later == everything[3:]


def test_its_memory_is_bounded() -> None:
    """More than ten minutes of snapshots and a thousand broken promises: the oldest are gone."""
    observed, board = Observed(), Board()
    for i in range(1500):
        board.take(counts(observed, 0.5 * i))
    for i in range(2 * BROKEN_KEPT):
        told = serve_one(observed, f"r{i}", CHAT, ttft_s=3.0, at_s=10.0 * i)
        assert told is not None
        board.take({**told, "engine": "0", "unix_s": 1.0})
    assert len(board._points) <= 1202
    assert len(board._past) <= 62
    assert len(board.broken) == BROKEN_KEPT
    assert board.num_broken == 2 * BROKEN_KEPT
    assert len(board.state(3600.0)["broken"]) == 30


def test_worst_and_by_name() -> None:
    """The latest first; an id as the client knows it, without vLLM's suffix."""
    observed, board = Observed(), Board()
    for name, ttft_s in (("chat-1-x9", 2.0), ("chat-2-x8", 5.0), ("chat-3-x7", 3.0)):
        told = serve_one(observed, name, CHAT, ttft_s, at_s=100.0 * len(board.broken))
        board.take({**(told or {}), "engine": "0", "unix_s": 1.0})
    assert [t["id"] for t in board.worst(2)] == ["chat-2-x8", "chat-3-x7"]
    assert [t["id"] for t in board.explain("chat-3")] == ["chat-3-x7"]
    assert board.explain("chat-4") == []


@pytest.mark.parametrize(
    "message",
    [{}, {"kind": "counts"}, {"kind": "counts", "engine": "0", "unix_s": "now"},
     {"kind": "broken", "engine": "0", "unix_s": 1.0}, {"engine": "0", "unix_s": 1.0}],
)  # fmt: skip
def test_what_it_does_not_understand_changes_nothing(message: dict[str, Any]) -> None:
    """A message of another version is not taken."""
    board = Board()
    assert not board.take(message)
    assert board.state(0.0)["ready"] is False


# -- the routes --------------------------------------------------------------------------------


class Server:
    """vLLM's server as far as the middleware sees it, and a client."""

    def __init__(self, api_key: list[str] | None = None) -> None:
        self.view = LiveView(self._app)
        self.seen: list[dict[str, Any]] = []
        self.state = SimpleNamespace(state=SimpleNamespace(args=SimpleNamespace(api_key=api_key)))

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        self.seen.append(scope)
        wants_gzip = any(b"gzip" in value for key, value in scope["headers"])
        body = gzip.compress(VLLMS_METRICS) if wants_gzip else VLLMS_METRICS
        headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def get(
        self, path: str, query: str = "", method: str = "GET", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        scope = {
            "method": method,
            "path": path,
            "query_string": query.encode(),
            "headers": [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()],
            "app": self.state,
        }
        status, start, body = await exchange(self.view, scope)
        return status, {k.decode(): v.decode() for k, v in start.items()}, body


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    monkeypatch.setenv(CHANNEL_VARIABLE, str(tmp_path / "c"))
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    made = Server()
    yield made
    made.view._close()


async def told(server: Server, folder: Path) -> None:
    """Let the server hear of one broken and one kept promise."""
    await server.get("/headway/state")  # it begins to listen with its first request
    observed = Observed("slack", "demote")
    sender = Sender(folder / "c")
    sender.find_readers()
    late = serve_one(observed, "chatcmpl-late-1", CHAT, ttft_s=3.0)
    serve_one(observed, "chatcmpl-kept-1", CHAT, ttft_s=0.5, at_s=10.0)
    assert late is not None
    sender.send({**late, "engine": "0", "unix_s": time.time()})
    sender.send(counts(observed, time.time()))
    sender.close()
    await asyncio.sleep(0)  # the loop looks at its sockets
    await asyncio.sleep(0)


async def test_state_and_story_over_http(server: Server, tmp_path: Path) -> None:
    """What the scheduler's process told is what the routes say."""
    await told(server, tmp_path)
    status, headers, body = await server.get("/headway/state")
    state = json.loads(body)
    assert (status, headers["content-type"]) == (200, "application/json")
    assert (state["ready"], state["policy"]) == (True, "slack")
    assert state["classes"][0]["attainment"] == 0.5
    assert "story" not in state["broken"][0]
    _, _, body = await server.get("/headway/broken", "id=chatcmpl-late")
    (one,) = json.loads(body)["broken"]
    assert one["story"] == [[0.0, "arrived"]]
    assert one["late_s"] == pytest.approx(2.0)
    assert one["by_cause_s"] == pytest.approx({"queueing": 1.0, "prefill": 1.0})
    _, _, body = await server.get("/headway/broken", "worst=1")
    assert json.loads(body)["broken"][0]["id"] == "chatcmpl-late-1"


async def test_our_metrics_follow_vllms(server: Server, tmp_path: Path) -> None:
    """Also when the scraper asks for OpenMetrics and gzip; the length is the new one."""
    await told(server, tmp_path)
    for path in ("/metrics", "/metrics/"):
        status, headers, body = await server.get(
            path, accept="application/openmetrics-text", accept_encoding="gzip"
        )
        assert status == 200
        assert body.startswith(VLLMS_METRICS)
        assert b'headway_requests_attained_total{engine="0",slo_class="chat"} 1.0' in body
        assert int(headers["content-length"]) == len(body)


@pytest.mark.parametrize("path", PAGE_FILES)
async def test_the_page_is_there_and_needs_no_network(server: Server, path: str) -> None:
    """Every file, under a policy that lets it load nothing from elsewhere, nor run inline code."""
    status, headers, body = await server.get(path)
    assert status == 200
    assert headers["content-security-policy"].startswith("default-src 'self'")
    text = body.decode()
    assert not re.search(r"https?://", text)
    assert "<script>" not in text
    assert " style=" not in text
    assert "innerHTML" not in text, "what clients send must not be read as HTML"
    for link in re.findall(r'(?:src|href)="([^"]+)"|from "([^"]+)"', text):
        assert (link[0] or link[1]) in PAGE_FILES


def test_the_page_knows_every_cause() -> None:
    """A cause of lateness without a name on the page would be shown as code."""
    source = (Path(top_command.__file__).parents[1] / "web" / "live" / "live.js").read_text()
    table = source[source.index("const CAUSES") :]
    named = set(re.findall(r"^  (\w+): \[", table[: table.index("};")], re.MULTILINE))
    assert named == set(CAUSES)


async def test_everything_else_passes(server: Server) -> None:
    """Other paths reach vLLM as they came."""
    _, _, body = await server.get("/v1/models", accept_encoding="gzip")
    assert gzip.decompress(body) == VLLMS_METRICS


@pytest.mark.parametrize(
    ("path", "query"),
    [("/headway/state", "after=-1"), ("/headway/state", "after=x"), ("/headway/broken", "id="),
     ("/headway/state", "after=" + "9" * 400), ("/headway/broken", "worst=513"),
     ("/headway/broken", "worst=1.5"), ("/headway/broken", "id=" + "x" * 201),
     ("/headway/state", "after=%C2%B2"), ("/headway/state", "after=%FF")],
)  # fmt: skip
async def test_a_bad_query_is_400_with_a_sentence(server: Server, path: str, query: str) -> None:
    """Bounded and typed; never a 500."""
    status, _, body = await server.get(path, query)
    assert status == 400
    assert json.loads(body)["error"].endswith(".")


async def test_only_reading_is_allowed(server: Server) -> None:
    """POST gets 405 and is told what is."""
    status, headers, _ = await server.get("/headway/state", method="POST")
    assert (status, headers["allow"]) == (405, "GET, HEAD")


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"me:{password}".encode()).decode()


@pytest.mark.parametrize("path", [*PAGE_FILES, "/headway/state", "/headway/broken"])
@pytest.mark.parametrize(
    ("given", "expected"),
    [(None, 401), ("Bearer wrong", 401), ("Bearer", 401), ("Basic !", 401), ("Basic Og==", 401),
     (basic("wrong"), 401), ("secret", 401), ("Bearer secret", 200), ("bearer second", 200),
     (basic("secret"), 200)],
)  # fmt: skip
async def test_the_api_key_covers_every_route(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, given: str | None, expected: int
) -> None:
    """As a bearer token, or as the password a browser asks for."""
    monkeypatch.setenv(CHANNEL_VARIABLE, str(tmp_path / "c"))
    server = Server(api_key=["secret", "second"])
    headers = {"authorization": given} if given is not None else {}
    status, answer, _ = await server.get(path, **headers)
    server.view._close()
    assert status == expected
    assert ("www-authenticate" in answer) == (expected == 401)


async def test_the_key_of_the_environment_counts(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """VLLM_API_KEY, as for vLLM's own routes."""
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    assert (await server.get("/headway/state"))[0] == 401
    assert (await server.get("/headway/state", authorization="Bearer secret"))[0] == 200


async def test_without_a_channel_there_is_no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """The middleware passes everything on, /metrics and /headway too."""
    monkeypatch.delenv(CHANNEL_VARIABLE, raising=False)
    server = Server()
    for path in ("/headway", "/metrics"):
        assert (await server.get(path))[2] == VLLMS_METRICS


# -- the commands ------------------------------------------------------------------------------


def a_board() -> Board:
    observed, board = Observed("slack", "demote"), Board()
    for name, ttft_s in (("late-[bold]1", 3.0), ("kept-1", 0.5)):
        message = serve_one(observed, name, CHAT, ttft_s, at_s=10.0 * len(board.broken))
        if message is not None:
            board.take({**message, "engine": "0", "unix_s": 1.0})
    board.take(counts(observed, 2.0))
    return board


def test_top_shows_classes_and_who_is_late() -> None:
    """Shares, percentiles, and an id that looks like markup, literally."""
    console = Console(width=140, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(top_command.screen(a_board().state(2.0)))
    text = console.export_text()
    console.file.close()
    assert "50.0%" in text
    assert "1/2" in text
    assert "late-[bold]1" in text
    assert "2.00 s" in text


def test_explain_tells_promise_result_causes_and_story(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything a person needs to know about one request."""
    board = a_board()
    monkeypatch.setattr(
        explain_command, "ask", lambda *a, **query: {"broken": board.explain(query["id"])}
    )
    done = CliRunner().invoke(explain_command.explain, ["late-"])
    assert done.exit_code == 0, done.output
    for part in ("late-[bold]1", "first token within 1.00 s", "late by   2.00 s", "queueing",
                 "1.00 s", "arrived"):  # fmt: skip
        assert part in done.output


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
