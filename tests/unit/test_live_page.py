"""The page at ``/headway`` and its figures, over HTTP."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import re
import time
import urllib.parse
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from asgi import exchange
from told import CHAT, counts, serve_one

from headway import web
from headway.engines.vllm import observe
from headway.engines.vllm.channel import CHANNEL_VARIABLE, Sender
from headway.engines.vllm.observe import PAGE_FILES, LiveView
from headway.metrics.causes import CAUSES
from headway.metrics.scheduler_counts import SchedulerCounts

VLLMS_METRICS = b"# TYPE vllm:x counter\nvllm:x_total 1.0\n"


class Server:
    """vLLM's server as far as the middleware sees it, and a client."""

    def __init__(self, api_key: list[str] | None = None) -> None:
        self.view = LiveView(self._app)
        self.seen: list[dict[str, Any]] = []
        self.state = SimpleNamespace(state=SimpleNamespace(args=SimpleNamespace(api_key=api_key)))

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        self.seen.append(scope)
        wants_gzip = any(b"gzip" in value for key, value in scope["headers"])
        body = gzip.compress(VLLMS_METRICS) if wants_gzip else VLLMS_METRICS
        headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def get(
        self, path: str, query: str = "", method: str = "GET", root: str = "", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        scope = {
            "root_path": root,
            "method": method,
            "path": path,
            "query_string": query.encode(),
            "headers": [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()],
            "app": self.state,
        }
        status, start, body = await exchange(self.view, scope)
        return status, {k.decode(): v.decode() for k, v in start.items()}, body


@pytest.fixture
async def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Server]:
    monkeypatch.setenv(CHANNEL_VARIABLE, str(tmp_path / "c"))
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    made = Server()
    yield made
    made.view._subscription.close()


async def told(server: Server, folder: Path) -> None:
    """Let the server hear of one broken and one kept promise."""
    await server.get("/headway/state")  # it begins to listen with its first request
    observed = SchedulerCounts("slack", "demote")
    sender = Sender(folder / "c")
    sender.find_readers()
    late = serve_one(observed, "chatcmpl-late-1", CHAT, ttft_s=3.0)
    serve_one(observed, "chatcmpl-kept-1", CHAT, ttft_s=0.5, at_s=10.0)
    assert late is not None
    sender.keep({**late, "engine": "0", "unix_s": time.time()})
    sender.send(counts(observed, time.time()))
    sender.close()
    await asyncio.sleep(0)  # the loop looks at its sockets
    await asyncio.sleep(0)


async def test_state_and_story_over_http(server: Server, tmp_path: Path) -> None:
    """What the scheduler's process told is what the routes say."""
    await told(server, tmp_path)
    status, headers, body = await server.get("/headway/state")
    state = json.loads(body)
    assert (status, headers["content-type"]) == (200, "application/json")
    assert (state["ready"], state["policy"]) == (True, "slack")
    assert state["classes"][0]["attainment"] == 0.5
    assert "story" not in state["broken"][0]
    _, _, body = await server.get("/headway/broken", "id=chatcmpl-late")
    (one,) = json.loads(body)["broken"]
    assert one["story"] == [[0.0, "arrived"]]
    assert one["late_s"] == pytest.approx(2.0)
    assert one["by_cause_s"] == pytest.approx({"queueing": 1.0, "prefill": 1.0})
    assert json.loads(body) == {"broken": [one], "late": [], "num_lost": 0}
    _, _, body = await server.get("/headway/broken", "worst=1")
    assert json.loads(body)["broken"][0]["id"] == "chatcmpl-late-1"


async def test_our_metrics_follow_vllms(server: Server, tmp_path: Path) -> None:
    """Also when the scraper asks for OpenMetrics and gzip; the length is the new one."""
    await told(server, tmp_path)
    for path in ("/metrics", "/metrics/"):
        status, headers, body = await server.get(
            path, accept="application/openmetrics-text", accept_encoding="gzip"
        )
        assert status == 200
        assert body.startswith(VLLMS_METRICS)
        assert b'headway_requests_attained_total{engine="0",slo_class="chat"} 1.0' in body
        assert int(headers["content-length"]) == len(body)


@pytest.mark.parametrize("path", PAGE_FILES)
async def test_the_page_is_there_and_needs_no_network(server: Server, path: str) -> None:
    """Every file, under a policy that lets it load nothing from elsewhere, nor run inline code."""
    status, headers, body = await server.get(path)
    assert status == 200
    assert headers["content-security-policy"].startswith("default-src 'self'")
    text = body.decode()
    assert not re.search(r"https?://", text)
    assert "<script>" not in text
    assert " style=" not in text
    assert "innerHTML" not in text, "what clients send must not be read as HTML"


LINKS = re.compile(r'(?:(?:src|href)=|from |ours\()["`]([^"`?]+)')
"""What the page, its style and its scripts load: ``ours`` takes a name beside the script."""


