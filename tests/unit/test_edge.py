"""The HTTP edge, in front of a server that behaves as vLLM's does."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from asgi import Answer
from hypothesis import given
from hypothesis import strategies as st

from headway.engines import wire
from headway.engines.vllm.edge import SLO_FILE_VARIABLE, SloEdge

CHAT = "/v1/chat/completions"


def output(text: str = "", finish: str | None = None, stop_reason: object = None) -> Any:
    """What the engine yields: one ``RequestOutput`` with one completion."""
    completion = SimpleNamespace(text=text, finish_reason=finish, stop_reason=stop_reason)
    return SimpleNamespace(outputs=[completion])


class FakeEngine:
    """``AsyncLLM`` as far as the edge sees it: ``generate`` yields what the test wrote."""

    def __init__(self, outputs: list[Any]) -> None:
        self.outputs = outputs
        self.is_closed = False

    async def generate(self, prompt: str) -> AsyncGenerator[Any, None]:
        try:
            for item in self.outputs:
                if isinstance(item, asyncio.Event):
                    await item.wait()
                else:
                    yield item
        finally:
            self.is_closed = True


Handler = Callable[[Any, bytes, Any, Any], Awaitable[None]]


async def streamed_chat(engine: Any, body: bytes, receive: Any, send: Any) -> None:
    """vLLM's chat stream: headers, a role, then tokens; an empty refusal gets no finish chunk."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-id", b"7")]})
    first = True
    async for item in engine.generate("p"):
        if first:
            await chunk(send, {"delta": {"role": "assistant", "content": ""}})
            first = False
        if item.outputs[0].text:
            await chunk(send, {"delta": {"content": item.outputs[0].text}})
    await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def streamed_responses(engine: Any, body: bytes, receive: Any, send: Any) -> None:
    """The Responses stream announces itself before the engine has said anything."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await chunk(send, {"type": "response.created"})
    async for item in engine.generate("p"):
        await chunk(send, {"type": "delta", "text": item.outputs[0].text})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


async def plain_answer(engine: Any, body: bytes, receive: Any, send: Any) -> None:
    """A JSON answer when everything is generated."""
    async for _ in engine.generate("p"):
        pass
    await respond(send, 200, b'{"ok": true}')


async def chunk(send: Any, event: dict[str, Any]) -> None:
    data = f"data: {json.dumps(event)}\n\n".encode()
    await send({"type": "http.response.body", "body": data, "more_body": True})


async def respond(send: Any, status: int, body: bytes) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class Exchange(Answer):
    """A client and a server with the edge between them."""

    def __init__(
        self, engine: FakeEngine, handler: Handler, body: bytes, path: str = CHAT, pieces: int = 1
    ) -> None:
        super().__init__()
        self.engine = engine
        self.seen_by_app: bytes | None = None
        self.hang_up = asyncio.Event()
        size = max(1, -(-len(body) // pieces))
        parts = [body[i : i + size] for i in range(0, len(body), size)] or [b""]
        self._incoming = [
            {"type": "http.request", "body": part, "more_body": i < len(parts) - 1}
            for i, part in enumerate(parts)
        ]
        self._handler = handler
        self.scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "app": SimpleNamespace(state=SimpleNamespace(engine_client=engine)),
        }

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        """Read the body, then answer unless the client is gone, as Starlette does."""
        body = b""
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                await respond(send, 400, b'{"error": "gone"}')
                return
            body += message["body"]
            if not message["more_body"]:
                break
        self.seen_by_app = body
        answering = asyncio.create_task(self._handler(self.engine, body, receive, send))
        listening = asyncio.create_task(receive())
        await asyncio.wait([answering, listening], return_when=asyncio.FIRST_COMPLETED)
        for task in (answering, listening):
            task.cancel()
        await asyncio.gather(answering, listening, return_exceptions=True)

    async def receive(self) -> Any:
        if self._incoming:
            return self._incoming.pop(0)
        await self.hang_up.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.sent.append(message)

    async def run(self) -> Exchange:
        await SloEdge(self.app)(self.scope, self.receive, self.send)
        return self


class Tripping(Exchange):
    """An exchange whose application passes on what its handler raises."""

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await self._handler(self.engine, b"", receive, send)


def body_of(**xargs: Any) -> bytes:
    return json.dumps({"model": "m", "messages": [], "vllm_xargs": xargs}).encode()


TOKENS = [output("Hel"), output("lo", "stop")]
REFUSED = [output("", "abort", wire.refused(2.2, "The queue is too long."))]
INVALID = [output("", "abort", wire.invalid("The prompt can never fit."))]


@pytest.mark.parametrize("handler", [streamed_chat, streamed_responses, plain_answer])
async def test_a_good_request_passes_byte_for_byte(handler: Handler) -> None:
    """Body and answer are what they would be without the edge."""
    body = body_of(slo_ttft_ms=500)
    with_edge = await Exchange(FakeEngine(TOKENS), handler, body, pieces=3).run()
    without = Exchange(FakeEngine(TOKENS), handler, body)
    await without.app(without.scope, without.receive, without.send)
    assert with_edge.seen_by_app == body
    assert with_edge.sent == without.sent


@pytest.mark.parametrize(
    ("xargs", "word"),
    [
        ({"slo_ttft_ms": -1}, "greater than 0"),
        ({"slo_ttft_ms": "soon"}, "number"),
        ({"slo_ttft_ms": True}, "number"),
        ({"slo_ttfb_ms": 5}, "not an SLO field"),
        ({"slo_class": "gold"}, "not known"),
    ],
)
async def test_a_bad_promise_gets_400_and_a_sentence(xargs: dict[str, Any], word: str) -> None:
    """The model is never asked, and the error has OpenAI's shape."""
    exchange = await Exchange(FakeEngine(TOKENS), streamed_chat, body_of(**xargs)).run()
    error = json.loads(exchange.text)["error"]
    assert exchange.status == error["code"] == 400
    assert error["type"] == "BadRequestError"
    assert word in error["message"]
    assert exchange.seen_by_app is None
    assert int(exchange.headers[b"content-length"]) == len(exchange.text)


