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
    Exchange,
    Handler,
    benched,
    call,
    load_of,
    refusal_of,
    serve_well,
    serving,
)

from headway.bench.access import Access, access_of
from headway.bench.client import RunClock, send
from headway.bench.probe import ask_server
from headway.errors import UserError


def one_after_another(handler: Handler, num_requests: int) -> list[str]:
    """Return the outcomes of requests that leave when the one before has ended."""

    async def run() -> list[str]:
        async with serving(handler) as url, Access().session() as session:
            named = url.replace("127.0.0.1", "localhost")  # A bare address gets no cookies anyway.
            clock = RunClock()
            calls = [call(f"r{i}") for i in range(num_requests)]
            return [(await send(session, named, one, clock, 20)).record.outcome for one in calls]

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
