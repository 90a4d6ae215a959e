"""Promises through the HTTP edge: what the engine is told, and that nothing breaks it."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import AsyncGenerator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from asgi import exchange
from hypothesis import given
from hypothesis import strategies as st

from headway.engines.vllm import edge
from headway.engines.vllm.edge import SLO_FILE_VARIABLE, SloEdge
from headway.slo import STAMP, Slo, SloBook
from headway.slo_digests import digest_of

CHAT = "/v1/chat/completions"
FILE = f"""
default = "chat"
[classes.chat]
ttft_s = 1.0
[classes.gold]
ttft_s = 0.2
[classes.batch]
jct_s = 120
[keys."sha256:{digest_of("gold-key")}"]
class = "gold"
[models.large]
class = "batch"
[limits]
ttft_s = {{min = 0.1}}
"""


class Server:
    """A server behind the edge that answers everything; it keeps what its engine was told."""

    def __init__(self, app: Any = None) -> None:
        self.params: list[Any] = []
        self.bodies: list[bytes] = []
        self.now_s = 0.0
        self.client = SimpleNamespace(generate=self._generate)
        self.edge = SloEdge(app or self.app, now_s=lambda: self.now_s)

    async def _generate(
        self, prompt: str, sampling_params: Any, request_id: str
    ) -> AsyncGenerator[Any, None]:
        self.params.append(sampling_params)
        yield SimpleNamespace(outputs=[])

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message["body"], message["more_body"]
        self.bodies.append(body)
        params = SimpleNamespace(extra_args=self.extra_args(body))
        async for _ in self.client.generate("p", params, "id"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    @staticmethod
    def extra_args(body: bytes) -> Any:
        """What vLLM makes of the body's ``vllm_xargs``."""
        try:
            xargs = json.loads(body)["vllm_xargs"]
        except (ValueError, RecursionError, KeyError, TypeError, IndexError):
            return None
        return xargs if isinstance(xargs, dict) else None

    async def post(
        self, body: Any = None, headers: Any = (), path: str = CHAT
    ) -> tuple[int, dict[bytes, bytes], bytes]:
        data = body if isinstance(body, bytes) else json.dumps(body or {}).encode()
        scope = {
            "method": "POST",
            "path": path,
            "headers": list(headers),
            "app": SimpleNamespace(state=SimpleNamespace(engine_client=self.client)),
        }
        return await exchange(self.edge, scope, data)

    async def promised(self, body: Any = None, headers: Any = ()) -> Slo:
        """Post, and return what the scheduler takes for the promise."""
        status, _, text = await self.post(body, headers)
        assert status == 200, text
        return SloBook.empty().resolve(self.params[-1].extra_args)

    async def sentence(self, body: Any = None, headers: Any = ()) -> str:
        """Post what is a mistake, and return what the client is told."""
        status, _, text = await self.post(body, headers)
        assert status == 400
        return str(json.loads(text)["error"]["message"])


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server without an SLO file."""
    monkeypatch.delenv(SLO_FILE_VARIABLE, raising=False)
    return Server()


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "slo.toml"
    path.write_text(FILE)
    monkeypatch.setenv(SLO_FILE_VARIABLE, str(path))
    return path


def write(file: Path, text: str) -> None:
    """Change the operator's file."""
    file.write_text(text)


def bearer(key: str) -> list[tuple[bytes, bytes]]:
    return [(b"authorization", f"Bearer {key}".encode())]


async def test_a_plain_slo_object_is_a_promise(plain: Server) -> None:
    """Its numbers are milliseconds, as the names say; the body reaches vLLM as it was."""
    body = {"model": "m", "slo": {"ttft_ms": 250, "tbt_ms": "50", "jct_ms": None, "weight": 2}}
    assert await plain.promised(body) == Slo(0.25, 0.05, None, 2.0, "custom")
    assert plain.bodies == [json.dumps(body).encode()]
    for endless in ("inf", float("inf")):
        asked = {"pause_ms": endless, "tpot_ms": 30, "tbt_ms": 50}
        expected = Slo(None, 0.05, class_name="custom", tpot_s=0.03, pause_s=float("inf"))
        assert await plain.promised({"slo": asked}) == expected


async def test_headers_reach_the_engine(plain: Server) -> None:
    """Headers do not reach the scheduler by themselves."""
    headers = [(b"x-slo-ttft-ms", b"250"), (b"x-llm-d-slo-tpot-ms", b"40")]
    assert await plain.promised({}, headers) == Slo(0.25, tpot_s=0.04, class_name="custom")


