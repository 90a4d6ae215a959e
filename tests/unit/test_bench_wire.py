"""How the load generator reaches a server, and what it says where it does not."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import ssl
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from wire import (
    ANSWER,
    MODELS,
    Exchange,
    Handler,
    benched,
    call,
    load_of,
    serve_well,
    serving,
)

from headway.bench.access import Access, access_of
from headway.bench.client import RunClock, send
from headway.bench.probe import ask_server
from headway.errors import UserError


def refusal_of(handler: Handler, access: Access | None = None, **served: Any) -> str:
    """Return the sentence with which a server is turned down."""

    async def run() -> None:
        async with serving(handler, **served) as url:
            await ask_server(url, access)

    with pytest.raises(UserError) as told:
        asyncio.run(run())
    return str(told.value)


def one_after_another(handler: Handler, num_requests: int) -> list[str]:
    """Return the outcomes of requests that leave when the one before has ended."""

    async def run() -> list[str]:
        async with serving(handler) as url, Access().session() as session:
            clock = RunClock()
            calls = [call(f"r{i}") for i in range(num_requests)]
            return [(await send(session, url, one, clock, 20)).record.outcome for one in calls]

    return asyncio.run(run())


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files go to a folder of the test's own, and no key comes from the environment."""
    monkeypatch.chdir(tmp_path)
    for name in ("VLLM_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


# Connections.


def test_a_connection_closed_while_idle_fails_no_request() -> None:
    """A server that hangs up on the second request of a connection gets it again on a new one."""
    num_dropped = 0

    async def hang_up(exchange: Exchange) -> None:
        nonlocal num_dropped
        if exchange.number > 0:
            num_dropped += 1
            exchange.close()
        else:
            await exchange.stream(*ANSWER)

    assert one_after_another(hang_up, 12) == ["finished"] * 12
    assert num_dropped > 0


def test_a_new_connection_that_is_closed_is_the_servers_fault() -> None:
    """No endless retries: a server that never answers has failed."""
    num_requests = 0

    async def never(exchange: Exchange) -> None:
        nonlocal num_requests
        num_requests += 1
        exchange.close()

    (record,) = load_of(never).records
    assert (record.outcome, num_requests) == ("failed", 1)
    assert record.detail.startswith("connection: ")


def test_idle_connections_are_dropped_before_common_servers_do() -> None:
    """Below the 5 s of uvicorn and Node."""

    async def run() -> float:
        async with Access().session() as session:
            return float(session.connector._keepalive_timeout)  # type: ignore[union-attr]

    assert asyncio.run(run()) < 5.0


def test_cookies_are_not_kept() -> None:
    """They would tie all requests to one of several servers behind a balancer."""
    cookies = []

    async def hand_out(exchange: Exchange) -> None:
        cookies.append(exchange.headers.get("cookie"))
        await exchange.answer(500, {}, "Set-Cookie: server=3")

    one_after_another(hand_out, 2)
    assert cookies == [None, None]


# Keys, headers, sockets, certificates.


@pytest.mark.parametrize(
    ("args", "variables", "expected"),
    [
        (["--api-key", "k1"], {"VLLM_API_KEY": "k2"}, "Bearer k1"),
        ([], {"VLLM_API_KEY": "k2", "OPENAI_API_KEY": "k3"}, "Bearer k2"),
        ([], {"OPENAI_API_KEY": "k3"}, "Bearer k3"),
        (["--header", "AUTHORIZATION: Basic x"], {"OPENAI_API_KEY": "k3"}, "Basic x"),
        ([], {}, None),
    ],
)
def test_every_request_carries_the_key_and_the_headers(
    args: list[str],
    variables: dict[str, str],
    expected: str | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The probe, the load and the counters alike; an option counts before the environment."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    seen: dict[str, set[Any]] = {}

    async def note(exchange: Exchange) -> None:
        own = (exchange.headers.get("authorization"), exchange.headers.get("x-own"))
        seen.setdefault(exchange.path, set()).add(own)
        await serve_well(exchange)

    result = benched(note, "--header", "X-Own:  a b", *args)
    assert result.exit_code == 0, result.output
    paths = ("/v1/models", "/metrics", "/v1/chat/completions")
    assert seen == {path: {(expected, "a b")} for path in paths}


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"headers": ["X-Own"]}, "--header must look like"),
        ({"headers": ["X Own: a"]}, "--header must look like"),
        ({"headers": ["X-Own: a\r\nHost: b"]}, "--header must look like"),
        ({"api_key": "a\nb"}, "--api-key has letters"),
        ({"ca": Path("nowhere.pem")}, "Cannot read --ca nowhere.pem"),
        ({"ca": Path(__file__)}, "no certificate in PEM"),
        ({"ca": Path(__file__), "insecure": True}, "contradict"),
        ({"unix_socket": Path("s"), "url": "https://x"}, "--unix-socket speaks plain HTTP"),
    ],
)
def test_wrong_options_are_sentences(options: dict[str, Any], sentence: str) -> None:
    """And never an answer of the library's."""
    with pytest.raises(UserError, match=sentence) as told:
        access_of(**{"url": "http://x", **options})
    assert "a\nb" not in str(told.value)


