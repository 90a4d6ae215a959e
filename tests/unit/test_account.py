"""Lateness in the answer: asked for, carried between the processes, and added to what vLLM says."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest
from asgi import exchange
from hypothesis import given
from hypothesis import strategies as st
from told import Silent

from headway import registry
from headway.engines import wire
from headway.engines.journal import Journal
from headway.engines.vllm import account
from headway.engines.vllm.channel import CHANNEL_VARIABLE
from headway.engines.vllm.edge import PATHS, SLO_FILE_VARIABLE, SloEdge
from headway.engines.vllm.watch import Watch
from headway.metrics.request_lateness import Lateness
from headway.slo import EXPLAIN, EXPLAIN_IN_STAMP, NO_PROMISE, STAMP, Slo, SloBook

CHAT = "/v1/chat/completions"
LATE = {"kept": False, "late_ms": 250.5, "by_cause_ms": {"queueing": 250.5}, "ttft_ms": 1250.5}
KEPT = {"kept": True, "late_ms": 0.0, "by_cause_ms": {}, "ttft_ms": 20.0}
ASKS = {"model": "m", "slo": {"explain": True}}
HEAD = {"id": "cmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "m"}


def output(*ends: Any) -> Any:
    """What the engine yields: one completion for each end, ``None`` for one that goes on."""
    completions = [
        SimpleNamespace(finish_reason=None if end is None else "stop", stop_reason=end)
        for end in ends
    ]
    return SimpleNamespace(outputs=completions)


class Server:
    """A server behind the edge that answers as vLLM does, whole or streamed.

    Attributes:
        says: What the engine yields for a request.
        params: The sampling parameters of each of the engine's calls.
    """

    def __init__(self, *says: Any) -> None:
        self.says = says
        self.params: list[Any] = []
        self.pieces = 1
        self.edge = SloEdge(self.app)
        self.client = SimpleNamespace(generate=self._generate)

    async def _generate(
        self, prompt: str, sampling_params: Any, request_id: str
    ) -> AsyncGenerator[Any, None]:
        self.params.append(sampling_params)
        for said in self.says:
            yield said

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body = json.loads(message["body"])
        stops: list[Any] = []
        texts: list[bytes] = []
        params = SimpleNamespace(extra_args=body.get("vllm_xargs"))
        async for said in self.client.generate("p", params, "id"):
            stops += [c.stop_reason for c in said.outputs if c.finish_reason is not None]
            choices = [{"text": 'a "choices":[] b', "stop_reason": c.stop_reason}
                       for c in said.outputs]  # fmt: skip
            texts.append(event({**HEAD, "choices": choices}))
        if not body.get("stream"):
            answer = {**HEAD, "choices": stops, "usage": {"total_tokens": 9}}
            await respond(send, [encoded(answer)], b"application/json")
            return
        if body.get("stream_options"):
            texts.append(event({**HEAD, "choices": [], "usage": {"total_tokens": 9}}))
        parts = [b": keep-alive\n\n", *texts, b"data: [DONE]\n\n"]
        if self.pieces > 1:
            whole = b"".join(parts)
            size = -(-len(whole) // self.pieces)
            parts = [whole[i : i + size] for i in range(0, len(whole), size)]
        await respond(send, [*parts, b""], b"text/event-stream; charset=utf-8")

    async def post(
        self, body: Any, headers: Any = (), path: str = CHAT
    ) -> tuple[int, dict[bytes, bytes], bytes]:
        scope = {
            "method": "POST",
            "path": path,
            "headers": list(headers),
            "app": SimpleNamespace(state=SimpleNamespace(engine_client=self.client)),
        }
        return await exchange(self.edge, scope, json.dumps(body).encode())

    async def answer(self, body: Any, headers: Any = ()) -> Any:
        """Post, and return the JSON of the answer, whose length is as its header says."""
        status, answered, text = await self.post(body, headers)
        assert status == 200, text
        assert int(answered[b"content-length"]) == len(text)
        return json.loads(text)

    async def events(self, body: Any) -> list[Any]:
        """Post, and return the events of a stream; the last is ``[DONE]``."""
        status, _, text = await self.post({**body, "stream": True})
        assert status == 200
        assert text.endswith(b"data: [DONE]\n\n")
        events = [line.removeprefix(b"data: ") for line in text.split(b"\n\n")[:-2]]
        assert events.pop(0) == b": keep-alive"
        return [json.loads(each) for each in events]


def encoded(document: Any) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()


def event(document: Any) -> bytes:
    return b"data: " + encoded(document) + b"\n\n"


async def respond(send: Any, parts: list[bytes], kind: bytes) -> None:
    headers = [(b"content-type", kind)]
    if len(parts) == 1:
        headers.append((b"content-length", b"%d" % len(parts[0])))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    for i, part in enumerate(parts):
        more = i < len(parts) - 1
        await send({"type": "http.response.body", "body": part, "more_body": more})


def late(stop_reason: Any = None) -> Any:
    """The engine ends a request, late, with vLLM's own *stop_reason*."""
    return output(wire.account(LATE, stop_reason))