async def test_without_a_promise_and_a_file_nothing_is_touched(plain: Server) -> None:
    """Traffic without promises is served as if the edge were not there."""
    assert (await plain.post({"prompt": "slow \"slo\" 'slo_'", "vllm_xargs": {"a": 1}}))[0] == 200
    assert plain.params[-1].extra_args == {"a": 1}
    assert (await plain.post({}))[0] == 200
    assert plain.params[-1].extra_args is None


async def test_body_over_header_over_key_over_model_over_default(file: Path) -> None:
    """Each source in turn is the most particular one that speaks."""
    server = Server()
    header = [(b"x-slo-class", b"chat")]
    body = {"model": "large"}
    assert (await server.promised({})).class_name == "chat"
    assert (await server.promised(body)).class_name == "batch"
    assert (await server.promised(body, bearer("gold-key"))).class_name == "gold"
    assert (await server.promised(body, bearer("other"))).class_name == "batch"
    assert (await server.promised(body, bearer("gold-key") + header)).class_name == "chat"
    asked = {**body, "slo": {"class": "batch"}}
    assert (await server.promised(asked, bearer("gold-key") + header)).class_name == "batch"
    asked = {**body, "vllm_xargs": {"slo_class": "batch"}}
    assert (await server.promised(asked, bearer("gold-key") + header)).class_name == "batch"


async def test_sources_join_field_by_field(file: Path) -> None:
    """The body's class, a header's first token, the body's own gap over the header's."""
    body = {"slo": {"class": "batch", "tbt_ms": 70}}
    headers = [(b"x-slo-ttft-ms", b"3000"), (b"x-slo-tbt-ms", b"10"), (b"x-slo-class", b"gold")]
    assert await Server().promised(body, headers) == Slo(3.0, 0.07, 120.0, 1.0, "batch")


async def test_a_changed_file_counts_without_a_restart(file: Path) -> None:
    """A class the scheduler has never read is promised all the same; a removed one is not."""
    server = Server()
    assert (await server.promised({})).ttft_s == 1.0
    write(file, 'default = "new"\n[classes.new]\nttft_s = 2.5\n')
    server.now_s = 1.5
    assert await server.promised({}) == Slo(2.5, class_name="new")
    assert "new" in await server.sentence({"slo": {"class": "gold"}})
    write(file, "= half writ")
    server.now_s = 3.0
    assert await server.promised({}) == Slo(2.5, class_name="new")


async def test_a_file_that_drops_its_default_is_believed(file: Path) -> None:
    """No promise is written down too, or the scheduler's older file would make one."""
    write(file, "[classes.a]\nttft_s = 1\n")
    server = Server()
    assert (await server.post({}))[0] == 200
    old = SloBook.parse({"default": "b", "classes": {"b": {"ttft_s": 9}}})
    assert not old.resolve(server.params[-1].extra_args).is_promise


@pytest.mark.parametrize(
    ("body", "word"),
    [
        ({"slo": 5}, "object of class, ttft_ms, tbt_ms, pause_ms, tpot_ms, jct_ms, weight"),
        ({"slo": {"ttft": 5}}, "allowed are class, ttft_ms"),
        ({"slo": {"ttft_ms": -5}}, "slo.ttft_ms"),
        ({"slo": {"ttft_ms": [1]}}, "slo.ttft_ms"),
        ({"slo": {"tpot_ms": "inf"}}, "slo.tpot_ms"),
        ({"slo": {"pause_ms": "-inf"}}, "(or inf)"),
        ({"slo": {"pause_ms": 30, "tbt_ms": 40}}, "slo.pause_ms is 30 ms, which is shorter"),
        ({"slo": {"ttft_ms": 5}, "vllm_xargs": {"slo_ttft_ms": 6}}, "say it once"),
        ({"slo": {"ttft_ms": 50}}, "at least 100"),
        ({"slo": {"class": "lead"}}, "batch, chat, gold"),
        ({"slo_class": "gold"}, "no effect"),
        ({"vllm_xargs": {STAMP: 1, "x": '"slo"'}}, "not an SLO field"),
    ],
)
async def test_a_bad_body_is_one_sentence(file: Path, body: Any, word: str) -> None:
    """It says what would be allowed, and the engine is not asked."""
    server = Server()
    assert word in await server.sentence(body)
    assert server.params == []


