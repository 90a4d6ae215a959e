"""How a server is reached: its key, its certificate, its socket, and the connections to it."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from headway.errors import UserError

KEEP_ALIVE_S = 4.0
"""Idle connections are closed before uvicorn and Node close them, which is after 5 s."""

_HEADER = re.compile(r"(?P<name>[!#$%&'*+.^_`|~\w-]+):[ \t]*(?P<value>[\x20-\x7e]*)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Access:
    """What every request to a server needs besides its URL.

    Attributes:
        headers: Sent with every request, the key among them; names in lower case.
        tls: A context that trusts a private CA, ``True`` for the public ones, ``False`` for anyone.
        unix_socket: Path of the socket that takes the place of the URL's host and port.
    """

    headers: Mapping[str, str] = field(default_factory=dict)
    tls: ssl.SSLContext | bool = True
    unix_socket: str | None = None

    @property
    def has_key(self) -> bool:
        """Whether requests say who sends them."""
        return "authorization" in self.headers

    def session(self, timeout_s: float | None = None) -> aiohttp.ClientSession:
        """Return a session of any number of connections, to be closed by the caller.

        It keeps no cookies: they would bind all requests to one of several servers.
        """
        shared: dict[str, Any] = {"limit": 0, "keepalive_timeout": KEEP_ALIVE_S}
        connector: aiohttp.BaseConnector = (
            aiohttp.TCPConnector(ssl=self.tls, **shared)
            if self.unix_socket is None
            else aiohttp.UnixConnector(self.unix_socket, **shared)
        )
        return aiohttp.ClientSession(
            connector=connector,
            headers=self.headers,
            timeout=aiohttp.ClientTimeout(total=timeout_s),
            trace_configs=[_connection_watch()],
            cookie_jar=aiohttp.DummyCookieJar(),
        )


def access_of(
    url: str,
    api_key: str | None = None,
    headers: Sequence[str] = (),
    ca: Path | None = None,
    insecure: bool = False,
    unix_socket: Path | None = None,
) -> Access:
    """Return what a user's options say; a header given by name counts before the key.

    Raises:
        UserError: An option is wrong, or two contradict each other.
    """
    if ca is not None and insecure:
        raise UserError("--ca and --insecure contradict each other; give one.")
    if unix_socket is not None and url.startswith("https://"):
        raise UserError("--unix-socket speaks plain HTTP; give an http:// --url with it.")
    sent: dict[str, str] = {}
    if api_key:
        sent |= _header(f"Authorization: Bearer {api_key}", "--api-key")
    for text in headers:
        sent |= _header(text, "--header")
    tls = not insecure if ca is None else _trusting(ca)
    return Access(sent, tls, None if unix_socket is None else str(unix_socket))


def _header(text: str, option: str) -> dict[str, str]:
    match = _HEADER.fullmatch(text)
    if match is None and option == "--api-key":
        raise UserError("--api-key has letters that no header can carry.")
    if match is None:
        raise UserError(f"--header must look like 'X-Name: value', in ASCII, not {text!r:.60}.")
    return {match["name"].lower(): match["value"]}


def _trusting(ca: Path) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca)
    except ssl.SSLError:
        raise UserError(f"--ca {ca} has no certificate in PEM.") from None
    except OSError as error:
        raise UserError(f"Cannot read --ca {ca}: {error.strerror}.") from None


@dataclass(slots=True)
class Connection:
    """Whether the connection of a request had served another; see :func:`post`."""

    is_reused: bool = False


async def post(
    session: aiohttp.ClientSession, url: str, body: Any, headers: Mapping[str, str] | None = None
) -> aiohttp.ClientResponse:
    """Send one request and return the answer's beginning.

    A kept connection that ends before the answer begins was closed by the server while it was
    idle, and says nothing of the request: it goes again, at last on a connection of its own.
    """
    while True:
        link = Connection()
        try:
            response = await session.post(url, json=body, headers=headers, trace_request_ctx=link)
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError):
            if not link.is_reused:
                raise
        else:
            _end_with_connection(response)
            return response


def _end_with_connection(response: aiohttp.ClientResponse) -> None:
    """End the body where the connection ends.

    aiohttp 3.14 closes the connection when the framing of a body breaks after its beginning, and
    tells the reader nothing: the request would wait out its timeout.
    """
    protocol = response.connection.protocol if response.connection is not None else None
    closed = protocol.closed if protocol is not None else None
    if closed is not None:
        closed.add_done_callback(lambda closed: _break_off(response.content, closed))


def _break_off(body: aiohttp.StreamReader, closed: asyncio.Future[None]) -> None:
    if not closed.cancelled():
        closed.exception()  # Else asyncio complains that nobody looked.
    if not body.is_eof() and body.exception() is None:
        body.set_exception(aiohttp.ClientPayloadError("it closed before the answer's end"))


def _connection_watch() -> aiohttp.TraceConfig:
    async def kept(_: Any, context: Any, __: Any) -> None:
        if isinstance(context.trace_request_ctx, Connection):
            context.trace_request_ctx.is_reused = True

    async def new(_: Any, context: Any, __: Any) -> None:
        if isinstance(context.trace_request_ctx, Connection):
            context.trace_request_ctx.is_reused = False

    watch = aiohttp.TraceConfig()
    watch.on_connection_reuseconn.append(kept)
    watch.on_connection_create_start.append(new)
    return watch


async def start_of(response: aiohttp.ClientResponse, max_bytes: int) -> str:
    """Return what comes of a body, up to *max_bytes* and as far as the connection lasts."""
    body = bytearray()
    try:
        async for part in response.content.iter_any():
            body += part
            if len(body) >= max_bytes:
                break
    except aiohttp.ClientError:
        pass  # What came before the connection broke is all there is.
    return body[:max_bytes].decode("utf-8", "replace")