@pytest.fixture(autouse=True)
def counting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server whose scheduler is watched, without an SLO file."""
    monkeypatch.setenv(CHANNEL_VARIABLE, "/nowhere")
    monkeypatch.delenv(SLO_FILE_VARIABLE, raising=False)


# -- asking for it ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        ({"slo": {"explain": True}}, []),
        ({"slo": {"explain": "TRUE"}}, []),
        ({"slo": {"explain": 1, "ttft_ms": 5}}, []),
        ({"vllm_xargs": {"slo_explain": "1"}}, []),
        ({}, [(b"x-slo-explain", b"1")]),
        ({}, [(b"x-slo-explain", b" true ")]),
    ],
)
async def test_it_is_asked_for_in_body_or_header(body: Any, headers: Any) -> None:
    """The scheduler hears of it with the promise, and the answer has it."""
    server = Server(late())
    answer = await server.answer(body, headers)
    assert answer["usage"] == {"total_tokens": 9, "headway": {**LATE, "offered": 1}}
    extra_args = server.params[0].extra_args
    assert extra_args[STAMP][EXPLAIN_IN_STAMP] is True
    assert SloBook.empty().resolve(extra_args).is_promise == ("ttft_ms" in str(body))


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        ({}, []),
        ({"slo": {"explain": False}}, [(b"x-slo-explain", b"1")]),
        ({"slo": {"explain": None}}, []),
        ({"vllm_xargs": {"slo_explain": 0}}, []),
        ({}, [(b"x-slo-explain", b"0")]),
    ],
)
async def test_who_does_not_ask_gets_the_answer_as_it_was(body: Any, headers: Any) -> None:
    """Byte for byte; body over header."""
    server = Server(output("stop"))
    answer = await server.answer(body, headers)
    assert answer == {**HEAD, "choices": ["stop"], "usage": {"total_tokens": 9}}
    stamp = (server.params[0].extra_args or {}).get(STAMP, {})
    assert EXPLAIN_IN_STAMP not in stamp


@pytest.mark.parametrize("value", ["yes", "", 2, -1, 0.5, [True], {"a": 1}, "on", "9" * 10_000])
async def test_another_value_is_a_mistake(value: Any) -> None:
    """One short sentence that names the field, and the engine is not asked."""
    server = Server(late())
    for body, headers, name in (
        ({"slo": {"explain": value}}, [], "slo.explain"),
        ({"vllm_xargs": {"slo_explain": value}}, [], "slo_explain"),
        ({}, [(b"x-slo-explain", str(value).encode())], "x-slo-explain"),
    ):
        status, _, text = await server.post(body, headers)
        sentence = json.loads(text)["error"]["message"]
        assert status == 400
        assert name in sentence
        assert len(sentence) < 200
    assert server.params == []


@pytest.mark.parametrize("path", sorted(PATHS - set(account.PATHS)))
async def test_elsewhere_it_is_a_mistake(path: str) -> None:
    """The sentence says where it works."""
    status, _, text = await Server(late()).post(ASKS, path=path)
    assert status == 400
    for works in account.PATHS:
        assert works in json.loads(text)["error"]["message"]


async def test_a_server_that_does_not_count_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """And names the option that makes it count."""
    monkeypatch.delenv(CHANNEL_VARIABLE)
    status, _, text = await Server(late()).post(ASKS)
    assert status == 400
    assert "--page" in json.loads(text)["error"]["message"]


# -- in the answer ----------------------------------------------------------------------------


@pytest.mark.parametrize("stop_reason", [None, 2, "END", 'headway:account:"'])
async def test_vllm_sees_its_own_stop_reason(stop_reason: Any) -> None:
    """The account is taken out before vLLM writes the answer, streamed or not."""
    assert (await Server(late(stop_reason)).answer(ASKS))["choices"] == [stop_reason]
    first, last, _ = await Server(output(None), late(stop_reason)).events(ASKS)
    assert first["choices"][0]["stop_reason"] is None
    assert last["choices"][0]["stop_reason"] == stop_reason


async def test_of_several_choices_the_worst_is_told() -> None:
    """A broken promise before a kept one, then the latest; one without an account is none."""
    later = {**LATE, "late_ms": 300}
    ends = [wire.account(told, None) for told in (KEPT, LATE, later, LATE)]
    assert (await Server(output(*ends)).answer(ASKS))["usage"]["headway"] == {**later, "offered": 4}
    one_by_one = Server(*(output(end) for end in reversed(ends)))
    assert (await one_by_one.events(ASKS))[-1]["usage"]["headway"] == {**later, "offered": 4}
    broken = {**KEPT, "kept": False}
    ends = [wire.account(told, None) for told in (KEPT, broken)]
    answer = await Server(output(*ends, "a stop string")).answer(ASKS)
    assert answer["usage"]["headway"] == {**broken, "offered": 3}


async def test_an_answer_without_an_account_says_null() -> None:
    """As when it ended at a stop string, which the scheduler never hears of."""
    assert (await Server(output("END")).answer(ASKS))["usage"]["headway"] is None
    assert (await Server(output("END")).events(ASKS))[-1]["usage"] == {"headway": None}


async def test_a_stream_ends_with_a_chunk_of_usage() -> None:
    """Shaped as vLLM's own: the last chunk's head, no choices."""
    events = await Server(output(None), late("x")).events(ASKS)
    assert events[-1] == {**HEAD, "choices": [], "usage": {"headway": {**LATE, "offered": 1}}}
    assert len(events) == 3


@pytest.mark.parametrize("pieces", [1, 2, 7, 50, 10_000])
async def test_vllms_own_chunk_of_usage_gets_it(pieces: int) -> None:
    """No second one is sent, wherever the stream is cut."""
    server = Server(output(None), late())
    server.pieces = pieces
    events = await server.events({**ASKS, "stream_options": {"include_usage": True}})
    assert [each.get("usage") for each in events] == [
        None,
        None,
        {"total_tokens": 9, "headway": {**LATE, "offered": 1}},
    ]


async def test_a_stream_without_its_end_gets_nothing() -> None:
    """After an error there is no chunk to take a head from, and what is cut off stays so."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    for body in (b'data: {"error":{"message":"no"}}\n\ndata: [DONE]\n\n', b'data: {"id":"a', b""):
        sent.clear()
        out = account.AccountedAnswer(send)
        out.accounts.append(LATE)
        await respond(out, [body, b""], b"text/event-stream")
        assert b"".join(message.get("body", b"") for message in sent) == body