async def test_an_application_that_raises_for_a_hang_up_does_not_make_it_500(file: Path) -> None:
    """Shown a hang-up after a mistake, an application may raise; the client gets the sentence."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if (await receive())["type"] == "http.disconnect":
            raise ConnectionError("the client is gone")
        raise ZeroDivisionError

    server = Server(app)
    assert "allowed are" in await server.sentence({"slo": {"ttft": 5}})
    with pytest.raises(ZeroDivisionError):
        await server.post({})


WITHOUT_MODELS = FILE.replace('[models.large]\nclass = "batch"\n', "")
"""With models every body is read, whatever it looks like."""

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le"]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("place", ["slo", "vllm_xargs"])
async def test_a_promise_counts_in_every_encoding_of_json(
    file: Path, encoding: str, place: str
) -> None:
    """vLLM reads them all; so do we, and what is not allowed is 400 in all of them."""
    write(file, WITHOUT_MODELS)
    server = Server()
    name = {"slo": "ttft_ms", "vllm_xargs": "slo_ttft_ms"}[place]
    for value, expected in ((700, 0.7), (5, None)):
        text = json.dumps({"x": "é", place: {name: value}}, ensure_ascii=False)
        status, _, _ = await server.post(text.encode(encoding))
        assert status == (200 if expected else 400)
    assert SloBook.empty().resolve(server.params[-1].extra_args).ttft_s == 0.7


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
async def test_a_large_body_is_read_too(file: Path, encoding: str) -> None:
    """There is no size from which on a client is believed."""
    write(file, WITHOUT_MODELS)
    server = Server()
    body = {"messages": "a" * (65 * 1024 * 1024), "vllm_xargs": {"slo_class": "lead"}}
    assert (await server.post(json.dumps(body).encode(encoding)))[0] == 400
    assert server.params == []


@pytest.mark.parametrize("path", sorted(edge.PATHS))
async def test_what_was_not_judged_is_not_believed(file: Path, path: str) -> None:
    """A server that asks its engine before the body has ended, or for more than was in it."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        params = SimpleNamespace(extra_args={"slo_class": "gold", "SLO_X": 1, "a": 1, **FORGED})
        async for _ in server.client.generate("p", params, "id"):
            pass
        server.params.append(params)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    server = Server(app)
    assert (await server.post({}, path=path))[0] == 200
    extra_args = server.params[-1].extra_args
    assert extra_args == {"a": 1, STAMP: Slo(1.0, class_name="chat").stamp()}
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "app": SimpleNamespace(state=SimpleNamespace(engine_client=server.client)),
    }

    async def receive() -> Any:
        return {"type": "http.request", "body": b"{", "more_body": True}

    async def send(message: Any) -> None:
        return None

    await server.edge(scope, receive, send)
    assert server.params[-1].extra_args == {"a": 1, STAMP: Slo().stamp()}


FORGED = {STAMP: {"ttft_s": 0.001, "weight": 1e6, "class_name": "gold"}}


async def test_a_forged_stamp_that_is_seen_is_a_mistake(plain: Server) -> None:
    """Also where vLLM takes sampling parameters whole, and however its name is written."""
    path = "/inference/v1/generate"
    for text in ('{"sampling_params": {"extra_args": %s}}', '{"vllm_xargs": %s}'):
        body = text % json.dumps(FORGED)
        for written in (body, body.replace("slo_promised", "s\\u006Co_promised")):
            status, _, answer = await plain.post(written.encode(), path=path)
            assert status == 400
            assert STAMP in json.loads(answer)["error"]["message"]


async def test_sampling_parameters_taken_whole_hold_promises_too(plain: Server) -> None:
    """Their ``extra_args`` are what other endpoints call ``vllm_xargs``."""
    body = {"sampling_params": {"extra_args": {"slo_ttft_ms": 250}}, "slo": {"tbt_ms": 40}}
    assert await plain.promised(body) == Slo(0.25, 0.04, class_name="custom")


async def test_where_nobody_answers_a_refusal_nothing_is_promised(file: Path) -> None:
    """The file's default class would be refused as an empty 200; the first request shows it."""
    for path in ("/v1/audio/transcriptions", "/v2/chat"):
        server = Server()
        asked = {"vllm_xargs": {"slo_ttft_ms": 500, "a": 1}}
        assert (await server.post(asked, path=path))[0] == 200
        extra_args = server.params[0].extra_args
        assert extra_args["a"] == 1
        book = replace(SloBook.load(file), keys={})
        assert book.resolve({"slo_ttft_ms": 500}).is_promise
        assert book.resolve(extra_args) == Slo()


