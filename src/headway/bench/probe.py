"""What a live server says of itself: is it there, its model, its counters."""

from __future__ import annotations

import re
from dataclasses import dataclass

import aiohttp

from headway.errors import UserError

PROBE_TIMEOUT_S = 15.0
_SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{[^}]*\})?\s+(?P<value>\S+)")


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """The first model a server lists, and whether it is vLLM (Headway included)."""

    model: str
    is_vllm: bool


async def ask_server(url: str) -> ServerInfo:
    """Ask an OpenAI-compatible server for its model.

    Raises:
        UserError: Nothing answers there, or not as such a server would.
    """
    try:
        async with _session() as session, session.get(f"{url}/v1/models") as response:
            if response.status != 200:
                raise UserError(
                    f"{url}/v1/models answered HTTP {response.status}; --url must be the base of"
                    " an OpenAI-compatible server."
                )
            models = (await response.json(content_type=None))["data"]
            return ServerInfo(str(models[0]["id"]), models[0].get("owned_by") == "vllm")
    except (aiohttp.ClientError, OSError, TimeoutError):
        raise UserError(f"No server answers at {url}; is it running?") from None
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise UserError(f"{url}/v1/models did not answer like an OpenAI server.") from None


async def scrape(url: str) -> dict[str, float]:
    """Return the server's Prometheus counters by name, summed over labels; empty if it has none."""
    try:
        async with _session() as session, session.get(f"{url}/metrics") as response:
            return parse_metrics(await response.text()) if response.status == 200 else {}
    except (aiohttp.ClientError, OSError, TimeoutError):
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
    if name not in after:
        return {"recompute": None, "swap": None}
    return {"recompute": round(after[name] - before.get(name, 0.0)), "swap": None}


def _session() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PROBE_TIMEOUT_S))
