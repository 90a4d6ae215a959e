"""Leaving, in front of a server that behaves as uvicorn and vLLM do when a signal has come."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
from asgi import Answer

from headway.engines.vllm import leaving
from headway.engines.vllm.leaving import ENGINE_ENDS_WITHIN_S, Leaving, shutdown_timeout_s
from headway.errors import UserError

CHAT, RESPONSES, MESSAGES = "/v1/chat/completions", "/v1/responses", "/v1/messages"
LONG_S = 1000.0
"""A grace that no test lives to see the end of."""

EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8")]

Handler = Callable[["Client"], Awaitable[None]]


class Server:
    """vLLM's server around the middleware: an application, an engine, and the end of both."""

    def __init__(self, handler: Handler, grace_s: float = LONG_S) -> None:
        self.handler = handler
        self.asked: list[str] = []
        self.ended_with: list[float | None] = []
        config = SimpleNamespace(shutdown_timeout=grace_s + ENGINE_ENDS_WITHIN_S)
        self.engine = SimpleNamespace(vllm_config=config, shutdown=self._end_engine)
        self.uvicorn = SimpleNamespace(config=SimpleNamespace(timeout_graceful_shutdown=None))
        state = SimpleNamespace(engine_client=self.engine, server=self.uvicorn)
        self.app = SimpleNamespace(state=state)
        self.leaving = Leaving(self._serve)

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        self.asked.append(scope["path"])
        await self.handler(scope["client of the test"].inside(receive, send))

    def _end_engine(self, timeout: float | None = None) -> None:
        self.ended_with.append(timeout)

    async def start(self) -> Server:
        await self.leaving({"type": "lifespan", "app": self.app}, None, None)  # type: ignore[arg-type]
        return self

    def leave(self) -> asyncio.Future[None]:
        """Do what vLLM does on SIGTERM: end the engine, in a thread."""
        timeout = self.engine.vllm_config.shutdown_timeout
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(None, partial(self.engine.shutdown, timeout=timeout))

    def ask(self, path: str = CHAT, method: str = "POST", **scope: Any) -> Client:
        return Client(self, {"type": "http", "method": method, "path": path, **scope})


class Client(Answer):
    """One request of a client, its connection, and the answer as it arrives."""

    def __init__(self, server: Server, scope: dict[str, Any]) -> None:
        self.incoming = [{"type": "http.request", "body": b"{}", "more_body": False}]
        super().__init__()
        self.receive: Any = None
        self.send: Any = None
        self.is_complete, self.may_go_on, self.reads = (asyncio.Event() for _ in range(3))
        self.reads.set()
        self.is_broken = False
        full = {**scope, "app": server.app, "client of the test": self}
        self.task = asyncio.create_task(server.leaving(full, self._receive, self._send))

    def inside(self, receive: Any, send: Any) -> Client:
        """Let the application speak through what the middleware gave it."""
        self.receive, self.send = receive, send
        return self

    async def _receive(self) -> Any:
        if self.incoming:
            return self.incoming.pop(0)
        await self.is_complete.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        await self.reads.wait()
        if self.is_broken:
            raise OSError("no connection")
        assert not self.is_complete.is_set(), "uvicorn raises here"
        self.sent.append(message)
        if message["type"].endswith(".body") and not message.get("more_body", False):
            self.is_complete.set()

    async def has_begun(self) -> Client:
        """Wait until the application has seen the request, and its answer is on the way."""
        while self.send is None or not self.sent:
            await asyncio.sleep(0)
        return self


async def stream(client: Client, headers: Any = EVENTS) -> None:
    """Two events with a wait between them that a hang-up ends, as Starlette has it."""
    await client.send({"type": "http.response.start", "status": 200, "headers": headers})
    await client.send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
    async with until_gone(client):
        await client.may_go_on.wait()
        await client.send({"type": "http.response.body", "body": b"data: 2\n\n"})


async def whole(client: Client) -> None:
    """One answer when everything is there; a client that is gone gets vLLM's word."""
    async with until_gone(client):
        await client.may_go_on.wait()
    await client.send({"type": "http.response.start", "status": 200, "headers": []})
    await client.send({"type": "http.response.body", "body": b"gone"})


@asynccontextmanager
async def until_gone(client: Client) -> AsyncIterator[None]:
    """End what is inside when the client is gone."""
    inside = asyncio.current_task()
    assert inside is not None

    async def listen() -> None:
        while (await client.receive())["type"] != "http.disconnect":
            pass
        inside.cancel()

    listening = asyncio.create_task(listen())
    try:
        yield
    except asyncio.CancelledError:
        if not client.is_complete.is_set():
            raise
        inside.uncancel()
    finally:
        listening.cancel()


