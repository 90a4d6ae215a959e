"""How ``headway top`` and ``headway explain`` ask a running server, and words they share."""

from __future__ import annotations

import json
import urllib.error
import urllib.parse
import urllib.request
from http import HTTPStatus
from typing import Any

import click

from headway.errors import HeadwayError, UserError

TIMEOUT_S = 10.0
AWAITED = {
    "ttft": "first token",
    "tbt": "next token",
    "pause": "next token",
    "jct": "end of the answer",
}
"""By the promise that is overdue: what its client waits for."""

DOING = {
    "queued": "waits for its turn",
    "prefill": "its prompt is computed",
    "decode": "its answer is written",
    "preempted": "lost its place, waits to go on",
}
"""By the stage of a live request: what it is doing."""

ENDED = {
    "stopped": "answered",
    "length": "answered, as long as max_tokens allows",
    "aborted": "hung up",
}
"""By the last line of a story: how it ended."""

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")

url_option = click.option(
    "--url", default="http://127.0.0.1:8000", show_default=True, help="The server."
)
key_option = click.option(
    "--api-key", envvar="VLLM_API_KEY", help="The server's API key [environment: VLLM_API_KEY]."
)


class NoAnswer(HeadwayError):
    """The server did not answer, or not with what a Headway server says."""


def ask(url: str, path: str, api_key: str | None = None, **query: str | int) -> dict[str, Any]:
    """Return what the server says at *path*.

    Raises:
        UserError: The address is none, the key is wrong, or the server has no such page.
        NoAnswer: Nobody answers there, or a proxy says that nobody does.
    """
    parts = urllib.parse.urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"--url must look like http://127.0.0.1:8000, not {url!r:.80}.")
    address = f"{url.rstrip('/')}{path}"
    if query:
        address += "?" + urllib.parse.urlencode(query)
    request = urllib.request.Request(address)  # noqa: S310 - the scheme was checked above
    if api_key:
        request.add_header("Authorization", f"Bearer {api_key}")
    # A proxy of the environment does not know this machine's own ports.
    proxies: dict[str, str] | None = {} if parts.hostname in LOCAL_HOSTS else None
    opener = urllib.request.build_opener(urllib.request.ProxyHandler(proxies))
    try:
        with opener.open(request, timeout=TIMEOUT_S) as answer:
            document = json.load(answer)
    except urllib.error.HTTPError as error:
        raise _mistake(error.code, url) from None
    except (urllib.error.URLError, OSError) as error:
        why = getattr(error, "reason", None) or error
        raise NoAnswer(f"No server answers at {url}: {why}.") from None
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise NoAnswer(f"What answers at {url} is no Headway server.")
    return document


def _mistake(status: int, url: str) -> HeadwayError:
    if status in (401, 403):
        return UserError(f"{url} wants its API key: give it as --api-key or in VLLM_API_KEY.")
    if status == 404:
        return UserError(
            f"{url} shows nothing of Headway: start it with headway serve, or see"
            " docs/how-to/read-the-page.md."
        )
    sentence = f"{url} answers with status {status}."
    # A proxy in front of a server that starts again says 502 or 503.
    is_servers_fault = status >= HTTPStatus.INTERNAL_SERVER_ERROR
    return NoAnswer(sentence) if is_servers_fault else UserError(sentence)