async def test_a_promise_outside_of_vllm_xargs_is_not_dropped_in_silence() -> None:
    """vLLM ignores unknown fields; the edge says where the field belongs."""
    body = json.dumps({"model": "m", "slo_ttft_ms": 100}).encode()
    exchange = await Exchange(FakeEngine(TOKENS), plain_answer, body).run()
    assert exchange.status == 400
    assert "vllm_xargs" in exchange.text


@pytest.mark.parametrize(
    "body",
    [
        b'{"vllm_xargs": {"slo_ttft_ms": }}',
        b"[" * 200_000 + b'"slo_"',
        b'["slo_ttft_ms"]',
        b'{"vllm_xargs": ["slo_ttft_ms"]}',
        b'{"n": ' + b"9" * 6000 + b', "vllm_xargs": {"slo_ttft_ms": 1}}',
        b"",
    ],
)
async def test_what_the_edge_cannot_read_is_left_to_vllm(body: bytes) -> None:
    """Malformed JSON and other shapes reach vLLM untouched."""
    exchange = await Exchange(FakeEngine(TOKENS), plain_answer, body).run()
    assert exchange.status == 200
    assert exchange.seen_by_app == body


@pytest.mark.parametrize("handler", [streamed_chat, streamed_responses, plain_answer])
async def test_a_refusal_becomes_429_with_retry_after(handler: Handler) -> None:
    """Streaming or not, the client sees the status before anything else."""
    exchange = await Exchange(FakeEngine(REFUSED), handler, body_of(slo_ttft_ms=5)).run()
    error = json.loads(exchange.text)["error"]
    assert exchange.status == error["code"] == 429
    assert exchange.headers[b"retry-after"] == b"3"
    assert error["type"] == "rate_limit_exceeded"
    assert error["message"] == "The queue is too long."