@pytest.mark.parametrize("start", ["/headway", "/headway/", "/llm/a/headway", "/llm/a/headway/"])
async def test_the_page_works_behind_any_prefix(server: Server, start: str) -> None:
    """``--root-path``, or a proxy that adds one: all that is loaded lies under the same prefix."""
    root = start[: start.index("/headway")]
    seen, found = {start}, [start]
    while found:
        path = found.pop()
        status, _, body = await server.get(path, root=root)
        assert status == 200, path
        for link in LINKS.findall(body.decode()):
            other = urllib.parse.urljoin(path, link)
            if other not in seen:
                seen.add(other)
                found.append(other)
    names = {"live.css", "live.js", "cards.js", "draw.js", "words.js", "state", "broken"}
    assert seen == {start, *(f"{root}/headway/{name}" for name in names)}


def test_the_page_knows_every_cause() -> None:
    """A cause of lateness without a name on the page would be shown as code."""
    source = (Path(web.__path__[0]) / "live" / "words.js").read_text()
    table = source[source.index("const CAUSES") :]
    named = set(re.findall(r"^  (\w+): \[", table[: table.index("};")], re.MULTILINE))
    assert named == set(CAUSES)


async def test_everything_else_passes(server: Server) -> None:
    """Other paths reach vLLM as they came."""
    _, _, body = await server.get("/v1/models", accept_encoding="gzip")
    assert gzip.decompress(body) == VLLMS_METRICS


@pytest.mark.parametrize(
    ("path", "query"),
    [("/headway/state", "after=-1"), ("/headway/state", "after=x"), ("/headway/broken", "id="),
     ("/headway/state", "after=" + "9" * 400), ("/headway/broken", "worst=513"),
     ("/headway/broken", "worst=1.5"), ("/headway/broken", "id=" + "x" * 201),
     ("/headway/state", "after=%C2%B2"), ("/headway/state", "after=%FF")],
)  # fmt: skip
async def test_a_bad_query_is_400_with_a_sentence(server: Server, path: str, query: str) -> None:
    """Bounded and typed; never a 500."""
    status, _, body = await server.get(path, query)
    assert status == 400
    assert json.loads(body)["error"].endswith(".")


async def test_only_reading_is_allowed(server: Server) -> None:
    """POST gets 405 and is told what is."""
    status, headers, _ = await server.get("/headway/state", method="POST")
    assert (status, headers["allow"]) == (405, "GET, HEAD")


def basic(password: str) -> str:
    return "Basic " + base64.b64encode(f"me:{password}".encode()).decode()


@pytest.mark.parametrize("path", [*PAGE_FILES, "/headway/state", "/headway/broken"])
@pytest.mark.parametrize(
    ("given", "expected"),
    [(None, 401), ("Bearer wrong", 401), ("Bearer", 401), ("Basic !", 401), ("Basic Og==", 401),
     (basic("wrong"), 401), ("secret", 401), ("Bearer secret", 200), ("bearer second", 200),
     (basic("secret"), 200)],
)  # fmt: skip
async def test_the_api_key_covers_every_route(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str, given: str | None, expected: int
) -> None:
    """As a bearer token, or as the password a browser asks for."""
    monkeypatch.setenv(CHANNEL_VARIABLE, str(tmp_path / "c"))
    server = Server(api_key=["secret", "second"])
    headers = {"authorization": given} if given is not None else {}
    status, answer, _ = await server.get(path, **headers)
    server.view._subscription.close()
    assert status == expected
    assert ("www-authenticate" in answer) == (expected == 401)


async def test_the_key_of_the_environment_counts(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """VLLM_API_KEY, as for vLLM's own routes."""
    monkeypatch.setenv("VLLM_API_KEY", "secret")
    assert (await server.get("/headway/state"))[0] == 401
    assert (await server.get("/headway/state", authorization="Bearer secret"))[0] == 200


async def test_a_server_whose_keys_are_not_found_shows_nothing(server: Server) -> None:
    """A release that keeps its options elsewhere must not open the page to everybody."""
    del server.state.state.args
    for given in ({}, {"authorization": "Bearer x"}):
        assert (await server.get("/headway/state", **given))[0] == 401


async def test_without_a_channel_there_is_no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """The middleware passes everything on, /metrics and /headway too, and says once why."""
    monkeypatch.delenv(CHANNEL_VARIABLE, raising=False)
    said: list[tuple[Any, ...]] = []
    monkeypatch.setattr(observe.logger, "warning", lambda *words: said.append(words))
    server = Server()
    for path in ("/headway", "/metrics"):
        assert (await server.get(path))[2] == VLLMS_METRICS
    ((sentence, variable),) = said
    assert variable == CHANNEL_VARIABLE
    assert "404" in sentence
