"""Who pays, at the HTTP edge: keys that are checked, a gateway's header, and nobody else's word."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from asgi import exchange
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from headway.engines.vllm.call import attach_to
from headway.engines.vllm.edge import SLO_FILE_VARIABLE, SloEdge
from headway.engines.vllm.headers import tenant_in
from headway.errors import UserError
from headway.slo import NO_PROMISE, STAMP, Slo, SloBook
from headway.slo_digests import digest_of

CHAT, OPEN, OTHER = "/v1/chat/completions", "/invocations", "/v1/audio/transcriptions"
TENANTS = f"""
tenant_header = "X-Tenant"
gateway_keys = ["sha256:{digest_of("gateway-key")}"]
[tenants.research]
share = 2
target = 0.9
keys = ["sha256:{digest_of("research-key")}"]
"""
FILE = f"""
{TENANTS}
[classes.code]
ttft_s = 0.2
target = 0.95
[keys."sha256:{digest_of("gold-key")}"]
class = "code"
"""
PROMISE = {"slo": {"ttft_ms": 500}}


def bearer(key: str) -> tuple[bytes, bytes]:
    return b"authorization", f"Bearer {key}".encode()


def key_tenant(key: str) -> str:
    return f"key-{digest_of(key)[:12]}"


def header(value: str | bytes) -> tuple[bytes, bytes]:
    return b"x-tenant", value if isinstance(value, bytes) else value.encode()


class KeyedServer:
    """A server behind the edge, with API keys of its own or none; its engine keeps what it hears.

    vLLM's own check of keys is not here: tests send what it would let through.
    """

    def __init__(self, *api_keys: str) -> None:
        self.extra_args: list[Any] = []
        self.now_s = 0.0
        self.client = SimpleNamespace(generate=self._generate)
        args = SimpleNamespace(api_key=list(api_keys))
        state = SimpleNamespace(engine_client=self.client, args=args)
        self.scope = {"method": "POST", "app": SimpleNamespace(state=state)}
        self.edge = SloEdge(self._app, now_s=lambda: self.now_s)

    async def _generate(self, prompt: str, sampling_params: Any, request_id: str) -> Any:
        self.extra_args.append(sampling_params.extra_args)
        yield SimpleNamespace(outputs=[])

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        params = SimpleNamespace(extra_args=json.loads(message["body"]).get("vllm_xargs"))
        async for _ in self.client.generate("p", params, "id"):
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})

    async def post(self, body: Any, *headers: tuple[bytes, bytes], path: str = CHAT) -> Any:
        scope = {**self.scope, "path": path, "headers": list(headers)}
        status, _, text = await exchange(self.edge, scope, json.dumps(body).encode())
        return status, text

    async def promised(self, body: Any, *headers: tuple[bytes, bytes], path: str = CHAT) -> Slo:
        """Post, and return what the scheduler takes for the promise."""
        status, text = await self.post(body, *headers, path=path)
        assert status == 200, text
        return SloBook.empty().resolve(self.extra_args[-1])

    async def payer(self, *headers: tuple[bytes, bytes], path: str = CHAT) -> str:
        """Return who pays for a request that asks for a promise; the others must pay alike."""
        asked = await self.promised(PROMISE, *headers, path=path)
        assert asked.is_promise
        assert (await self.promised({}, *headers, path=path)).tenant == asked.tenant
        return asked.tenant

    async def sentence(self, *headers: tuple[bytes, bytes]) -> str:
        status, text = await self.post(PROMISE, *headers)
        assert status == 400
        return str(json.loads(text)["error"]["message"])


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no SLO file."""
    monkeypatch.delenv(SLO_FILE_VARIABLE, raising=False)
    monkeypatch.delenv("VLLM_API_KEY", raising=False)


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "slo.toml"
    path.write_text(FILE)
    monkeypatch.setenv(SLO_FILE_VARIABLE, str(path))
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    return path


def write(file: Path, text: str) -> None:
    file.write_text(text)


async def test_a_server_with_keys_tells_their_bearers_apart_without_a_file(plain: None) -> None:
    """Also where nothing is asked for: the core is told who pays."""
    server = KeyedServer("one", "two")
    assert await server.payer(bearer("one")) == key_tenant("one")
    assert await server.payer(bearer("two"), header("research")) == key_tenant("two")
    assert await server.promised({}, bearer("one")) == Slo(tenant=key_tenant("one"))