@pytest.mark.parametrize("handler", [streamed_chat, streamed_responses, plain_answer])
async def test_a_request_the_scheduler_cannot_ever_serve_becomes_400(handler: Handler) -> None:
    """What only the scheduler can know is the client's mistake too."""
    exchange = await Exchange(FakeEngine(INVALID), handler, b"{}").run()
    assert exchange.status == 400
    assert "never fit" in exchange.text


@pytest.mark.parametrize(("outputs", "status"), [(REFUSED, 429), (INVALID, 400)])
@pytest.mark.parametrize("is_late", [False, True])
async def test_a_refusal_that_vllm_trips_over_stays_one(
    outputs: list[Any], status: int, is_late: bool
) -> None:
    """Its output has no logprobs of the prompt, which ``echo`` looks for; whole or streamed."""

    async def handler(engine: Any, body: bytes, receive: Any, send: Any) -> None:
        if is_late:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        async for _ in engine.generate("p"):
            pass
        raise AssertionError("no logprobs")

    assert (await Tripping(FakeEngine(outputs), handler, b"{}").run()).status == status
    with pytest.raises(AssertionError, match="no logprobs"):
        await Tripping(FakeEngine(TOKENS), handler, b"{}").run()


async def test_headers_of_other_middleware_survive_a_refusal() -> None:
    """CORS headers and request ids matter most on errors."""
    exchange = await Exchange(FakeEngine(REFUSED), streamed_chat, b"{}").run()
    assert exchange.headers[b"x-id"] == b"7"


async def test_anthropic_clients_get_an_error_they_can_read() -> None:
    """The Messages API has an error shape of its own."""
    exchange = await Exchange(FakeEngine(REFUSED), plain_answer, b"{}", path="/v1/messages").run()
    assert exchange.status == 429
    assert json.loads(exchange.text)["error"]["type"] == "rate_limit_error"


async def test_tokens_pass_when_the_engine_makes_them() -> None:
    """The first token reaches the client while the second is still being computed."""
    second = asyncio.Event()
    engine = FakeEngine([output("Hel"), second, output("lo", "stop")])
    exchange = Exchange(engine, streamed_chat, b"{}")
    running = asyncio.create_task(exchange.run())
    while "Hel" not in exchange.text:
        await asyncio.sleep(0)
    second.set()
    await running
    assert "lo" in exchange.text