def test_a_unix_socket_takes_the_place_of_host_and_port(tmp_path: Path) -> None:
    """What vLLM's --uds serves."""
    socket = tmp_path / "s"
    result = benched(serve_well, "--unix-socket", str(socket), unix_socket=socket)
    assert result.exit_code == 0, result.output
    with pytest.raises(UserError, match=r"No server answers at the socket .*/none"):
        asyncio.run(ask_server("http://x", Access(unix_socket=str(tmp_path / "none"))))


@pytest.fixture(scope="module")
def own_ca(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ssl.SSLContext]:
    """A certificate of our own for 127.0.0.1, and the server's side of it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "own CA")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("ca")
    pem, key_pem = folder / "ca.pem", folder / "key.pem"
    pem.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    key_pem.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pem, key_pem)
    return pem, context


def test_tls_with_a_private_ca(own_ca: tuple[Path, ssl.SSLContext]) -> None:
    """--ca trusts it, --insecure trusts anyone, and without either the certificate is named."""
    pem, tls = own_ca
    for args in (["--ca", str(pem)], ["--insecure"]):
        result = benched(serve_well, *args, tls=tls)
        assert result.exit_code == 0, result.output
    sentence = refusal_of(serve_well, tls=tls)
    assert "certificate" in sentence
    assert "--ca FILE" in sentence
    assert "is it running" not in sentence


def test_tls_against_plain_http_and_the_other_way(own_ca: tuple[Path, ssl.SSLContext]) -> None:
    """Each names the other scheme."""

    async def ask_with_tls() -> None:
        async with TestServer(web.Application()) as server:
            await ask_server(f"https://127.0.0.1:{server.port}")

    async def ask_without() -> None:
        async with serving(serve_well, tls=own_ca[1]) as url:
            await ask_server(url.replace("https", "http"))

    with pytest.raises(UserError, match="is it an http:// server"):
        asyncio.run(ask_with_tls())
    with pytest.raises(UserError, match="is it https://"):
        asyncio.run(ask_without())


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://127.0.0.1:9", "is it running"),
        ("http://no.such.host.invalid", "is not known"),
        ("http://[::bad", "is no URL"),
        ("http://127.0.0.1:99999", "is no URL"),
    ],
)
def test_urls_that_lead_nowhere(url: str, sentence: str) -> None:
    """A refused connection, an unknown name and a slip of the pen are three things."""
    with pytest.raises(UserError, match=sentence):
        asyncio.run(ask_server(url))


@pytest.mark.parametrize(
    ("status", "body", "sentence"),
    [
        (401, {"error": "Unauthorized"}, "HTTP 401 (Unauthorized): it wants a key; give --api-key"),
        (403, {}, "it wants a key"),
        (404, {}, "--url must be the base"),
        (500, {"error": {"message": "out\nof memory"}}, "HTTP 500: out of memory."),
        (503, {"detail": "loading"}, "HTTP 503: loading."),
        (200, [1], "did not answer like an OpenAI server"),
        (200, {"data": [None]}, "did not answer like an OpenAI server"),
    ],
)
def test_a_server_that_is_there_but_not_ours(status: int, body: Any, sentence: str) -> None:
    """Each status has its own advice."""

    async def answer(exchange: Exchange) -> None:
        await exchange.answer(status, body)

    assert sentence in refusal_of(answer)


def test_a_key_that_is_wrong_is_not_asked_for_again() -> None:
    """Who gave one is told so; the key itself is not repeated."""

    async def answer(exchange: Exchange) -> None:
        await exchange.answer(401, {"error": "Unauthorized"})

    sentence = refusal_of(answer, access_of("http://x", api_key="sesame"))
    assert "the key given is not accepted" in sentence
    assert "sesame" not in sentence


@pytest.mark.parametrize("status", [301, 302, 303])
def test_a_redirect_that_loses_requests_is_named(status: int) -> None:
    """GET follows it, so the probe knows; POST would arrive without its body."""

    async def answer(exchange: Exchange) -> None:
        if exchange.path.startswith("/new"):
            await exchange.answer(200, MODELS)
        else:
            await exchange.answer(status, {}, f"Location: /new{exchange.path}")

    assert "/new; give that as --url" in refusal_of(answer)
    (record,) = load_of(answer).records
    assert (record.outcome, record.num_output_tokens) == ("failed", 0)
    assert record.detail.startswith(f"HTTP {status}: redirected to ")


def test_a_redirect_that_keeps_requests_is_followed() -> None:
    """307 and 308 are how some balancers share out their load."""

    async def answer(exchange: Exchange) -> None:
        if exchange.path.startswith("/new"):
            await exchange.stream(*ANSWER)
        else:
            await exchange.answer(307, {}, f"Location: /new{exchange.path}")

    assert load_of(answer, num_requests=3).records[2].finished


def test_a_redirect_in_a_circle_ends() -> None:
    """With a reason."""

    async def answer(exchange: Exchange) -> None:
        await exchange.answer(307, {}, f"Location: {exchange.path}")

    assert load_of(answer).records[0].detail.startswith("redirected ")
    assert "redirects in a circle" in refusal_of(answer)