async def deaf(client: Client) -> None:
    """A stream whose application listens to nobody."""
    await client.send({"type": "http.response.start", "status": 200, "headers": EVENTS})
    await client.may_go_on.wait()


async def audio(client: Client) -> None:
    await stream(client, [(b"content-type", b"audio/pcm")])


async def begun(server: Server) -> asyncio.Future[None]:
    """Start to leave, and wait until the server knows."""
    left = server.leave()
    while not server.leaving._is_leaving:
        await asyncio.sleep(0)
    return left


# -- while it leaves ----------------------------------------------------------------------------


async def test_what_runs_ends_whole_and_the_engine_ends_after_it() -> None:
    """A stream and a plain answer that were there before the signal."""
    server = await Server(stream).start()
    first = await server.ask().has_begun()
    server.handler = whole
    second = server.ask()
    await asyncio.sleep(0)
    left = await begun(server)
    assert server.ended_with == []
    for client in (first, second):
        client.may_go_on.set()
        await client.task
    await left
    assert (first.status, first.text) == (200, "data: 1\n\ndata: 2\n\n")
    assert (second.status, second.text) == (200, "gone")
    (timeout,) = server.ended_with
    assert timeout is not None
    assert ENGINE_ENDS_WITHIN_S < timeout <= LONG_S + ENGINE_ENDS_WITHIN_S
    assert b"connection" not in first.headers  # It began before anybody knew.
    assert second.headers[b"connection"] == b"close"


@pytest.mark.parametrize("path", [CHAT, RESPONSES, MESSAGES, "/v1/embeddings", "/tokenize"])
async def test_new_work_is_503_and_never_reaches_the_engine(path: str) -> None:
    """In the words of its API, with what a proxy needs to try elsewhere."""
    server = await Server(stream).start()
    running = await server.ask().has_begun()
    left = await begun(server)
    new = server.ask(path)
    new.incoming.insert(0, {"type": "http.request", "body": b"{" * 9, "more_body": True})
    await new.task
    assert new.incoming == [], "a body that is not read resets the connection"
    assert new.status == 503
    assert new.headers[b"connection"] == b"close"
    assert new.headers[b"retry-after"] == b"1"
    error = json.loads(new.text)["error"]
    assert error["type"] == ("overloaded_error" if path == MESSAGES else "ServiceUnavailableError")
    assert "shutting down" in error["message"]
    assert server.asked == [CHAT]
    running.may_go_on.set()
    await left


async def test_readiness_goes_first_and_what_can_be_read_can_be_read() -> None:
    """The balancer hears it while answers run; metrics are there until the end."""
    server = await Server(stream).start()
    running = await server.ask().has_begun()
    server.handler = whole
    left = await begun(server)
    for path in ("/health", "/ping"):
        client = server.ask(path, "GET")
        await client.task
        assert (client.status, client.headers[b"connection"]) == (503, b"close")
    metrics = server.ask("/metrics", "GET")
    metrics.may_go_on.set()
    await metrics.task
    assert (metrics.status, metrics.headers[b"connection"]) == (200, b"close")
    assert server.ended_with == []
    running.may_go_on.set()
    await left


async def test_a_new_websocket_gets_503_too() -> None:
    """The handshake is answered, so that a proxy may try elsewhere."""
    server = await Server(stream).start()
    running = await server.ask().has_begun()
    left = await begun(server)
    socket = server.ask("/v1/realtime", type="websocket")
    socket.incoming = [{"type": "websocket.connect"}]
    await socket.task
    assert [m["type"] for m in socket.sent] == [
        "websocket.http.response.start",
        "websocket.http.response.body",
    ]
    assert socket.status == 503
    running.may_go_on.set()
    await left


async def test_who_serves_nobody_leaves_at_once() -> None:
    """Ctrl-C on an idle server takes no grace."""
    server = await Server(stream).start()
    async with asyncio.timeout(LONG_S / 10):
        await server.leave()
    assert len(server.ended_with) == 1


async def test_a_second_signal_ends_the_grace() -> None:
    """By a signal that really comes."""
    server = await Server(stream).start()
    running = await server.ask().has_begun()
    left = await begun(server)
    await asyncio.sleep(0)
    signal.raise_signal(signal.SIGTERM)
    await left
    assert "shut down" in running.text