async def test_a_keep_alive_comment_does_not_wait() -> None:
    """It exists to reach a proxy before the first token."""
    first = asyncio.Event()

    async def handler(engine: Any, body: bytes, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        alive = {"type": "http.response.body", "body": b": keep-alive\n\n", "more_body": True}
        await send(alive)
        async for _ in engine.generate("p"):
            pass

    exchange = Exchange(FakeEngine([first, output("x", "stop")]), handler, b"{}")
    running = asyncio.create_task(exchange.run())
    while not exchange.text:
        await asyncio.sleep(0)
    first.set()
    await running
    assert exchange.text == ": keep-alive\n\n"


async def test_a_client_that_hangs_up_stops_the_engine() -> None:
    """The disconnect reaches vLLM, and closing its stream closes the engine's."""
    never = asyncio.Event()
    engine = FakeEngine([output("Hel"), never])
    exchange = Exchange(engine, streamed_chat, body_of(slo_ttft_ms=5))
    running = asyncio.create_task(exchange.run())
    while "Hel" not in exchange.text:
        await asyncio.sleep(0)
    exchange.hang_up.set()
    await running
    assert engine.is_closed


async def test_a_hang_up_before_the_first_token_stops_the_engine() -> None:
    """Also while the start of the answer is still held back."""
    never = asyncio.Event()
    engine = FakeEngine([never])
    exchange = Exchange(engine, streamed_chat, b"{}")
    running = asyncio.create_task(exchange.run())
    await asyncio.sleep(0.01)
    exchange.hang_up.set()
    await running
    assert engine.is_closed


async def test_requests_do_not_hear_each_other() -> None:
    """One engine, two requests at once: only the refused one is refused."""
    gate = asyncio.Event()
    engine = FakeEngine([])
    good, bad = [gate, *TOKENS], [gate, *REFUSED]

    async def generate(prompt: str) -> AsyncGenerator[Any, None]:
        for item in good if prompt == "good" else bad:
            if item is gate:
                await gate.wait()
            else:
                yield item

    engine.generate = generate  # type: ignore[method-assign]

    async def handler(client: Any, body: bytes, receive: Any, send: Any) -> None:
        async for _ in client.generate(json.loads(body)["prompt"]):
            pass
        await respond(send, 200, b"{}")

    exchanges = [Exchange(engine, handler, b'{"prompt": "%s"}' % p) for p in (b"good", b"bad")]
    running = [asyncio.create_task(exchange.run()) for exchange in exchanges]
    await asyncio.sleep(0.01)
    gate.set()
    await asyncio.gather(*running)
    assert [exchange.status for exchange in exchanges] == [200, 429]


async def test_other_paths_and_methods_are_not_touched() -> None:
    """Health checks, metrics and web sockets never meet the edge's code."""
    calls: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        calls.append((scope, receive, send))

    middleware = SloEdge(app)
    for scope in (
        {"type": "http", "method": "GET", "path": "/health"},
        {"type": "http", "method": "GET", "path": CHAT},
        {"type": "websocket", "path": CHAT},
        {"type": "lifespan"},
    ):
        receive, send = object(), object()
        await middleware(scope, receive, send)  # type: ignore[arg-type]
        assert calls[-1] == (scope, receive, send)


async def test_a_server_under_a_root_path_is_recognised() -> None:
    """With ``--root-path`` the path starts with it."""
    exchange = Exchange(FakeEngine(REFUSED), plain_answer, b"{}", path=f"/llm{CHAT}")
    exchange.scope["root_path"] = "/llm"
    assert (await exchange.run()).status == 429


async def test_classes_come_from_the_servers_file(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``headway serve --slo`` names the file in the environment."""
    file = tmp_path / "slo.toml"
    file.write_text("[classes.gold]\nttft_s = 1\n")
    monkeypatch.setenv(SLO_FILE_VARIABLE, str(file))
    known = await Exchange(FakeEngine(TOKENS), plain_answer, body_of(slo_class="gold")).run()
    other = await Exchange(FakeEngine(TOKENS), plain_answer, body_of(slo_class="lead")).run()
    assert (known.status, other.status) == (200, 400)
    assert "gold" in other.text


async def test_without_the_variable_classes_come_from_the_schedulers_settings(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Someone who starts vLLM without ``headway serve`` names the file only once."""
    monkeypatch.delenv(SLO_FILE_VARIABLE, raising=False)
    file = tmp_path / "slo.toml"
    file.write_text("[classes.gold]\nttft_s = 1\n")
    exchange = Exchange(FakeEngine(TOKENS), plain_answer, body_of(slo_class="gold"))
    settings = {"headway": {"slo_file": str(file)}}
    config = SimpleNamespace(additional_config=settings)
    exchange.engine.vllm_config = config  # type: ignore[attr-defined]
    assert (await exchange.run()).status == 200


@given(
    seconds=st.floats(allow_nan=True, allow_infinity=True),
    sentence=st.text(),
)
def test_the_wire_carries_any_sentence(seconds: float, sentence: str) -> None:
    """What is written is what is read, colons and all."""
    heard = wire.parse(wire.refused(seconds, sentence))
    assert isinstance(heard, wire.Refused)
    assert heard.sentence == sentence
    assert heard.retry_after_s >= 0
    assert wire.parse(wire.invalid(sentence)) == wire.Invalid(sentence)


@pytest.mark.parametrize("other", [None, 2, "stop", "headway:", "headway:refused:x:y", ""])
def test_other_stop_reasons_are_not_ours(other: object) -> None:
    """A stop string or token id of the model means nothing to the edge."""
    assert wire.parse(other) is None