@pytest.mark.parametrize("path", sorted(edge.PATHS))
async def test_what_generates_text_is_promised_and_refused(file: Path, path: str) -> None:
    """On every endpoint that is listed, the file's default class counts."""
    server = Server()
    assert (await server.post({}, path=path))[0] == 200
    assert SloBook.empty().resolve(server.params[0].extra_args) == Slo(1.0, class_name="chat")


async def test_a_file_that_is_wrong_at_the_start_stops_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Named in the scheduler's settings, it is read when the application starts."""
    monkeypatch.delenv(SLO_FILE_VARIABLE, raising=False)
    server = Server()
    settings = {"headway": {"slo_file": str(tmp_path / "none.toml")}}
    server.client.vllm_config = SimpleNamespace(additional_config=settings)
    state = SimpleNamespace(engine_client=server.client)
    with pytest.raises(edge.UserError, match="Cannot read"):
        await server.edge(
            {"type": "lifespan", "app": SimpleNamespace(state=state)},
            None,  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
        )


async def test_a_server_whose_client_is_not_found_is_told(
    plain: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once: promises in headers then reach nobody, and no answer shows it."""
    said: list[str] = []
    monkeypatch.setattr(edge.logger, "error", lambda words, sentence: said.append(sentence))
    scope = {
        "method": "POST",
        "path": CHAT,
        "headers": [],
        "app": SimpleNamespace(state=SimpleNamespace(engine=plain.client)),
    }
    served = SloEdge(no_app)
    for _ in range(2):
        assert (await exchange(served, scope, b"{}"))[0] == 503
    assert said == [edge.NO_CLIENT]


async def no_app(scope: Any, receive: Any, send: Any) -> None:
    """Answer as a server whose engine is elsewhere."""
    await send({"type": "http.response.start", "status": 503, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def vllm_authentication() -> ModuleType:
    """vLLM's own check of API keys, loaded by itself: vLLM as a whole takes seconds."""
    found = importlib.util.find_spec("vllm")
    if found is None or not found.submodule_search_locations:
        pytest.skip("vLLM is not installed")
    folder = Path(found.submodule_search_locations[0])
    file = folder / "entrypoints/serve/middleware/authenticate.py"
    spec = importlib.util.spec_from_file_location("authenticate", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def test_vllms_check_of_api_keys_comes_first(file: Path) -> None:
    """Without a key the answer is 401, whatever is promised: not even class names leak."""
    server = Server()
    checked = vllm_authentication().AuthenticationMiddleware(server.app, tokens=["gold-key"])
    server.edge = SloEdge(checked)
    bad = [(b"x-slo-class", b"lead")]
    for headers in (bad, bad + bearer("wrong"), [*bad, (b"x-api-key", b"gold-key")]):
        status, _, text = await server.post({"slo": {"class": "lead"}}, headers)
        assert status == 401
        assert b"gold" not in text
    assert (await server.post({}, bad + bearer("gold-key")))[0] == 400
    assert (await server.promised({}, bearer("gold-key"))).class_name == "gold"


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
names = st.sampled_from(
    [
        "slo",
        "vllm_xargs",
        "model",
        "class",
        "ttft_ms",
        "tbt_ms",
        "pause_ms",
        "slo_class",
        "slo_pause_ms",
        STAMP,
    ]
) | st.text(max_size=5)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=4),
    max_leaves=12,
)
bodies = st.dictionaries(names, values, max_size=5) | values


@given(bodies, st.integers(0, 40), st.binary(max_size=3))
async def test_random_bodies(body: Any, cut: int, noise: bytes) -> None:
    """Any JSON, whole or damaged: served or 400, never an exception."""
    data = json.dumps(body).encode()
    server = Server()
    for text in (data, data[:cut] + noise + data[cut:], data[: len(data) - cut]):
        status, _, answer = await server.post(text)
        assert status in (200, 400)
        assert status == 200 or json.loads(answer)["error"]["code"] == 400


@pytest.mark.parametrize("place", ['{"slo": %s}', '{"slo": {"ttft_ms": %s}}', '{"slo_x": %s}'])
@pytest.mark.parametrize("depth", [10, 700, 900, 960, 100_000])
async def test_deep_bodies(plain: Server, place: str, depth: int) -> None:
    """As deep as the parser goes, and deeper."""
    deep = "[" * depth + "]" * depth
    assert (await plain.post((place % deep).encode()))[0] in (200, 400)
    both = f'{{"slo": {{"ttft_ms": {deep}}}, "vllm_xargs": {{"slo_ttft_ms": {deep}}}}}'
    assert (await plain.post(both.encode()))[0] in (200, 400)