async def test_the_key_in_the_environment_is_a_key(
    plain: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As vLLM finds it."""
    monkeypatch.setenv("VLLM_API_KEY", "one")
    assert await KeyedServer().payer(bearer("one")) == key_tenant("one")


async def test_a_key_that_nobody_checks_does_not_count(plain: None) -> None:
    """A flooder that varies it stays one tenant, and nothing is written for its requests."""
    server = KeyedServer()
    for i in range(3):
        assert await server.payer(bearer(f"made-up-{i}")) == ""
        assert server.extra_args[-1] is None
    assert await KeyedServer("one").payer(bearer("made-up"), path=OPEN) == ""
    assert await KeyedServer("one").payer((b"x-api-key", b"one"), path=OPEN) == key_tenant("one")


async def test_the_key_the_file_lists_comes_before_the_header(file: Path) -> None:
    """A tenant's keys pay for the tenant; a key with a class alone for itself."""
    server = KeyedServer()
    assert await server.payer(bearer("research-key"), header("sales")) == "research"
    assert await server.payer(bearer("gold-key"), header("sales")) == key_tenant("gold-key")
    assert await server.payer(bearer("made-up"), header("sales")) == "sales"
    assert await server.payer(header(" sales ")) == "sales"
    assert await server.payer() == ""
    assert await server.promised({}, bearer("research-key")) == Slo(
        tenant="research", share=2.0, tenant_target=0.9
    )
    gold = await server.promised({}, bearer("gold-key"))
    assert gold == Slo(0.2, class_name="code", target=0.95, tenant=key_tenant("gold-key"))


async def test_a_gateway_speaks_for_others(file: Path) -> None:
    """With its key the header counts; with another key of the server it does not."""
    server = KeyedServer("gateway-key", "one", "research-key")
    assert await server.payer(bearer("gateway-key"), header("sales")) == "sales"
    assert await server.payer(bearer("gateway-key")) == ""
    assert await server.payer(bearer("one"), header("sales")) == key_tenant("one")
    assert await server.payer(bearer("research-key"), header("sales")) == "research"


async def test_a_stranger_names_no_tenant(file: Path) -> None:
    """Where the server has keys and asks for none, a header is anybody's word."""
    server = KeyedServer("one")
    assert await server.payer(header("research"), path=OPEN) == ""
    assert await server.payer(bearer("gateway-key"), header("sales"), path=OPEN) == "sales"
    assert await KeyedServer().payer(header("research"), path=OPEN) == "research"


async def test_a_header_that_names_nobody_is_a_mistake(file: Path) -> None:
    """Empty, too long, unprintable, or twice and different; the same twice is not."""
    server = KeyedServer()
    wrong = "x-tenant must be 1 to 100 printable characters"
    for value in ("", "  ", "a" * 101, "a\x00b", b"a\x1b[31m"):
        assert (await server.sentence(header(value))).startswith(wrong)
    assert "twice with different values" in await server.sentence(header("a"), header("b"))
    assert await server.payer(header("a"), header(" a")) == "a"
    assert await server.payer(header("a" * 100)) == "a" * 100
    assert await server.payer(header("Büro")) == "Büro"
    assert await server.payer(header("Büro".encode("latin-1"))) == "Büro"
    assert await server.payer(bearer("research-key"), header("")) == "research"


@pytest.mark.parametrize("name", ["target", "tenant", "share", "tenant_target"])
async def test_clients_say_none_of_it(file: Path, name: str) -> None:
    """In the body, the sampling parameters or a header of ours it is an unknown field."""
    server = KeyedServer()
    for body in ({"slo": {name: "x"}}, {"vllm_xargs": {f"slo_{name}": "x"}}, {f"slo_{name}": 1}):
        status, text = await server.post(body)
        assert (status, name in text.decode()) == (400, True)
    as_header = (f"x-slo-{name.replace('_', '-')}".encode(), b"x")
    assert "is not an SLO header" in await server.sentence(as_header)


async def test_a_stamp_of_the_clients_own_does_not_count(file: Path) -> None:
    """A client that writes who pays as the edge would is told that it is no field."""
    stamp = Slo(tenant="research", share=9.0).stamp()
    status, _ = await KeyedServer().post({"vllm_xargs": {STAMP: stamp}})
    assert status == 400


async def test_a_changed_target_and_share_apply_to_the_next_request(file: Path) -> None:
    """As soon as the file is looked at again; a file that became wrong changes nothing."""
    server = KeyedServer()
    before = await server.promised({"slo": {"class": "code"}}, bearer("research-key"))
    assert (before.target, before.share, before.tenant_target) == (0.95, 2.0, 0.9)
    write(file, FILE.replace("0.95", "0.8").replace("share = 2", "share = 5"))
    server.now_s += 10
    after = await server.promised({"slo": {"class": "code"}}, bearer("research-key"))
    assert (after.target, after.share, after.tenant_target) == (0.8, 5.0, 0.9)
    write(file, FILE.replace("share = 2", "share = 0"))
    server.now_s += 10
    assert await server.promised({"slo": {"class": "code"}}, bearer("research-key")) == after


async def test_last_reaches_requests_of_every_endpoint(file: Path) -> None:
    """Those that hold no promise because nobody judged them too."""
    write(file, 'unpromised = "last"\n' + TENANTS)
    server = KeyedServer()
    assert await server.promised({}) == Slo(share=0.0)
    assert await server.promised({}, path=OTHER) == Slo(share=0.0)
    assert (await server.promised(PROMISE, header("research"))).share == 2.0
    write(file, TENANTS)
    server.now_s += 10
    assert await server.promised({}) == NO_PROMISE
    assert await server.promised({}, path=OTHER) == NO_PROMISE


async def test_a_call_that_no_request_made_holds_no_promise(plain: None) -> None:
    """Nor does anybody in particular pay for it."""
    server = KeyedServer()
    attach_to(server.client)
    params = SimpleNamespace(extra_args={STAMP: Slo(1.0, tenant="x").stamp()})
    async for _ in server.client.generate("p", params, "id"):
        pass
    assert Slo.stamped(params.extra_args[STAMP]) == NO_PROMISE


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(values=st.lists(st.binary(max_size=8) | st.text(max_size=120).map(str.encode), max_size=3))
def test_any_bytes_are_a_tenant_or_a_mistake(values: list[bytes]) -> None:
    """A name that comes out is printable, short, and what every copy of the header says."""
    headers = [(b"x-other", b"y"), *((b"x-tenant", value) for value in values)]
    try:
        tenant = tenant_in(headers, "x-tenant")
    except UserError:
        return
    assert bool(tenant) == bool(values)
    assert len(tenant) <= 100
    assert tenant.isprintable()
    assert tenant == tenant.strip()
    assert len({tenant_in([(b"x-tenant", value)], "x-tenant") for value in values}) <= 1
