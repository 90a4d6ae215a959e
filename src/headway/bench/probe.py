"""What a live server says of itself: is it there, its model, its counters."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass

import aiohttp

from headway.bench.access import Access, start_of
from headway.bench.client import DROPPING_REDIRECTS
from headway.bench.words import in_one_line, message_of
from headway.errors import UserError

PROBE_TIMEOUT_S = 15.0
MAX_BODY_BYTES = 2**24
"""16 MiB are more than any list of models or page of metrics."""

MAX_SHOWN_CHARS = 200
KEY_ADVICE = "it wants a key; give --api-key, or set VLLM_API_KEY or OPENAI_API_KEY"
_SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{[^}]*\})?\s+(?P<value>\S+)")


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """The first model a server lists, and whether it is vLLM (Headway included)."""

    model: str
    is_vllm: bool


async def ask_server(url: str, access: Access | None = None) -> ServerInfo:
    """Ask an OpenAI-compatible server for its model.

    Raises:
        UserError: Nothing answers there, or not as such a server would.
    """
    access = access or Access()
    try:
        async with access.session(PROBE_TIMEOUT_S) as session:
            async with session.get(f"{url}/v1/models") as response:
                body = await start_of(response, MAX_BODY_BYTES)
                _check(response, body, url, access)
                models = json.loads(body)["data"]
            return ServerInfo(str(models[0]["id"]), models[0].get("owned_by") == "vllm")
    except (aiohttp.ClientError, OSError) as error:
        raise UserError(in_one_line(unreachable(url, error, access))) from None
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{url}/v1/models did not answer like an OpenAI server.") from None


def _check(response: aiohttp.ClientResponse, body: str, url: str, access: Access) -> None:
    """Raise a UserError unless the answer is one to read on."""
    moved = any(step.status in DROPPING_REDIRECTS for step in response.history)
    if moved:
        new = str(response.url).removesuffix("/v1/models")
        raise UserError(f"{url} redirects to {new}; give that as --url, for requests get lost.")
    message = in_one_line(message_of(body))[:MAX_SHOWN_CHARS] or "no reason given"
    if response.status in (401, 403):
        advice = "the key given is not accepted" if access.has_key else KEY_ADVICE
        raise UserError(f"{url} answered HTTP {response.status} ({message}): {advice}.")
    if response.status in (404, 405):
        raise UserError(
            f"{url}/v1/models answered HTTP {response.status}; --url must be the base of an"
            " OpenAI-compatible server."
        )
    if response.status != 200:
        raise UserError(f"{url}/v1/models answered HTTP {response.status}: {message}.")


def unreachable(url: str, error: Exception, access: Access) -> str:
    """Return one sentence on why *url* gives no answer, and what to do about it."""
    match error:
        case aiohttp.ClientConnectorCertificateError():
            why = getattr(error.certificate_error, "verify_message", error.certificate_error)
            return (
                f"The certificate of {url} is not trusted ({why}); give its CA by --ca FILE, or"
                " do without by --insecure."
            )
        case aiohttp.ClientSSLError():
            return f"{url} does not speak TLS as it should; is it an http:// server?"
        case aiohttp.TooManyRedirects():
            return f"{url} redirects in a circle."
        case aiohttp.InvalidURL():
            return f"--url {url} is no URL."
        case aiohttp.ClientConnectorDNSError():
            return f"The host of {url} is not known; is it spelt right?"
        case aiohttp.ClientConnectorError():
            where = url if access.unix_socket is None else f"the socket {access.unix_socket}"
            return f"No server answers at {where}; is it running?"
        case TimeoutError():
            return f"{url} gave no answer in {PROBE_TIMEOUT_S:g} s; is it busy, or still loading?"
    return f"What answers at {url} does not speak HTTP as it should ({error}); is it https://?"


async def scrape(url: str, access: Access | None = None) -> dict[str, float]:
    """Return the server's Prometheus counters by name, summed over labels; empty if it has none."""
    try:
        async with (
            (access or Access()).session(PROBE_TIMEOUT_S) as session,
            session.get(f"{url}/metrics") as response,
        ):
            text = await start_of(response, MAX_BODY_BYTES)
            return parse_metrics(text) if response.status == 200 else {}
    except (aiohttp.ClientError, OSError):
        return {}


def parse_metrics(text: str) -> dict[str, float]:
    """Return metric name to value, summed over labels, of Prometheus' text format."""
    totals: dict[str, float] = {}
    for line in text.splitlines():
        match = _SAMPLE.match(line)
        if match is None:
            continue
        try:
            value = float(match["value"])
        except ValueError:
            continue
        totals[match["name"]] = totals.get(match["name"], 0.0) + value
    return totals


def preemptions_between(before: dict[str, float], after: dict[str, float]) -> dict[str, int | None]:
    """Return the run's preemptions; vLLM counts all of them as recompute, swaps are not known."""
    name = "vllm:num_preemptions_total"
    increase = after.get(name, math.nan) - before.get(name, 0.0)
    return {"recompute": round(increase) if math.isfinite(increase) else None, "swap": None}