# -- when the grace is over ---------------------------------------------------------------------


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", RESPONSES, MESSAGES])
async def test_a_stream_that_does_not_end_gets_an_error_event(path: str) -> None:
    """The last thing that its client hears, in the form that its API gives errors."""
    server = await Server(stream, grace_s=0.0).start()
    running = await server.ask(path).has_begun()
    await server.leave()
    await running.task
    assert running.is_complete.is_set()
    first, *rest = running.text.removesuffix("\n\n").split("\n\n")
    assert first == "data: 1"
    fields = dict(line.split(": ", 1) for line in rest[0].splitlines())
    event = json.loads(fields["data"])
    if path == RESPONSES:
        assert (fields["event"], event["type"], event["sequence_number"]) == ("error", "error", 1)
        assert "shut down" in event["message"]
        assert len(rest) == 1
    elif path == MESSAGES:
        assert (fields["event"], event["type"]) == ("error", "error")
        assert event["error"]["type"] == "overloaded_error"
        assert len(rest) == 1
    else:
        assert event["error"]["code"] == 503
        assert rest[1:] == ["data: [DONE]"]
    assert len(server.ended_with) == 1


async def test_an_answer_that_has_not_begun_gets_503() -> None:
    """A retry can save it; what vLLM makes of the hang-up reaches nobody."""
    server = await Server(whole, grace_s=0.0).start()
    running = server.ask()
    await asyncio.sleep(0)
    await server.leave()
    await running.task
    assert (running.status, running.headers[b"connection"]) == (503, b"close")
    assert "gone" not in running.text


@pytest.mark.parametrize("handler", [audio, deaf])
async def test_what_cannot_be_told_or_does_not_listen_is_broken_off(
    handler: Handler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rather than hold up the end: uvicorn closes the connection of a cancelled request."""
    monkeypatch.setattr(leaving, "TOLD_WITHIN_S", 0.01)
    server = await Server(handler, grace_s=0.0).start()
    running = await server.ask().has_begun()
    await server.leave()
    with pytest.raises(asyncio.CancelledError):
        await running.task
    assert ("shut down" in running.text) == (handler is deaf)


async def test_a_client_that_does_not_read_holds_nobody_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its last event waits for ever, and vLLM's server is told not to wait for that."""
    monkeypatch.setattr(leaving, "TOLD_WITHIN_S", 0.01)
    server = await Server(stream, grace_s=0.0).start()
    running = await server.ask().has_begun()
    running.reads.clear()
    await server.leave()
    with suppress(asyncio.CancelledError):
        await running.task
    assert server.uvicorn.config.timeout_graceful_shutdown == 0.01


async def test_whatever_fails_the_engine_ends(caplog: pytest.LogCaptureFixture) -> None:
    """vLLM's server would go on without it; the log says what it was."""
    server = await Server(stream, grace_s=0.0).start()
    running = await server.ask().has_begun()
    running.is_broken = True
    await server.leave()
    assert len(server.ended_with) == 1
    assert "no connection" in caplog.text
    running.may_go_on.set()
    await running.task


# -- who calls ----------------------------------------------------------------------------------


async def test_vllms_last_call_passes_at_once() -> None:
    """It ends its engine again on its way out, in the loop itself: waiting there would hang."""
    server = await Server(stream).start()
    running = await server.ask().has_begun()
    server.engine.shutdown(timeout=3.0)
    server.engine.shutdown()
    assert server.ended_with == [pytest.approx(3.0, abs=0.1), None]
    running.may_go_on.set()
    await running.task
    assert running.text.endswith("data: 2\n\n")


@pytest.mark.parametrize(
    ("grace_s", "vllms_own_s", "expected_s"),
    [(None, None, 20), (0, None, 0), (3600, None, 3600), (None, 0, 0), (None, 7200, 7200)],
)
def test_what_vllm_gets(grace_s: int | None, vllms_own_s: int | None, expected_s: int) -> None:
    """The grace, whoever's option names it, and time for the engine."""
    assert shutdown_timeout_s(grace_s, vllms_own_s) == expected_s + ENGINE_ENDS_WITHIN_S


@pytest.mark.parametrize(
    ("grace_s", "vllms_own_s", "word"),
    [(-1, None, "0 to 3600"), (3601, None, "0 to 3600"), (5, 5, "one of them"), (None, -1, "0 or")],
)
def test_a_bad_grace_is_a_sentence(grace_s: int | None, vllms_own_s: int, word: str) -> None:
    """It names the mistake and what is allowed."""
    with pytest.raises(UserError, match=word):
        shutdown_timeout_s(grace_s, vllms_own_s)