async def test_other_answers_pass_untouched() -> None:
    """Errors, and JSON without a usage."""
    for status, kind, body in (
        (429, b"application/json", b'{"usage": {}}'),
        (200, b"application/json", b'{"usage": nu'),
        (200, b"application/json", b'{"usage": null, "n": 1}'),
        (200, b"text/plain", b'data: {"choices":[],"usage":{}}'),
    ):
        sent: list[Any] = []

        async def send(message: Any, sent: list[Any] = sent) -> None:
            sent.append(message)

        out = account.AccountedAnswer(send)
        await out(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [(b"content-type", kind), (b"content-length", b"%d" % len(body))],
            }
        )
        await out({"type": "http.response.body", "body": body[:5], "more_body": True})
        await out({"type": "http.response.body", "body": body[5:]})
        assert b"".join(message.get("body", b"") for message in sent) == body
        assert dict(sent[0]["headers"])[b"content-length"] == b"%d" % len(body)


async def test_a_refused_request_is_told_that_alone() -> None:
    """429, as if nothing had been asked."""
    server = Server(output(wire.refused(30, "The queue is too long.")))
    for body in (ASKS, {**ASKS, "stream": True}):
        status, _, text = await server.post(body)
        assert status == 429
        assert "usage" not in json.loads(text)


# -- between the processes ----------------------------------------------------------------------


@given(
    st.dictionaries(st.text(), st.none() | st.booleans() | st.floats(allow_nan=False)),
    st.none() | st.integers(0, 10**6) | st.text(),
)
def test_the_wire_carries_any_account(told: dict[str, Any], stop_reason: int | str | None) -> None:
    """With vLLM's own stop reason beside it; it is no refusal."""
    told["late_ms"] = 0.125
    text = wire.account(told, stop_reason)
    assert wire.parse_account(text) == wire.Account(told, stop_reason)
    assert wire.parse(text) is None


@pytest.mark.parametrize(
    "text",
    [
        None,
        7,
        "stop",
        "headway:account:",
        "headway:account:[1]",
        'headway:account:{"told": {}, "stop_reason": null}',
        'headway:account:{"told": {"late_ms": "1"}, "stop_reason": null}',
        'headway:account:{"told": [1], "stop_reason": null}',
        "headway:account:" + "[" * 100_000,
    ],
)
def test_what_only_looks_like_an_account_is_none(text: object) -> None:
    """A stop string can be anything."""
    assert wire.parse_account(text) is None


def test_causes_add_up_in_milliseconds() -> None:
    """Whatever is rounded away; causes of no time are left out."""
    late_s = {"queueing": 1 / 3, "prefill": 2e-7, "other": 0.0, "long_step": 1 / 7}
    told = account.account_of(
        Lateness(False, ("ttft",), 1.0, 2.0, 0, 3, 0.5, 1 / 3, late_s), Slo(ttft_s=0.5)
    )
    assert told == {
        "kept": False,
        "late_ms": 476.19,
        "by_cause_ms": {"queueing": 333.333, "long_step": 142.857},
        "ttft_ms": 1000.0,
        "jct_ms": 2000.0,
        "pause_ms": 500.0,
        "tpot_ms": 333.333,
        "broke": ["ttft"],
    }
    assert round(sum(told["by_cause_ms"].values()), 3) == told["late_ms"]


def test_without_a_promise_nothing_is_kept_or_broken() -> None:
    """And without a token there is no time to it."""
    told = account.account_of(Lateness(True, (), None, None, 0, 0, None, None, {}), NO_PROMISE)
    assert told["kept"] is told["ttft_ms"] is told["jct_ms"] is told["pause_ms"] is None
    assert told["late_ms"] == 0


def test_accounts_go_out_with_the_outputs_that_end_requests(fake_engine: Any) -> None:
    """Of those who asked, once; a refusal stays one, and nothing is kept of a hang-up."""
    watch = Watch(registry.build("slack"), Silent())  # type: ignore[arg-type]
    engine = fake_engine(Journal(watch._core, watch))
    for name in ("late", "plain", "refused", "gone"):
        engine.arrive(name, 40, 5, slo=Slo(ttft_s=1e-6, class_name="chat"))
        if name != "plain":
            watch.explain(name)
    engine.abort("gone")
    engine.drain(100)
    assert set(watch.accounts) == {"late", "refused", "gone"}
    refusal = wire.refused(3, "No.")
    ends = [
        SimpleNamespace(request_id=name, finish_reason=reason, stop_reason=stop_reason)
        for name, reason, stop_reason in (
            ("late", None, None),
            ("late", 0, 2),
            ("plain", 0, None),
            ("refused", 2, refusal),
        )
    ]
    outputs = {i: SimpleNamespace(outputs=ends[2 * i : 2 * i + 2]) for i in range(2)}
    told = dict(watch.accounts["late"])
    account.put_into(outputs, watch.accounts)
    assert [end.stop_reason for end in ends[2:]] == [None, refusal]
    assert ends[0].stop_reason is None, "it goes on"
    assert wire.parse_account(ends[1].stop_reason) == wire.Account(told, 2)
    assert told["kept"] is False
    assert told["late_ms"] == round(sum(told["by_cause_ms"].values()), 3) > 0
    assert watch.accounts == {}
    account.put_into(outputs, watch.accounts)
    assert wire.parse_account(ends[1].stop_reason) == wire.Account(told, 2)


def test_only_the_edge_can_ask_the_scheduler() -> None:
    """What nobody will take out of ``stop_reason`` again is not put there, and not dropped."""
    book = SloBook.parse({"default": "a", "classes": {"a": {"ttft_s": 1}}})
    assert book.resolve({EXPLAIN: "false"}).class_name == "a"
    with pytest.raises(account.UserError, match="middleware"):
        book.resolve({EXPLAIN: True})
    with pytest.raises(account.UserError, match="true or false"):
        book.resolve({EXPLAIN: "perhaps"})
    asked: list[str] = []
    watch = SimpleNamespace(explain=asked.append)
    for extra_args in (None, {}, {EXPLAIN: True}, {STAMP: 3}, {STAMP: {"ttft_s": 1.0}}):
        account.watch(watch, "r", extra_args)
    assert asked == []
    account.watch(watch, "r", {STAMP: {EXPLAIN_IN_STAMP: True}})
    assert asked == ["r"]
    with pytest.raises(account.UserError, match="--page"):
        account.watch(None, "r", {STAMP: {EXPLAIN_IN_STAMP: True}})
